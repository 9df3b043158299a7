"""Who reads rows of a stored CSR matrix: `scdd._csr`, past HDF5 and zarr, or h5py and zarr themselves.

Both give ``read(rows, threads)``: data float32, indices int32, indptr int64 and faults of rows (ascending,
each once); and ``fill(window, rows, slots, column_of_gene, threads, cancel)``, which puts them into slots of
a window and returns the faults.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from scdd import _csr
from scdd.data.expression import Faults
from scdd.data.formats.layout import ArrayLayout, unchanged
from scdd.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scdd.data.formats.remote import RemoteFiles

# Rows that a library reads at a time: it cannot be interrupted in between.
_LIBRARY_ROWS = 4_096


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

    def fill(self, window: _csr.Window, rows: np.ndarray, slots: np.ndarray, *how: Any) -> tuple:
        """Put rows into slots of a window; the faults of its values."""
        with self._errors():
            return self._open().read_into(window, rows, slots, *how)

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


def runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last position of each run of consecutive numbers in ascending ``rows``."""
    if not len(rows):
        return
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for start, stop in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        yield int(start), int(stop) - 1


def _remote_files(group: Any) -> RemoteFiles | None:
    """What an h5py group is read from, where that is no local file."""
    if getattr(getattr(group, "file", None), "driver", None) != "fileobj":
        return None
    from scdd.data.formats.remote_file import remote_file_of

    found = remote_file_of(group)
    return None if found is None else found.files


def _numbered(faults: tuple, rows: np.ndarray) -> tuple:
    return tuple(-1 if place < 0 else int(rows[place]) for place in faults)
