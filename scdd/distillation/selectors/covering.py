"""Cells that leave no cell of the class far away."""

from __future__ import annotations

import numpy as np

from scdd.distillation.selectors.base import ClassCells, Selection, real, selector
from scdd.distillation.selectors.herding import herding_order


def farthest_first(points: np.ndarray, k: int, first: int) -> np.ndarray:
    """Traverse farthest first: x_t = argmax_x min_{s<t} ‖x − x_s‖; a 2-approximation of k-center.

    Parameters
    ----------
    points
        Floating [n, d].
    k
        Cells to pick; at most n are.
    first
        Index of the first cell.

    Returns
    -------
    np.ndarray
        int64 [min(k, n)], distinct indices in the order picked; of equals, the lowest index.

    References
    ----------
    Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985; Sener & Savarese,
    "Active learning for convolutional neural networks: a core-set approach", ICLR 2018.
    """
    exact = points.astype(np.float64)
    order = np.full(min(k, len(points)), first, dtype=np.int64)
    distance = np.full(len(points), np.inf)
    for t in range(1, len(order)):
        step = exact - exact[order[t - 1]]
        np.minimum(distance, np.einsum("nd,nd->n", step, step), out=distance)
        # Below zero, which is the distance of a cell's exact duplicate: no cell is picked twice.
        distance[order[t - 1]] = -1.0
        order[t] = np.argmax(distance)
    return order


@selector
def k_center(cells: ClassCells, k: int, rng: np.random.Generator) -> Selection:
    """Pick min(k, n) cells farthest first in the embedding, from the cell nearest the class mean.

    It covers, so it picks outliers. The rule draws nothing from `rng`.
    """
    medoid = int(herding_order(cells.embedding, 1)[0])
    return real(cells, farthest_first(cells.embedding, k, medoid))
