"""A loader in pure Python: threads read and inflate chunks, numpy gathers. No compiled code of scdd is used."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from chunks import Chunks, Files, Matrix, matrix_of, python_decoder
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Array:
    """Ranges of a chunked array."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks, self._files, self._decode = chunks, Files(chunks), python_decoder(chunks)

    def read(self, begin: int, end: int) -> list[np.ndarray]:
        """Elements begin to end, in the pieces in which they lie."""
        length = self._chunks.length
        pieces = []
        for k in range(begin // length, -(-end // length)):
            chunk = self._decode(self._files.read(k))
            pieces.append(chunk[max(begin - k * length, 0) : end - k * length])
        return pieces


def open_threads(
    path: Path, *, block: int, window: int, batch: int
) -> tuple[Matrix, Callable[[], Iterator[sparse.csr_matrix]]]:
    """Batches of an epoch: blocks in random order, a window of them at a time, shuffled within the window."""
    matrix = matrix_of(path)
    data, indices = Array(matrix.data), Array(matrix.indices)
    n_rows = len(matrix.indptr) - 1
    pool = ThreadPoolExecutor(os.cpu_count())

    def read_block(begin: int) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        end = min(begin + block, n_rows)
        first, last = matrix.indptr[begin], matrix.indptr[end]
        sizes = np.diff(matrix.indptr[begin : end + 1])
        return data.read(first, last), indices.read(first, last), sizes

    def read_window(begins: np.ndarray) -> sparse.csr_matrix:
        blocks = list(pool.map(read_block, begins))
        values = np.concatenate([piece for pieces, _, _ in blocks for piece in pieces])
        columns = np.concatenate([piece for _, pieces, _ in blocks for piece in pieces])
        indptr = np.concatenate([[0], *(sizes for _, _, sizes in blocks)]).cumsum()
        # the copy of the constructor, and its checks, are avoided as a careful writer would
        found = sparse.csr_matrix((len(indptr) - 1, matrix.n_vars), dtype=values.dtype)
        found.data, found.indices, found.indptr = values, columns, indptr.astype(np.int32)
        return found

    def batches() -> Iterator[sparse.csr_matrix]:
        rng = np.random.default_rng(0)
        begins = rng.permutation(np.arange(0, n_rows, block))
        for k in range(0, len(begins), window // block):
            held = read_window(begins[k : k + window // block])
            order = rng.permutation(held.shape[0])
            for j in range(0, len(order), batch):
                yield held[order[j : j + batch]]

    return matrix, batches
