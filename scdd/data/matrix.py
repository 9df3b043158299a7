"""Expression matrices row by row: in memory, or lying in an h5ad or zarr group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy import sparse

from scdd.errors import DataFileError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator


class RowMatrix(Protocol):
    """What an atlas needs of a matrix: its shape, its size as float32 CSR, and runs of rows."""

    shape: tuple[int, int]
    place: str
    nbytes: int

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start:stop``."""


class MemoryMatrix:
    """A matrix that is in memory already; dense and CSC are converted to CSR once."""

    def __init__(self, values: Any, place: str):
        self.place = place
        self.csr = _as_csr(values)
        self.shape = self.csr.shape
        self.nbytes = 8 * self.csr.nnz

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start:stop``."""
        return self.csr[start:stop]


class StoredCsr:
    """A CSR matrix in an open h5ad or zarr group; only ``indptr`` is held in memory."""

    def __init__(self, group: Any, shape: tuple[int, int], place: str):
        self.shape, self.place = shape, place
        self._data, self._indices = group["data"], group["indices"]
        self.indptr = np.asarray(group["indptr"][...]).astype(np.int64)
        self._check()
        self.nbytes = 8 * self._data.shape[0]

    def _check(self) -> None:
        fault = None
        if len(self.indptr) != self.shape[0] + 1:
            fault = f"indptr has {len(self.indptr)} entries for {self.shape[0]} rows"
        elif self.indptr[0] != 0 or np.any(np.diff(self.indptr) < 0):
            fault = "indptr does not start at 0 or decreases"
        elif not self.indptr[-1] == self._data.shape[0] == self._indices.shape[0]:
            stored = f"data holds {self._data.shape[0]}, indices {self._indices.shape[0]}"
            fault = f"indptr ends at {self.indptr[-1]}, {stored}"
        if fault:
            raise DataFileError(f"{self.place} is corrupt: {fault}; write the file again")

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start:stop``."""
        first, last = self.indptr[start], self.indptr[stop]
        try:
            data = np.asarray(self._data[first:last], dtype=np.float32)
            indices = np.asarray(self._indices[first:last])
        except (OSError, RuntimeError, ValueError) as error:
            raise DataFileError(f"{self.place} cannot be read at rows {start}:{stop} ({error})") from error
        if len(indices) and (indices.min() < 0 or indices.max() >= self.shape[1]):
            raise DataFileError(
                f"{self.place} is corrupt: a column index outside 0..{self.shape[1] - 1} "
                f"in rows {start}:{stop}"
            )
        rows = (stop - start, self.shape[1])
        return sparse.csr_matrix(
            (data, indices.astype(np.int32), self.indptr[start : stop + 1] - first), shape=rows
        )


class StoredDense:
    """A dense matrix in an open h5ad or zarr group, made sparse a run of rows at a time."""

    def __init__(self, array: Any, place: str):
        self.place, self._array = place, array
        self.shape = tuple(array.shape)
        self.nbytes = 8 * self.shape[0] * self.shape[1]

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start:stop``."""
        try:
            return _as_csr(np.asarray(self._array[start:stop]))
        except (OSError, RuntimeError, ValueError) as error:
            raise DataFileError(f"{self.place} cannot be read at rows {start}:{stop} ({error})") from error


def open_matrix(element: Any, place: str) -> RowMatrix:
    """The matrix stored at an h5ad or zarr element.

    CSR and dense are read a run of rows at a time. CSC cannot be: it is read whole and turned once.
    """
    encoding = _encoding(element)
    if encoding in ("csr_matrix", "csc_matrix"):
        rows, columns = element.attrs.get("shape", element.attrs.get("h5sparse_shape"))
        shape = (int(rows), int(columns))
        if encoding == "csr_matrix":
            return StoredCsr(element, shape, place)
        parts = (element["data"][...], element["indices"][...], element["indptr"][...])
        return MemoryMatrix(sparse.csc_matrix(parts, shape=shape), place)
    if len(getattr(element, "shape", ())) == 2:
        return StoredDense(element, place)
    raise DataFileError(f"{place} is neither a sparse nor a dense matrix (encoding {encoding!r})")


def rows_of(matrix: RowMatrix, rows: np.ndarray) -> sparse.csr_matrix:
    """The given rows, in the order given. Runs of consecutive rows are read at one go."""
    if isinstance(matrix, MemoryMatrix):
        return matrix.csr[rows]
    order = np.argsort(rows, kind="stable")
    pieces = [matrix.read(start, stop) for start, stop in _runs(rows[order])]
    if not pieces:
        return sparse.csr_matrix((0, matrix.shape[1]), dtype=np.float32)
    stacked = pieces[0] if len(pieces) == 1 else sparse.vstack(pieces, format="csr")
    _, position = np.unique(rows, return_inverse=True)
    if len(rows) == stacked.shape[0] and np.array_equal(position, np.arange(len(rows))):
        return stacked
    return stacked[position]


def _runs(ordered: np.ndarray) -> Iterator[tuple[int, int]]:
    """Half-open runs of consecutive numbers in a sorted array; repeated numbers count once."""
    distinct = np.unique(ordered)
    if not len(distinct):
        return
    breaks = np.flatnonzero(np.diff(distinct) > 1) + 1
    for run in np.split(distinct, breaks):
        yield int(run[0]), int(run[-1]) + 1


def _as_csr(values: Any) -> sparse.csr_matrix:
    if not sparse.issparse(values):
        values = np.asarray(values)
        if values.ndim != 2:
            raise InputError(f"an expression matrix has two dimensions, not {values.ndim}")
    csr = sparse.csr_matrix(values)
    return csr.astype(np.float32) if csr.dtype != np.float32 else csr


def _encoding(element: Any) -> str:
    encoding = element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", ""))
    return {"csr": "csr_matrix", "csc": "csc_matrix"}.get(str(encoding), str(encoding))
