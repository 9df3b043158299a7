"""A CSR matrix in an h5ad or zarr file: chunks found by h5py or zarr, read and decoded by `scdd._csr`."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse

from scdd import _csr
from scdd.data.expression import Faults
from scdd.data.formats.layout import ArrayLayout, NotDirect, layout_of, unchanged
from scdd.data.formats.layout_check import self_check
from scdd.data.threads import thread_count
from scdd.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scdd.data.formats.remote import RemoteFiles

log = logging.getLogger("scdd")

# Rows that a library reads at a time: it cannot be interrupted in between.
_LIBRARY_ROWS = 4_096


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


class ChunkReader:
    """Reads past HDF5 and zarr. Each process opens the files for itself: it may be pickled and forked."""

    def __init__(self, data: ArrayLayout, indices: ArrayLayout, indptr: np.ndarray, n_vars: int, place: str):
        self.data, self.indices, self._indptr = data, indices, indptr
        self._n_vars, self._place = n_vars, place
        self._opened: tuple[int, _csr.StoredCsr] | None = None
        self.cheap_prefix = self._open().cheap_prefix  # whatever is wrong with the tables is said now

    @property
    def layouts(self) -> tuple[ArrayLayout, ArrayLayout]:
        """Of data and indices."""
        return self.data, self.indices

    def read(self, rows: np.ndarray, threads: int) -> tuple:
        """data, indices, indptr and faults of rows (ascending, each once)."""
        with self._errors():
            return self._open().read(rows, threads)

    def fill(
        self,
        window: _csr.Window,
        rows: np.ndarray,
        slots: np.ndarray,
        column_of_gene: np.ndarray | None,
        threads: int,
        cancel: _csr.Cancel | None,
    ) -> tuple:
        """Put rows into slots of a window; the faults of its values."""
        with self._errors():
            return self._open().read_into(window, rows, slots, column_of_gene, threads, cancel)

    def _open(self) -> _csr.StoredCsr:
        if not (unchanged(self.data) and unchanged(self.indices)):
            raise DataFileError(f"{self._place} was changed or replaced while in use; open the atlas again")
        if self._opened is None or self._opened[0] != os.getpid():
            with StoreErrors(self._place, opening=True):
                parts = (array_of(self.data), array_of(self.indices))
                self._opened = (os.getpid(), _csr.StoredCsr(self._place, *parts, self._indptr, self._n_vars))
        return self._opened[1]

    def _errors(self) -> StoreErrors:
        return StoreErrors(self._place)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}


class LibraryReader:
    """Reads through h5py or zarr what `scdd._csr` has no decoder for."""

    def __init__(self, group: Any, indptr: np.ndarray, n_vars: int, place: str):
        self._group, self._indptr, self._n_vars, self._place = group, indptr, n_vars, place
        self._source = (str(getattr(getattr(group, "file", None), "filename", "")), group.name)
        self._remote = _remote_files(group)

    def read(self, rows: np.ndarray, threads: int) -> tuple:
        """data, indices, indptr and faults of rows (ascending, each once)."""
        sizes = self._indptr[rows + 1] - self._indptr[rows]
        indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        data, indices = np.empty(indptr[-1], dtype=np.float32), np.empty(indptr[-1], dtype=np.int32)
        for first, last in runs(rows):
            begin, end = self._indptr[rows[first]], self._indptr[rows[last] + 1]
            try:
                values, genes = np.asarray(self._group["data"][begin:end]), self._group["indices"][begin:end]
            except (OSError, RuntimeError, ValueError) as error:
                where = f"rows {rows[first]}:{rows[last] + 1}"
                raise DataFileError(f"{self._place} cannot be read at {where} ({error})") from error
            self._check(np.asarray(genes), int(begin))
            data[indptr[first] : indptr[last + 1]] = values
            indices[indptr[first] : indptr[last + 1]] = genes
        window = _csr.Window(len(rows), self._n_vars, _csr.WindowMemory())
        numbers = np.arange(len(rows), dtype=np.int64)
        faults = window.put_rows(data, indices, indptr, numbers, numbers, n_vars=self._n_vars)
        return data, indices, indptr, _numbered(faults, rows)

    def fill(
        self,
        window: _csr.Window,
        rows: np.ndarray,
        slots: np.ndarray,
        column_of_gene: np.ndarray | None,
        threads: int,
        cancel: _csr.Cancel | None,
    ) -> tuple:
        """Put rows into slots of a window; the faults of its values."""
        found = Faults()
        for start in range(0, len(rows), _LIBRARY_ROWS):
            if cancel is not None and cancel.requested:
                raise _csr.Cancelled
            part = rows[start : start + _LIBRARY_ROWS]
            data, indices, indptr, faults = self.read(part, threads)
            numbers = np.arange(len(part), dtype=np.int64)
            places = slots[start : start + _LIBRARY_ROWS]
            window.put_rows(data, indices, indptr, numbers, places, column_of_gene, n_vars=self._n_vars)
            found = found.merge(Faults(*faults))
        return found

    def _check(self, genes: np.ndarray, begin: int) -> None:
        wrong = (genes < 0) | (genes >= self._n_vars)
        if wrong.any():
            place = begin + int(np.argmax(wrong))
            row = int(np.searchsorted(self._indptr, place, side="right")) - 1
            raise DataFileError(
                f"{self._place} is corrupt: indices[{place}] (row {row}) lies outside 0..{self._n_vars - 1}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_group": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import h5py

        self.__dict__.update(state)
        path, name = self._source
        if not path:
            raise DataFileError(
                f"{self._place} is read by zarr and cannot be opened in another process; read it in this one"
            )
        if self._remote is not None:
            from scdd.data.formats.remote_file import open_remote_h5

            self._group = open_remote_h5(self._remote)[name]
        else:
            self._group = h5py.File(path, "r")[name]


class StoreErrors:
    """Turns the errors of `scdd._csr` about files into those of scdd, within a ``with`` block."""

    def __init__(self, place: str, *, opening: bool = False):
        # What is wrong with a table is the file's fault; what is wrong with rows is the caller's.
        self._place, self._opening = place, opening

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, _csr.StoreError) or (self._opening and isinstance(error, ValueError)):
            said = str(error)
            prefix = "" if said.startswith(self._place) else f"{self._place}: "
            raise DataFileError(f"{prefix}{said}; copy or write the file again") from error


def array_of(layout: ArrayLayout, paths: Sequence[str] | None = None) -> _csr.ChunkedArray:
    """Open the files of a chunk table, or others that hold the same bytes at the same places."""
    native = layout.dtype.newbyteorder("=")
    return _csr.ChunkedArray(
        layout.name,
        list(layout.paths if paths is None else paths),
        layout.file_of_chunk,
        layout.offsets,
        layout.sizes,
        layout.masks,
        max(layout.chunk_length, 1),
        layout.length,
        f"{native.kind}{native.itemsize}",
        not layout.dtype.isnative,
        list(layout.steps),
        float(layout.fill_value),
    )


def default_threads() -> int:
    """Threads that decode: the cores that this process may use, at most 16."""
    return min(16, thread_count(None))


def runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last position of each run of consecutive numbers in ascending ``rows``."""
    if not len(rows):
        return
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for start, stop in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        yield int(start), int(stop) - 1


def _numbered(faults: tuple, rows: np.ndarray) -> tuple:
    return tuple(-1 if place < 0 else int(rows[place]) for place in faults)


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


def _remote_files(group: Any) -> RemoteFiles | None:
    """What an h5py group is read from, where that is no local file."""
    if getattr(getattr(group, "file", None), "driver", None) != "fileobj":
        return None
    from scdd.data.formats.remote_file import remote_file_of

    found = remote_file_of(group)
    return None if found is None else found.files


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
