"""Real cells moved part of the way to the centroid of their cluster."""

from __future__ import annotations

import numpy as np

from scdd.distillation.selectors.base import ClassCells, Selection, averages, equal_weight, selector
from scdd.distillation.selectors.clustering import clusters
from scdd.distillation.selectors.herding import herding_order

FRACTION = 0.5  # of the way from a cell to its centroid


@selector
def shrunk(cells: ClassCells, k: int, rng: np.random.Generator) -> Selection:
    """Move min(k, n) herded cells half-way to their k-means centroid: x ← x + ½ (μ_c(x) − x), in log1p.

    Every row is then as dense as its centroid; forests, which split on zeros, suffer for it.
    """
    groups = clusters(cells.embedding, k, rng)
    cluster_of = np.empty(len(cells.rows), dtype=np.int64)
    for c, members in enumerate(groups):
        cluster_of[members] = c
    herded = herding_order(cells.embedding, k)
    centroids = averages(cells, groups)
    own = cells.expression[herded]
    moved = own + np.float32(FRACTION) * (centroids.expression[cluster_of[herded]] - own)
    # A cell alone in its cluster has nowhere to go and stays real.
    rows = centroids.rows[cluster_of[herded]]
    return Selection(moved, equal_weight(cells, len(herded)), rows)
