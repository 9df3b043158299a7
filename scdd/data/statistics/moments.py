"""Streaming column statistics: mean, variance and zero fraction of every gene, one pass, bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scdd import _csr
from scdd.data.threads import thread_count

if TYPE_CHECKING:
    from collections.abc import Callable

    from scipy import sparse

    from scdd.data.atlas import Atlas


class Moments(NamedTuple):
    """Per gene over ``n`` cells: ``mean``, unbiased ``variance`` and ``nonzero`` count, float64 [G]."""

    n: int
    mean: np.ndarray
    variance: np.ndarray
    nonzero: np.ndarray

    @property
    def zero_fraction(self) -> np.ndarray:
        """Share of cells in which the gene is zero, float64 [G]."""
        return 1.0 - self.nonzero / self.n


def column_moments(
    atlas: Atlas,
    *,
    target_sum: float = 0.0,
    log1p: bool = False,
    clip: np.ndarray | None = None,
    map_values: Callable[[np.ndarray], np.ndarray] | None = None,
    threads: int | None = None,
) -> Moments:
    """Mean and variance of ``f(x)`` per gene, accumulated in float64.

    ``f`` scales each cell to ``target_sum`` (0: as it is), then takes ``log1p``, then the smaller of
    the value and ``clip`` [G]; ``map_values`` is applied to the stored values before all that.
    ``threads`` (by default one a core) change no bit of the result.
    """
    threads = thread_count(threads)
    total, square, nonzero = (np.zeros(atlas.n_vars, dtype=np.float64) for _ in range(3))
    for _, block in atlas.blocks():
        data = block.data if map_values is None else map_values(block.data)
        scale = row_scale(block, target_sum) if target_sum else None
        arrays = (data, block.indices, block.indptr.astype(np.int64), atlas.n_vars)
        _csr.column_moments(*arrays, scale, log1p, clip, total, square, nonzero, threads)
    n = atlas.n_obs
    mean = total / n
    variance = np.maximum(square - n * mean**2, 0.0) / max(n - 1, 1)
    return Moments(n, mean, variance, nonzero)


def row_scale(block: sparse.csr_matrix, target_sum: float) -> np.ndarray:
    """``target_sum / total`` of every row; rows without counts get 0, not infinity."""
    totals = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
    return np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
