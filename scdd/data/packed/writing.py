"""Packing an atlas: streamed into a temporary folder that takes its name only when it is whole."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pandas as pd

import scdd
from scdd import _csr
from scdd.data.packed.fingerprint import fingerprint, identity, is_fresh, source_paths, storable
from scdd.data.packed.header import (
    BLOCK,
    HEADER,
    OFFSETS,
    ROWS,
    SUFFIX,
    TABLES,
    Checksums,
    Header,
    crc_blocks,
    hash_names,
    is_packed,
    read_header,
)
from scdd.data.packed.store import PackedStore
from scdd.data.threads import thread_count
from scdd.errors import DataFileError, InputError
from scdd.hdf5_writing import new_hdf5
from scdd.output import atomic_path, check_writable
from scdd.progress import progress_bar

if TYPE_CHECKING:
    from scipy import sparse

    from scdd.data.atlas import Atlas

_CELLS = 4_096  # a block: some 50 MB as CSR, whatever the size of the atlas


def pack(
    atlas: Atlas,
    path: str | Path,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    progress: bool = True,
) -> PackedStore:
    """Write an atlas as a packed folder and open it; a folder that is still fresh is opened as it is.

    A folder whose source has changed is written again. Memory is bounded by a block of cells.

    Parameters
    ----------
    atlas
        What to pack: its cells and genes, in its order.
    path
        A name that ends in ``.packed``. Only a packed folder is ever replaced, and only by one that is whole.
    overwrite
        Also write again what is fresh, or was packed from another source.
    threads
        C++ threads; by default one for each core that this process may use.
    progress
        Show a progress bar on a terminal.

    Raises
    ------
    InputError
        An empty atlas, a wrong name, a folder that was packed from another source.
    DataFileError
        Something else lies at ``path``, the disk is full or read-only.
    """
    path = Path(path).absolute()
    threads = thread_count(threads)
    source = fingerprint(atlas)
    _refuse(path, atlas, source, overwrite)
    if not overwrite and is_fresh(path, atlas):
        return PackedStore.open(path)
    try:
        with atomic_path(path) as folder, progress_bar("packing", atlas.n_obs, enabled=progress) as advance:
            folder.mkdir()
            _write(folder, atlas, source, threads, advance)
    except DataFileError:
        # Another process, e.g. the next rank, may have put the same there in the meantime.
        if overwrite or not is_fresh(path, atlas):
            raise
    return PackedStore.open(path)


def _refuse(path: Path, atlas: Atlas, source: dict[str, Any], overwrite: bool) -> None:
    """Everything that can be known to be wrong before the work."""
    if path.suffix != SUFFIX:
        raise InputError(f"{path}: give the output a name that ends in {SUFFIX}")
    if not atlas.n_obs:
        raise InputError(f"{atlas.name} is empty: there are no cells to pack")
    inputs = source_paths(atlas)
    if any(path.resolve() == place or path.resolve() in place.parents for place in inputs):
        raise InputError(f"{path} is what is to be packed; choose another output")
    check_writable(path, inputs=inputs)
    if not os.path.lexists(path):
        return
    if not is_packed(path):
        raise DataFileError(f"{path} exists and is not a packed folder; remove it or choose another output")
    if overwrite:
        return
    try:
        before = read_header(path).source
    except DataFileError as error:
        raise DataFileError(f"{error}; it is kept unless you say overwrite=True (--force)") from error
    if identity(before) != identity(source):
        raise InputError(
            f"{path} was packed from another source ({before.get('name')}); "
            "choose another output or say overwrite=True (--force)"
        )


class _ChecksummedFile:
    """Writes on, and keeps the CRC-32 of each block as it goes by."""

    def __init__(self, file: BinaryIO):
        self._file, self._size, self._crc = file, 0, [0]

    def write(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        self._file.write(view)
        while len(view):
            room = BLOCK - self._size % BLOCK
            self._crc[-1] = zlib.crc32(view[:room], self._crc[-1])
            self._size += len(view[:room])
            if self._size % BLOCK == 0:
                self._crc.append(0)
            view = view[room:]

    def close(self) -> Checksums:
        self._file.flush()
        os.fsync(self._file.fileno())
        return Checksums(self._size, self._crc[:-1] if self._size % BLOCK == 0 else self._crc)


def _write(folder: Path, atlas: Atlas, source: dict[str, Any], threads: int, advance: Any) -> None:
    nnz = 0
    with (folder / ROWS).open("wb") as rows_file, (folder / OFFSETS).open("wb") as offsets_file:
        rows, offsets = _ChecksummedFile(rows_file), _ChecksummedFile(offsets_file)
        shape = {"shape": (atlas.n_obs + 1,), "fortran_order": False, "descr": "<i8"}
        np.lib.format.write_array_header_1_0(offsets, shape)  # type: ignore[arg-type]
        end = np.zeros(1, dtype="<i8")
        offsets.write(end)
        for positions, block in atlas.blocks(_CELLS):
            data, starts = _packed(block, threads)
            rows.write(data)
            offsets.write((starts[1:] + end).astype("<i8"))
            end += starts[-1]
            nnz += block.nnz
            advance(len(positions))
        files = {ROWS: rows.close(), OFFSETS: offsets.close()}
    files[TABLES] = _write_tables(folder / TABLES, atlas)
    genes = hash_names(atlas.var_names)
    header = Header(
        atlas.n_obs, atlas.n_vars, nnz, atlas.layer, atlas.expression, genes, source, files, scdd.__version__
    )
    with (folder / HEADER).open("wb") as file:
        _ChecksummedFile(file).write(header.to_bytes())


def _packed(block: sparse.csr_matrix, threads: int) -> tuple[np.ndarray, np.ndarray]:
    data = np.ascontiguousarray(block.data, dtype=np.float32)
    indptr = np.ascontiguousarray(block.indptr, dtype=np.int64)
    return _csr.pack_rows(data, np.ascontiguousarray(block.indices), indptr, block.shape[1], threads)


def _write_tables(path: Path, atlas: Atlas) -> Checksums:
    from anndata.io import write_elem

    try:
        with new_hdf5(path) as file:
            var = pd.DataFrame(index=pd.Index(atlas.var_names.astype(str)))
            for name, table in (("obs", storable(atlas.obs)), ("var", var)):
                write_elem(file.root, name, table, dataset_kwargs={"compression": "gzip"})
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"obs of {atlas.name} cannot be stored ({error}); drop or convert that column"
        ) from error
    return Checksums(path.stat().st_size, list(crc_blocks(path)))
