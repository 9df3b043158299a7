"""Expression matrices row by row: in memory, or lying in an h5ad or zarr group."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from scipy import sparse

from scdd import _csr
from scdd.data.expression import Faults, faults_of
from scdd.data.formats.readers import runs
from scdd.data.formats.stored import ChunkRows, StoredCsr
from scdd.errors import DataFileError, InputError

# Rows that a library reads at a time: it cannot be interrupted in between.
_ROWS = 4_096
# Bytes as float32 CSR up to which a matrix by columns is turned in memory.
_LARGEST_CSC = 1 << 29


class RowMatrix(Protocol):
    """What an atlas needs of a matrix.

    Attributes
    ----------
    shape : cells, genes
    place : file and matrix, for messages
    nbytes : size as float32 CSR
    chunk_rows : rows at which a unit of reading begins; None where any run of rows is one
    decodes_whole_chunks : whether the last row of a run costs the whole unit that it ends in
    chunk_bytes, n_chunks : decoded size of the largest unit; number of units that a table is held of
    """

    shape: tuple[int, int]
    place: str
    nbytes: int

    @property
    def chunk_rows(self) -> ChunkRows | None:
        """See above."""

    @property
    def decodes_whole_chunks(self) -> bool:
        """See above."""

    @property
    def chunk_bytes(self) -> int:
        """See above."""

    @property
    def n_chunks(self) -> int:
        """See above."""

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start:stop``."""

    def rows(self, rows: np.ndarray, *, threads: int | None = None) -> tuple[sparse.csr_matrix, Faults]:
        """Rows by number, ascending and each once; and what is wrong with their values."""

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


class BlockMatrix:
    """A matrix that gives runs of rows as CSR; the rest follows from that."""

    shape: tuple[int, int]
    place: str
    chunk_rows: ChunkRows | None = None
    decodes_whole_chunks = False
    chunk_bytes = n_chunks = 0

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start:stop``."""
        raise NotImplementedError

    def rows(self, rows: np.ndarray, *, threads: int | None = None) -> tuple[sparse.csr_matrix, Faults]:
        """Rows by number, ascending and each once; and what is wrong with their values."""
        pieces = [self.read(int(rows[first]), int(rows[last]) + 1) for first, last in runs(rows)]
        empty = sparse.csr_matrix((0, self.shape[1]), dtype=np.float32)
        matrix = pieces[0] if len(pieces) == 1 else sparse.vstack([empty, *pieces], format="csr")
        return matrix, faults_of(matrix, rows)

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
        found = Faults()
        for start in range(0, len(rows), _ROWS):
            if cancel is not None and cancel.requested:
                raise _csr.Cancelled
            part = slice(start, start + _ROWS)
            matrix, faults = self.rows(rows[part])
            numbers = np.arange(matrix.shape[0], dtype=np.int64)
            arrays = (matrix.data, matrix.indices, matrix.indptr.astype(np.int64), numbers, slots[part])
            window.put_rows(*arrays, column_of_gene, n_vars=self.shape[1])
            found = found.merge(faults)
        return found


class MemoryMatrix(BlockMatrix):
    """A matrix that is in memory already; dense and CSC are converted to CSR once."""

    def __init__(self, values: Any, place: str):
        self.place = place
        self.csr = _as_csr(values)
        self.shape = self.csr.shape
        self.nbytes = 8 * self.csr.nnz

    @property
    def indptr(self) -> np.ndarray:
        """Where each row begins."""
        return self.csr.indptr

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start:stop``."""
        return self.csr[start:stop]

    def rows(self, rows: np.ndarray, *, threads: int | None = None) -> tuple[sparse.csr_matrix, Faults]:
        """Rows by number, in any order; and what is wrong with their values."""
        matrix = self.csr[rows]
        return matrix, faults_of(matrix, rows)


class StoredDense(BlockMatrix):
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

    CSR and dense are read a run of rows at a time. CSC cannot be: it is turned once, in memory or on disk.
    """
    encoding = _encoding(element)
    if encoding in ("csr_matrix", "csc_matrix"):
        shape = _shape_of(element, place)
        if encoding == "csr_matrix":
            return StoredCsr(element, shape, place)
        if 8 * element["data"].shape[0] > _LARGEST_CSC:
            from scdd.data.formats.transcoded import TranscodedRows

            return TranscodedRows(element, shape, place)
        return MemoryMatrix(_csc(element, shape, place), place)
    if len(getattr(element, "shape", ())) == 2:
        return StoredDense(element, place)
    raise DataFileError(f"{place} is neither a sparse nor a dense matrix (encoding {encoding!r})")


def _csc(element: Any, shape: tuple[int, int], place: str) -> sparse.csc_matrix:
    """A small matrix by columns, whole; scipy checks its pointers, and its row numbers are checked here."""
    try:
        parts = (element["data"][...], element["indices"][...], element["indptr"][...])
        matrix = sparse.csc_matrix(parts, shape=shape)
        matrix.check_format(full_check=True)
    except (KeyError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise DataFileError(
            f"{place} is corrupt or cannot be read ({error}); write the file again"
        ) from error
    return matrix


def _shape_of(element: Any, place: str) -> tuple[int, int]:
    shape = element.attrs.get("shape", element.attrs.get("h5sparse_shape"))
    if shape is None or len(shape) != 2 or not all(0 <= int(size) < 2**31 for size in shape):
        raise DataFileError(f"{place} is corrupt: its shape is given as {shape}; write the file again")
    return int(shape[0]), int(shape[1])


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
