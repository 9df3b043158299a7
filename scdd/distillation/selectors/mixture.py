"""Denoised rows beside real ones: the strongest short rule of the pilot study."""

from __future__ import annotations

import numpy as np

from scdd.distillation.selectors.base import ClassCells, Selection, averages, selector
from scdd.distillation.selectors.clustering import clusters
from scdd.distillation.selectors.herding import herding_order


def half_half_rows(k: int) -> int:
    """Rows that `half_half` writes at a budget of k: one of each kind at least."""
    return max(k, 2)


@selector
def half_half(cells: ClassCells, k: int, rng: np.random.Generator) -> Selection:
    """Write ⌈k/2⌉ k-means centroids, then ⌊k/2⌋ herded real cells; at k = 1 two rows, one of each.

    Averaging denoises, which helps linear models, distances and networks; trees split on patterns of
    zeros and need rows that look real. Rows weigh the same. In a class with fewer cells than rows no
    row is written twice: a cell that is a cluster of its own is not herded again.
    """
    n = len(cells.rows)
    groups = clusters(cells.embedding, (k + 1) // 2, rng)
    available = np.ones(n, dtype=bool)
    available[[members[0] for members in groups if len(members) == 1]] = False
    count = min(max(k // 2, 1), n - len(groups))
    herded = herding_order(cells.embedding, count, available)
    return averages(cells, [*groups, *herded[:, None]])
