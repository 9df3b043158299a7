"""A CSR matrix in an open AnnData file, filled block by block, each block checked before it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scdd import _csr
from scdd.data.writing.arrays import GrowingArray, Layout
from scdd.errors import InputError

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


class GrowingCsr:
    """The group ``X`` of an open file, filled block by block."""

    def __init__(
        self, root: Any, n_vars: int, dtype: Any, layout: Layout, pool: ThreadPoolExecutor, depth: int
    ):
        self.n_rows, self.nnz, self.n_vars = 0, 0, n_vars
        self._group = root.create_group("X")
        self._layout, self._pool, self._depth = layout, pool, depth
        self._data = None if dtype is None else self._array("data", _numeric(np.dtype(dtype)))
        self._indices = self._array("indices", np.int32)
        self._indptr = self._array("indptr", np.int64)
        self._indptr.append(np.zeros(1, np.int64))

    def append(self, block: sparse.csr_matrix, number: int) -> None:
        """Add the rows of a block."""
        data, indices, indptr = _checked(block, self.n_vars, number)
        if self._data is None:
            self._data = self._array("data", _numeric(data.dtype))
        self._data.append(_cast(data, self._data.dtype, number))
        self._indices.append(indices)
        self._indptr.append(indptr[1:] + self.nnz)
        self.n_rows += block.shape[0]
        self.nnz += len(data)

    def finish(self) -> None:
        """Write what is left and name the group's type the way AnnData does."""
        if self._data is None:
            self._data = self._array("data", np.float32)
        for array in (self._data, self._indices, self._indptr):
            array.finish()
        shape = (self.n_rows, self.n_vars)
        # zarr keeps attributes as JSON, which has no arrays of NumPy.
        stored = list(shape) if self._layout.suffix == ".zarr" else np.array(shape, dtype=np.int64)
        self._group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": stored}
        )

    def _array(self, name: str, dtype: Any) -> GrowingArray:
        return GrowingArray(self._group, name, dtype, self._layout, pool=self._pool, depth=self._depth)


def _checked(block: Any, n_vars: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return data, indices int32 and indptr int64 of a sound block."""
    if not sparse.issparse(block) or block.format != "csr":
        kind = f"a {block.format} matrix" if sparse.issparse(block) else type(block).__name__
        raise InputError(f"block {number} is {kind}: pass scipy.sparse.csr_matrix(block)")
    if block.shape[1] != n_vars:
        raise InputError(f"block {number} has {block.shape[1]} columns, var {n_vars} genes; make them agree")
    indptr = np.ascontiguousarray(block.indptr, dtype=np.int64)
    nnz = int(indptr[-1])  # scipy allows room behind the last value
    indices = np.ascontiguousarray(block.indices[:nnz])
    if indices.dtype not in (np.int32, np.int64):
        indices = indices.astype(np.int64)
    try:
        _csr.validate(indptr, indices, block.shape[0], n_vars, min(len(block.data), len(indices), nnz))
    except (IndexError, ValueError, TypeError) as error:
        raise InputError(f"block {number} is no sound CSR matrix: {error}; rebuild it") from error
    return block.data[:nnz], indices.astype(np.int32, copy=False), indptr


def _numeric(dtype: np.dtype) -> np.dtype:
    if dtype.kind not in "fiub" or dtype.itemsize > 8 or dtype == np.float16:
        raise InputError(
            f"dtype is {dtype}: a matrix is stored as SciPy's numbers of up to 64 bits, e.g. float32"
        )
    return dtype.newbyteorder("=")


def _cast(data: np.ndarray, dtype: np.dtype, number: int) -> np.ndarray:
    """Cast values; rounding fractions is what a float is for, anything else would change the data."""
    if data.dtype == dtype:
        return data
    with np.errstate(over="ignore", invalid="ignore"):
        cast = data.astype(dtype)
    if data.dtype.kind == "f" and dtype.kind == "f":
        sound = np.isfinite(cast) | ~np.isfinite(data)
    else:
        sound = cast == data
        sound &= (cast < 0) == (data < 0)  # uint64 against int64 compares as float64
    if not sound.all():
        value = data[int(np.argmin(sound))]
        raise InputError(f"block {number} holds {value!r}, which {dtype} cannot hold; pass a wider dtype=")
    return cast
