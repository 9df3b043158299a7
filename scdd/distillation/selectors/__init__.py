"""Rules that pick or average real cells, class by class: the baselines to beat."""

from __future__ import annotations

from scdd.distillation.selectors.base import ClassCells, Selection, Selector, SelectorSpec
from scdd.distillation.selectors.clustering import (
    class_centroid,
    cluster_centroids,
    k_medoids,
    weighted_centroids,
)
from scdd.distillation.selectors.covering import k_center
from scdd.distillation.selectors.herding import herding
from scdd.distillation.selectors.mixture import half_half, half_half_rows
from scdd.distillation.selectors.pooling import knn_smoothed, pool, pool_local
from scdd.distillation.selectors.sampling import random
from scdd.distillation.selectors.shrinkage import shrunk

__all__ = ["SELECTORS", "ClassCells", "Selection", "Selector", "SelectorSpec"]


def _one(k: int) -> int:
    return 1


SELECTORS: dict[str, SelectorSpec] = {
    "random": SelectorSpec(random, "Cells of the class drawn uniformly.", True),
    "herding": SelectorSpec(herding, "Cells whose mean follows the class mean.", True),
    "k_center": SelectorSpec(k_center, "Cells that leave no cell far away, farthest first.", True),
    "k_medoids": SelectorSpec(k_medoids, "The cell nearest each k-means centre.", True),
    "class_centroid": SelectorSpec(class_centroid, "The mean of the class, one row whatever k.", False, _one),
    "cluster_centroids": SelectorSpec(cluster_centroids, "The mean of each k-means cluster.", False),
    "weighted_centroids": SelectorSpec(
        weighted_centroids, "The mean of each k-means cluster, weighted by its cells.", False
    ),
    "half_half": SelectorSpec(
        half_half, "Half k-means centroids, half herded cells (two rows at k = 1).", False, half_half_rows
    ),
    "pool": SelectorSpec(pool, "Means of ever more random cells, from one cell to the whole class.", False),
    "pool_local": SelectorSpec(
        pool_local, "Means of ever wider neighbourhoods, from one cell to the whole class.", False
    ),
    "shrunk": SelectorSpec(shrunk, "Herded cells moved half-way to their k-means centroid.", False),
    "knn_smoothed": SelectorSpec(knn_smoothed, "Herded cells averaged with their 5 nearest.", False),
}
