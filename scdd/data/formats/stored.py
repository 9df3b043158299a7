"""A CSR matrix in an h5ad or zarr file: checked on opening, then read by one of two readers."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from scdd import _csr
from scdd.data.expression import Faults
from scdd.data.formats.layout import ArrayLayout, NotDirect, layout_of
from scdd.data.formats.layout_check import self_check
from scdd.data.formats.readers import ChunkReader, LibraryReader, StoreErrors, array_of
from scdd.data.threads import thread_count
from scdd.errors import DataFileError

log = logging.getLogger("scdd")


class StoredCsr:
    """A CSR matrix in files; in memory lie only ``indptr`` and the table of chunks.

    Where a chunk lies and how it was encoded is asked of h5py or zarr once, on opening. The values are then
    read past them, by many threads. What only h5py or zarr can decode is left to them, one thread at a time,
    and ``why_indirect`` says so.

    Attributes
    ----------
    shape : cells, genes
    place : file and matrix, for messages
    indptr : int64 [cells + 1]
    nbytes : size as float32 CSR
    why_indirect : None, or why h5py or zarr read the values
    """

    def __init__(self, group: Any, shape: tuple[int, int], place: str):
        self.shape, self.place = shape, place
        self.indptr = _read_indptr(group, shape[0], place)
        self.nbytes = 8 * int(self.indptr[-1])
        self._reader, self.why_indirect = _reader_of(group, self)
        if self.why_indirect:
            log.info("%s is read by one thread: %s", place, self.why_indirect)

    @property
    def layouts(self) -> tuple[ArrayLayout, ArrayLayout] | None:
        """Chunk tables of ``data`` and ``indices`` where they are read directly."""
        return self._reader.layouts if isinstance(self._reader, ChunkReader) else None

    @property
    def chunk_rows(self) -> ChunkRows | None:
        """Rows at which a chunk begins; None where any run of rows can be read by itself."""
        if not isinstance(self._reader, ChunkReader) or not self._reader.indices.steps:
            return None
        return ChunkRows.of(self.indptr, self._reader.indices.chunk_length)

    @property
    def decodes_whole_chunks(self) -> bool:
        """Whether the last row of a run costs the whole chunk that it ends in."""
        return isinstance(self._reader, ChunkReader) and not self._reader.cheap_prefix

    @property
    def chunk_bytes(self) -> int:
        """Decoded size of a chunk of data and one of indices; what has no codec is read by the half MiB."""
        if self.layouts is None:
            return 0
        return sum(part.chunk_bytes if part.steps else 1 << 19 for part in self.layouts)

    @property
    def n_chunks(self) -> int:
        """Entries of the chunk tables."""
        return 0 if self.layouts is None else sum(part.n_chunks for part in self.layouts)

    @property
    def in_flight(self) -> int:
        """Bytes that lie in memory between a remote file and its local mirror, at most."""
        return getattr(self._reader, "in_flight", 0)

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start:stop``."""
        return self.rows(np.arange(start, stop, dtype=np.int64))[0]

    def rows(self, rows: np.ndarray, *, threads: int | None = None) -> tuple[sparse.csr_matrix, Faults]:
        """Rows by number, ascending and each once; and what is wrong with their values."""
        data, indices, indptr, faults = self._reader.read(rows, threads or default_threads())
        if indptr[-1] <= np.iinfo(np.int32).max:
            indptr = indptr.astype(np.int32)  # or scipy would widen the indices
        matrix = sparse.csr_matrix((data, indices, indptr), shape=(len(rows), self.shape[1]))
        return matrix, Faults(*faults)

    def fill(
        self,
        window: _csr.Window,
        rows: np.ndarray,
        slots: np.ndarray,
        *,
        column_of_gene: np.ndarray | None = None,
        threads: int = 1,
        cancel: _csr.Cancel | None = None,
    ) -> Faults:
        """Put rows (ascending, each once) into slots of a window."""
        return Faults(*self._reader.fill(window, rows, slots, column_of_gene, threads, cancel))


class ChunkRows(NamedTuple):
    """Which rows begin chunks.

    Attributes
    ----------
    first : int64, ascending, the first row that begins in a chunk; one of several such chunks stands for all
    cut : bool, whether the row before it ends in that chunk
    """

    first: np.ndarray
    cut: np.ndarray

    @classmethod
    def of(cls, indptr: np.ndarray, chunk_length: int) -> ChunkRows:
        """From row pointers int64 [n_rows + 1] and the elements of a chunk."""
        begins = np.arange(0, int(indptr[-1]), chunk_length, dtype=np.int64)
        rows = np.searchsorted(indptr, begins)
        cut = indptr[rows] > begins
        kept = np.append(np.diff(rows) != 0, True)[: len(rows)]  # the last of chunks in which no row begins
        kept &= rows < len(indptr) - 1
        return cls(rows[kept], cut[kept])


def default_threads() -> int:
    """Threads that decode: the cores that this process may use, at most 16."""
    return min(16, thread_count(None))


def _read_indptr(group: Any, n_rows: int, place: str) -> np.ndarray:
    """Row pointers int64 [n_rows + 1], checked against the arrays that they point into."""
    try:
        stored, data, indices = (group[name] for name in ("indptr", "data", "indices"))
        lengths = data.shape[0], indices.shape[0]
        fault = _dtype_fault(data.dtype, indices.dtype, stored.dtype)
        if fault is None and stored.shape != (n_rows + 1,):
            fault = f"indptr has {stored.shape[0]} entries for {n_rows} rows"
        elif fault is None:
            indptr = _whole(stored).astype(np.int64)
    except (KeyError, OSError, RuntimeError, ValueError, IndexError) as error:
        raise DataFileError(f"{place} cannot be read ({error}); copy or write the file again") from error
    if fault is None and (indptr[0] != 0 or np.any(np.diff(indptr) < 0)):
        fault = "indptr does not start at 0 or decreases"
    elif fault is None and not indptr[-1] == lengths[0] == lengths[1]:
        fault = f"indptr ends at {indptr[-1]}, data holds {lengths[0]}, indices {lengths[1]}"
    if fault:
        raise DataFileError(f"{place} is corrupt: {fault}; write the file again")
    return indptr


def _whole(array: Any) -> np.ndarray:
    """All elements, past h5py where it lacks the filter that we have."""
    try:
        return np.asarray(array[...])
    except OSError:
        try:
            layout = layout_of(array, codecs=_csr.codecs())
        except NotDirect:
            layout = None
        if layout is None or layout.remote is not None:
            raise
        elements = array_of(layout).read(0, layout.length)
        return elements.view(layout.dtype.newbyteorder("="))


def _dtype_fault(data: np.dtype, indices: np.dtype, indptr: np.dtype) -> str | None:
    """What is wrong with the kinds of numbers that make up a CSR matrix."""
    if data.kind not in "iufb":
        return f"data holds {data}, which are no real numbers"
    if indices.kind not in "iu" or indptr.kind not in "iu":
        return f"indices holds {indices} and indptr {indptr}, which must be whole numbers"
    return None


def _refuse_lost(layout: ArrayLayout, place: str, *, least: int) -> None:
    """A chunk that is not there reads as zeros; so many zeros in a row are no part of a sparse matrix."""
    missing = np.flatnonzero(layout.offsets < 0)
    if len(missing) and min(layout.chunk_length, layout.length) >= least:
        raise DataFileError(
            f"{place} is incomplete: chunk {missing[0]} of {layout.name} was never written or has been lost; "
            "copy or write the file again (without explicit zeros, if it is full of them)"
        )


def _remote_reader() -> type[ChunkReader]:
    from scdd.data.formats.remote_rows import RemoteChunkReader

    return RemoteChunkReader


def _reader_of(group: Any, stored: StoredCsr) -> tuple[ChunkReader | LibraryReader, str | None]:
    """The fastest reader that reads these arrays right, and why it is not the direct one."""
    try:
        data, indices = (layout_of(group[name], codecs=_csr.codecs()) for name in ("data", "indices"))
        for name, layout in (("data", data), ("indices", indices)):
            self_check(layout, group[name], _csr.decode_chunk)
            if layout.fill_value and layout.dtype.newbyteorder("=").name not in ("float32", "float64"):
                raise NotDirect(f"{layout.name} has the fill value {layout.fill_value:g}")
        # Genes differ from entry to entry, while a run of explicit zeros is odd but possible.
        _refuse_lost(indices, stored.place, least=16 if stored.shape[1] >= 16 else 1_024)
        _refuse_lost(data, stored.place, least=1_024)
        with StoreErrors(stored.place, opening=True):
            kind = ChunkReader if data.remote is None else _remote_reader()
            return kind(data, indices, stored.indptr, stored.shape[1], stored.place), None
    except NotDirect as reason:
        return LibraryReader(group, stored.indptr, stored.shape[1], stored.place), str(reason)
