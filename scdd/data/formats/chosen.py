"""A matrix of which only some columns are genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse

    from scdd import _csr
    from scdd.data.expression import Faults
    from scdd.data.formats.matrix import RowMatrix
    from scdd.data.formats.stored import ChunkRows


class ChosenColumns:
    """Some columns of a matrix: ``columns`` int64, ascending, into those of ``base``."""

    def __init__(self, base: RowMatrix, columns: np.ndarray):
        self.base, self.columns = base, columns
        self.shape = (base.shape[0], len(columns))
        self.place, self.nbytes = base.place, base.nbytes

    @property
    def chunk_rows(self) -> ChunkRows | None:
        """As of the whole matrix."""
        return self.base.chunk_rows

    @property
    def decodes_whole_chunks(self) -> bool:
        """As of the whole matrix."""
        return self.base.decodes_whole_chunks

    @property
    def chunk_bytes(self) -> int:
        """As of the whole matrix."""
        return self.base.chunk_bytes

    @property
    def n_chunks(self) -> int:
        """As of the whole matrix."""
        return self.base.n_chunks

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start:stop``."""
        return self.base.read(start, stop)[:, self.columns]

    def rows(self, rows: np.ndarray, *, threads: int | None = None) -> tuple[sparse.csr_matrix, Faults]:
        """Rows by number, ascending and each once; and what is wrong with their values."""
        matrix, faults = self.base.rows(rows, threads=threads)
        return matrix[:, self.columns], faults

    def fill(
        self,
        window: _csr.Window,
        rows: np.ndarray,
        slots: np.ndarray,
        *,
        column_of_gene: np.ndarray | None = None,
        **how: Any,
    ) -> Faults:
        """Put rows (ascending, each once) into slots of a window."""
        every = np.full(self.base.shape[1], -1, dtype=np.int32)
        every[self.columns] = np.arange(len(self.columns)) if column_of_gene is None else column_of_gene
        return self.base.fill(window, rows, slots, column_of_gene=every, **how)
