"""Chunk tables of HDF5 datasets, by way of h5py's metadata calls."""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scdd.data.formats.layout import ArrayLayout, Chunks, NotDirect, checked_dtype, chunk_count, file_identity
from scdd.data.formats.layout_cache import cached_table
from scdd.errors import DataFileError

if TYPE_CHECKING:
    from scdd.data.formats.layout import FileIdentity, Step
    from scdd.data.formats.remote import RemoteFiles

# Registered filter numbers: https://github.com/HDFGroup/hdf5_plugins/blob/master/docs/RegisteredFilterPlugins.md
_KINDS = {
    1: "deflate",
    2: "shuffle",
    3: "fletcher32",
    32000: "lzf",
    32001: "blosc",
    32004: "lz4_hdf5",
    32015: "zstd",
}
_OTHER = {4: "szip", 5: "nbit", 6: "scaleoffset", 32008: "bitshuffle", 32013: "zfp", 32026: "blosc2"}
_BLOSC_SNAPPY = 3


def hdf5_layout(dataset: Any) -> ArrayLayout:
    """Chunk table of an `h5py.Dataset`; see `scdd.data.formats.layout.layout_of`."""
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise NotDirect(f"{type(dataset).__name__} is neither an h5py.Dataset nor a zarr.Array")
    path, identity, remote = _remote_file(dataset) or (*_local_file(dataset), None)
    name = f"{path}: {dataset.name}"
    if dataset.shape is None or len(dataset.shape) != 1:
        raise NotDirect(f"{name} is not one-dimensional")
    dtype = checked_dtype(name, dataset.dtype)
    if not dataset.id.get_type().equal(h5py.h5t.py_create(dtype, logical=True)):
        raise NotDirect(f"{name} holds a number type of its own, not {dtype}")
    plist, length = dataset.id.get_create_plist(), int(dataset.shape[0])
    _refuse_scattered(name, dataset, plist)
    if plist.get_layout() == h5py.h5d.CHUNKED:
        chunk_length, steps = int(dataset.chunks[0]), _steps(name, plist)
        count = chunk_count(name, length, chunk_length)
        chunks = cached_table(
            (path, dataset.name),
            (identity,),
            count,
            lambda: _chunked(name, dataset, chunk_length, count),
            remote=remote is not None,
        )
    else:
        chunk_length, steps = max(length, 1), ()
        chunks = _contiguous(dataset, min(length, 1))
    fill = float(dataset.fillvalue)
    known = (path,), (identity,)
    return ArrayLayout(name, *known, *chunks, chunk_length, length, dtype, steps, fill, remote)


def _remote_file(dataset: Any) -> tuple[str, FileIdentity, RemoteFiles] | None:
    """URL, identity and file system of a dataset that is read through fsspec."""
    if dataset.file.driver != "fileobj":
        return None
    from scdd.data.formats.remote_file import remote_file_of

    found = remote_file_of(dataset)
    return None if found is None else (found.files.url, found.identity, found.files)


def _local_file(dataset: Any) -> tuple[str, FileIdentity]:
    """The file that this dataset is read from, provided it is an ordinary one that nobody writes to."""
    file = dataset.file
    name = f"{file.filename}: {dataset.name}"
    if file.driver not in ("sec2", "stdio"):
        raise NotDirect(f"{name} is not a local file but read by the {file.driver!r} driver")
    if file.mode != "r" or file.swmr_mode:
        raise NotDirect(f"{name} is open for writing")
    path = os.path.abspath(os.fsdecode(file.filename))  # noqa: PTH100 (resolve() would follow links)
    if not Path(path).is_file():
        raise NotDirect(f"{name} is not a local file")
    identity = file_identity(path)
    if file.driver == "sec2":
        opened = os.fstat(file.id.get_vfd_handle())
        if (opened.st_ino, opened.st_size) != identity[:2]:
            raise NotDirect(f"{name}: the path leads to another file than the one that is open")
    return path, identity


def _refuse_scattered(name: str, dataset: Any, plist: Any) -> None:
    import h5py

    layout = plist.get_layout()
    if dataset.is_virtual or layout == h5py.h5d.VIRTUAL:
        raise NotDirect(f"{name} is a virtual dataset")
    if layout == h5py.h5d.COMPACT:
        raise NotDirect(f"{name} is a compact dataset, kept in the file's metadata")
    if dataset.external:
        raise NotDirect(f"{name} keeps its values in external files")


def _contiguous(dataset: Any, count: int) -> Chunks:
    chunks = Chunks.none_stored(count)
    # Without storage there is no offset: behind a user block HDF5's "undefined" overflows to a small number.
    stored = dataset.id.get_storage_size()
    if count and stored:
        chunks.offsets[0] = _as_int64(dataset, dataset.id.get_offset())
        chunks.sizes[0] = _as_int64(dataset, stored)
    return chunks


def _chunked(name: str, dataset: Any, chunk_length: int, count: int) -> Chunks:
    """The table as HDF5 iterates over it, some 2 us a chunk; `get_chunk_info` would take 500."""
    if not hasattr(dataset.id, "chunk_iter"):
        raise NotDirect(f"{name}: this h5py is built with an HDF5 that lists no chunks; update h5py")
    seen = array("Q")
    dataset.id.chunk_iter(
        lambda info: seen.extend((info.chunk_offset[0], info.byte_offset, info.size, info.filter_mask))
    )
    table = np.frombuffer(seen, dtype=np.uint64).reshape(-1, 4) if seen else np.empty((0, 4), np.uint64)
    number, rest = np.divmod(table[:, 0], np.uint64(chunk_length))
    if rest.any() or len(np.unique(number)) < len(number):
        raise NotDirect(f"{name}: HDF5 lists chunks that do not lie on its grid")
    table, number = table[number < count], number[number < count].astype(np.int64)
    if (table[:, 1:3] > np.iinfo(np.int64).max).any():
        raise DataFileError(f"{name} is corrupt: a chunk beyond 2^63 bytes; copy or write the file again")
    chunks = Chunks.none_stored(count)
    chunks.offsets[number] = table[:, 1].astype(np.int64)
    chunks.sizes[number] = table[:, 2].astype(np.int64)
    chunks.masks[number] = table[:, 3].astype(np.uint32)
    return chunks


def _as_int64(dataset: Any, value: int | None) -> int:
    if value is None or not 0 <= value <= np.iinfo(np.int64).max:
        raise DataFileError(f"{dataset.file.filename}: {dataset.name} is corrupt: it lies at byte {value}")
    return int(value)


def _steps(name: str, plist: Any) -> tuple[Step, ...]:
    """Filters in the order in which they are undone; bit ``i`` of a chunk's mask skips the i-th applied."""
    steps: list[Step] = []
    for bit in range(plist.get_nfilters()):
        number, _, values, label = plist.get_filter(bit)
        if number not in _KINDS:
            known = _OTHER.get(number, label.decode(errors="replace") or "unknown")
            raise NotDirect(f"{name} is compressed by HDF5 filter {number} ({known})")
        if number == 32001 and len(values) > 6 and values[6] == _BLOSC_SNAPPY:
            raise NotDirect(f"{name} is compressed by blosc with snappy")
        # An element size of 0 or 1 leaves the bytes as they are; the decoder need not know of it.
        if number != 2 or (values and values[0] > 1):
            steps.append((_KINDS[number], int(values[0]) if number == 2 else 0, bit))
    return tuple(reversed(steps))
