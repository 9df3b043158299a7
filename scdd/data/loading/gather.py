"""Rows to a batch over chosen genes: the Python side of `scdd._csr`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import sparse

from scdd import _csr
from scdd.data.loading.buffers import BufferPool
from scdd.errors import InputError

_VALUE_TYPES = ("float32", "float64", "int32", "int64", "uint16", "uint8")
_INDEX_TYPES = ("int32", "int64", "uint16")

# Stored type of each output type; NumPy has no bfloat16, so its bits travel as uint16.
OUTPUT_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


class Rows(Protocol):
    """What batches are gathered from: arrays in memory, a shuffle window or a packed cache."""

    def gather_dense(
        self, rows: np.ndarray, column_of_gene: np.ndarray, out: np.ndarray, **how: Any
    ) -> np.ndarray:
        """Fill ``out`` and return the totals of the rows."""

    def gather_csr(self, rows: np.ndarray, column_of_gene: np.ndarray | None, **how: Any) -> tuple:
        """data, indices, indptr and totals of the rows."""

    def gather_tokens(
        self, rows: np.ndarray, token_of_gene: np.ndarray, gene_scale: Any, **how: Any
    ) -> tuple:
        """genes, values, coordinates, cu_seqlens and totals of the rows."""


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
        pointers = matrix.indptr.astype(np.int64)
        return cls(np.ascontiguousarray(data), np.ascontiguousarray(indices), pointers)


class MatrixRows(NamedTuple):
    """A CSR matrix in memory as something that batches are gathered from."""

    arrays: Arrays
    n_vars: int

    @classmethod
    def of(cls, matrix: sparse.csr_matrix) -> MatrixRows:
        """Take the arrays of a matrix; copy only those that must be cast."""
        return cls(Arrays.of(matrix), matrix.shape[1])

    def gather_dense(
        self, rows: np.ndarray, column_of_gene: np.ndarray, out: np.ndarray, **how: Any
    ) -> np.ndarray:
        """Fill ``out`` and return the totals of the rows."""
        return _csr.gather_dense(*self.arrays, rows, column_of_gene, out, **how)

    def gather_csr(self, rows: np.ndarray, column_of_gene: np.ndarray | None, **how: Any) -> tuple:
        """data, indices, indptr and totals of the rows."""
        return _csr.gather_csr(*self.arrays, rows, column_of_gene, n_vars=self.n_vars, **how)

    def gather_tokens(
        self, rows: np.ndarray, token_of_gene: np.ndarray, gene_scale: Any, **how: Any
    ) -> tuple:
        """genes, values, coordinates, cu_seqlens and totals of the rows."""
        return _csr.gather_tokens(*self.arrays, rows, token_of_gene, gene_scale, **how)


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

    def dense(
        self,
        source: Rows,
        rows: np.ndarray,
        *,
        threads: int = 1,
        dtype: str = "float32",
        pool: BufferPool | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """[len(rows), G] of ``dtype`` (bfloat16 as its bits, uint16), and each row's total, float64."""
        out = (pool or BufferPool()).take((len(rows), self.n_columns), OUTPUT_TYPES[dtype])
        totals = source.gather_dense(
            rows,
            self.column_of_gene,
            out,
            target_sum=self.target_sum,
            log1p=self.log1p,
            mean=self.mean,
            inverse_std=self.inverse_std,
            bfloat16=dtype == "bfloat16",
            threads=threads,
        )
        return out, totals

    def stored(self, source: Rows, rows: np.ndarray, *, threads: int = 1) -> np.ndarray:
        """Return the stored values themselves, float32 [len(rows), G]."""
        plain = GeneTransform(self.column_of_gene, self.n_columns, 0.0, log1p=False)
        return plain.dense(source, rows, threads=threads)[0]

    def csr(
        self,
        source: Rows,
        rows: np.ndarray,
        *,
        threads: int = 1,
        pool: BufferPool | None = None,
        room: int = 0,
    ) -> CsrRows:
        """Do what ``dense`` does, without standardisation: sorted CSR arrays without duplicates.

        ``room`` entries are taken from the pool beforehand; if they are too few, memory is taken afresh.
        """
        buffers = {}
        if pool is not None and room:
            buffers = {
                "data_buffer": pool.take((room,), np.float32),
                "indices_buffer": pool.take((room,), np.int32),
            }
        columns = None if self.keeps_all else self.column_of_gene
        how = {"target_sum": self.target_sum, "log1p": self.log1p, "threads": threads}
        data, indices, indptr, totals = source.gather_csr(rows, columns, **how, **buffers)
        return CsrRows(data, indices, indptr, totals, self.n_columns)

    @cached_property
    def keeps_all(self) -> bool:
        """Whether every gene stays where it is."""
        n = self.n_columns
        return len(self.column_of_gene) == n and bool((self.column_of_gene == np.arange(n)).all())


class CsrRows(NamedTuple):
    """CSR arrays of some rows, and the rows' totals."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    totals: np.ndarray
    n_columns: int

    def matrix(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start:stop``; shares the arrays."""
        begin, end = int(self.indptr[start]), int(self.indptr[stop])
        if end - begin > np.iinfo(np.int32).max:
            raise InputError(f"a batch of {stop - start} cells has over 2^31 entries; lower batch_size=")
        indptr = (self.indptr[start : stop + 1] - begin).astype(np.int32)
        # Put together by hand: scipy's constructor copies what is part of a larger array.
        matrix = sparse.csr_matrix((stop - start, self.n_columns), dtype=np.float32)
        matrix.data, matrix.indices, matrix.indptr = self.data[begin:end], self.indices[begin:end], indptr
        matrix.has_sorted_indices = matrix.has_canonical_format = True
        return matrix
