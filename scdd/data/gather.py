"""Rows of a CSR matrix to a batch over chosen genes: the Python side of `scdd._csr`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

from scdd._csr import gather_csr, gather_dense, row_totals

_VALUE_TYPES = ("float32", "float64", "int32", "int64", "uint16", "uint8")
_INDEX_TYPES = ("int32", "int64", "uint16")


class Arrays(NamedTuple):
    """A CSR matrix as `scdd._csr` takes it: contiguous, of a dtype it knows, ``indptr`` int64."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray

    @classmethod
    def of(cls, matrix: sparse.csr_matrix) -> Arrays:
        """Take the arrays of a matrix; copy only those that must be cast."""
        data = matrix.data if matrix.data.dtype.name in _VALUE_TYPES else matrix.data.astype(np.float32)
        indices = (
            matrix.indices if matrix.indices.dtype.name in _INDEX_TYPES else matrix.indices.astype(np.int64)
        )
        return cls(np.ascontiguousarray(data), np.ascontiguousarray(indices), matrix.indptr.astype(np.int64))


@dataclass(frozen=True)
class GeneTransform:
    """Which genes go where, and what becomes of their values.

    Attributes
    ----------
    column_of_gene : int32 [n_vars], column of each gene of the atlas, -1 for those not wanted
    n_columns : G
    target_sum : what each cell is scaled to; 0 for no scaling
    log1p : whether ``log(1 + x)`` is taken
    mean, inverse_std : float32 [G], or None for no standardisation
    """

    column_of_gene: np.ndarray
    n_columns: int
    target_sum: float
    log1p: bool
    mean: np.ndarray | None = None
    inverse_std: np.ndarray | None = None

    def dense(self, arrays: Arrays, rows: np.ndarray, *, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Float32 [len(rows), G], and each row's total over all genes, float64."""
        out = np.empty((len(rows), self.n_columns), dtype=np.float32)
        totals = gather_dense(
            *arrays,
            rows,
            self.column_of_gene,
            out,
            target_sum=self.target_sum,
            log1p=self.log1p,
            mean=self.mean,
            inverse_std=self.inverse_std,
            threads=threads,
        )
        return out, totals

    def stored(self, arrays: Arrays, rows: np.ndarray, *, threads: int = 1) -> np.ndarray:
        """Return the stored values themselves, float32 [len(rows), G]."""
        return GeneTransform(self.column_of_gene, self.n_columns, 0.0, log1p=False).dense(
            arrays, rows, threads=threads
        )[0]

    def csr(
        self, arrays: Arrays, rows: np.ndarray, *, threads: int = 1
    ) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Do what ``dense`` does, without standardisation: a sorted CSR matrix without duplicates."""
        data, indices, indptr = gather_csr(*arrays, rows, self.column_of_gene, threads=threads)
        if indptr[-1] <= np.iinfo(np.int32).max:
            indptr = indptr.astype(np.int32)  # or scipy would widen the indices
        x = sparse.csr_matrix((data, indices, indptr), shape=(len(rows), self.n_columns))
        x.sum_duplicates()  # before log1p, which is not linear
        totals = row_totals(arrays.data, arrays.indptr, rows)
        if self.target_sum:
            scale = np.divide(self.target_sum, totals, out=np.zeros_like(totals), where=totals != 0)
            x.data *= np.repeat(scale.astype(np.float32), np.diff(x.indptr))
        if self.log1p:
            np.log1p(x.data, out=x.data)
        return x, totals
