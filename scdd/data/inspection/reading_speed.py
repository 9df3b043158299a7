"""How fast blocks of rows are read here and now: timed for a moment, never looked up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scdd.data.formats.stored import default_threads
from scdd.data.packed.store import PackedStore

if TYPE_CHECKING:
    from scipy import sparse

    from scdd.data.formats.matrix import RowMatrix

_SECONDS = 0.3
# Of a block that is one chunk, however long: a cell more costs nothing that is worth measuring.
_LONGEST_RUN = 4_096


class Speed(NamedTuple):
    """A measurement.

    Attributes
    ----------
    cells, blocks : how many were read
    seconds : of wall time
    busy : share of it in which the threads worked
    threads : that read
    """

    cells: int
    blocks: int
    seconds: float
    busy: float
    threads: int

    @property
    def unhindered(self) -> float:
        """Cells a second if the threads never waited."""
        return _rounded(self.cells / max(self.seconds * self.busy, 1e-9))

    def __str__(self) -> str:
        rate = _rounded(self.cells / max(self.seconds, 1e-9))
        threads = "one thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"about {rate:,.0f} cells/s are read and decoded on {threads} "
            f"(measured on {self.cells:,} cells just now, {self.blocks:,} random blocks)"
        )


def reading_speed(matrix: RowMatrix, edges: np.ndarray | None) -> tuple[Speed, sparse.csr_matrix]:
    """Read random blocks for some 0.3 s; the speed, and the rows that were read last.

    Parameters
    ----------
    edges : int64 [n_blocks + 1], where blocks begin; None: every row is one
    """
    edges = np.arange(matrix.shape[0] + 1, dtype=np.int64) if edges is None else edges
    order = np.random.default_rng(0).permutation(len(edges) - 1)
    threads = default_threads()
    done, cells, wall, worked, size = 0, 0, 0.0, 0.0, threads
    while done < len(order) and wall < _SECONDS:
        rows = _rows_of(edges, np.sort(order[done : done + size]))
        before, own = time.perf_counter(), time.process_time()
        sample, _ = matrix.rows(rows, threads=threads)
        wall += time.perf_counter() - before
        worked += time.process_time() - own
        done, cells = min(done + size, len(order)), cells + len(rows)
        # As many as fit into the rest of the time, at this speed; twice as many at most, should it deceive.
        size = int(min(max(threads, done * (_SECONDS / wall - 1)), 2 * size))
    threads = threads if is_parallel(matrix) else 1
    return Speed(cells, done, wall, worked / (threads * max(wall, 1e-9)), threads), sample


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def _rows_of(edges: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    stops = np.minimum(edges[blocks + 1], edges[blocks] + _LONGEST_RUN)
    return np.concatenate([np.arange(a, b) for a, b in zip(edges[blocks], stops, strict=True)])


def is_parallel(matrix: RowMatrix) -> bool:
    """Whether several threads read it."""
    base = getattr(matrix, "base", matrix)
    return isinstance(base, PackedStore) or getattr(base, "layouts", None) is not None
