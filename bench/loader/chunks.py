"""Where the chunks of a stored CSR matrix lie, as read by h5py or out of zarr's shards, and one way to decode them.

Used by the contender in Python threads and by the limits; scdd has its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Chunks(NamedTuple):
    """One array: elements a chunk, and for each chunk its file, offset and bytes."""

    dtype: np.dtype
    length: int  # elements a chunk
    size: int  # elements in all
    paths: list[Path]
    file: np.ndarray
    offset: np.ndarray
    bytes: np.ndarray
    codec: str  # "none", "gzip", "shuffle_gzip", "zstd" or "blosc"

    @property
    def chunk_bytes(self) -> int:
        """Decoded."""
        return self.length * self.dtype.itemsize


class Matrix(NamedTuple):
    """A CSR matrix on disk."""

    data: Chunks
    indices: Chunks
    indptr: np.ndarray  # int64 [n_rows + 1]
    n_vars: int

    @property
    def per_cell(self) -> float:
        """Mean of the entries stored a cell."""
        return float(self.indptr[-1]) / (len(self.indptr) - 1)


def matrix_of(path: Path) -> Matrix:
    """Read the chunk tables of an h5ad or of an annbatch collection of one dataset."""
    return _of_h5ad(path) if path.is_file() else _of_zarr(path / "dataset_0" / "X")


def _of_h5ad(path: Path) -> Matrix:
    import h5py

    with contextlib.suppress(ImportError):  # for indptr of zstd.h5ad, which is read through HDF5
        import hdf5plugin  # noqa: F401
    with h5py.File(path, "r") as file:
        group = file["X"]
        arrays = []
        for name in ("data", "indices"):
            dataset, table = group[name], []
            dataset.id.chunk_iter(table.append)
            table.sort(key=lambda chunk: chunk.chunk_offset)
            plist = dataset.id.get_create_plist()
            filters = [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]
            codec = {(): "none", (1,): "gzip", (2, 1): "shuffle_gzip", (32015,): "zstd"}[tuple(filters)]
            offset = np.array([chunk.byte_offset for chunk in table])
            size = np.array([chunk.size for chunk in table])
            zeros = np.zeros(len(table), int)
            arrays.append(
                Chunks(dataset.dtype, dataset.chunks[0], dataset.shape[0], [path], zeros, offset, size, codec)
            )
        return Matrix(*arrays, group["indptr"][:].astype(np.int64), int(group.attrs["shape"][1]))


def _of_zarr(group: Path) -> Matrix:
    import zarr

    arrays = []
    for name in ("data", "indices"):
        meta = json.loads((group / name / "zarr.json").read_text())
        shard = meta["chunk_grid"]["configuration"]["chunk_shape"][0]
        inner = meta["codecs"][0]["configuration"]["chunk_shape"][0]
        paths = [group / name / "c" / str(k) for k in range(-(-meta["shape"][0] // shard))]
        tables = []
        for (
            path
        ) in paths:  # the index is the last part of a shard: offset and bytes of each chunk, and a checksum
            with path.open("rb") as file:
                file.seek(-(16 * (shard // inner) + 4), os.SEEK_END)
                tables.append(np.frombuffer(file.read()[:-4], "<u8").reshape(-1, 2))
        table = np.concatenate(tables)
        number = np.repeat(np.arange(len(paths)), [len(t) for t in tables])
        stored = table[:, 0] != np.uint64(2**64 - 1)
        offset, size = table[stored].astype(np.int64).T
        dtype = np.dtype(meta["data_type"])
        arrays.append(Chunks(dtype, inner, meta["shape"][0], paths, number[stored], offset, size, "blosc"))
    indptr = np.asarray(zarr.open_array(group / "indptr", mode="r")[:], np.int64)
    return Matrix(*arrays, indptr, json.loads((group / "zarr.json").read_text())["attributes"]["shape"][1])


class Files:
    """Open files, read at any place by any thread."""

    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks
        self._handles = [os.open(path, os.O_RDONLY) for path in chunks.paths]

    def read(self, k: int) -> bytes:
        """Return the encoded bytes of chunk `k`."""
        c = self.chunks
        return os.pread(self._handles[c.file[k]], int(c.bytes[k]), int(c.offset[k]))


def python_decoder(chunks: Chunks) -> Callable[[bytes], np.ndarray]:
    """Decode a chunk with what Python has: zlib of the standard library, numcodecs for the rest. None holds the GIL."""
    if chunks.codec == "zstd":
        from numcodecs.zstd import decompress
    elif chunks.codec == "blosc":
        from numcodecs import blosc

        blosc.use_threads = False
        decompress = blosc.decompress
    else:
        decompress = zlib.decompress

    def decode(encoded: bytes) -> np.ndarray:
        if chunks.codec == "none":
            return np.frombuffer(encoded, chunks.dtype)
        plain = decompress(encoded)
        if chunks.codec == "shuffle_gzip":
            width = chunks.dtype.itemsize
            plain = np.frombuffer(plain, np.uint8).reshape(width, -1).T.tobytes()
        return np.frombuffer(plain, chunks.dtype)

    return decode
