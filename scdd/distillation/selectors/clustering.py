"""Rows from k-means: the clusters' means, or the real cell nearest each."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from scdd.distillation.selectors.base import ClassCells, Selection, averages, real, selector

STARTS = 4  # k-means++ starts, of which the one with the least inertia is kept


def clusters(points: np.ndarray, k: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Partition cells by k-means: minimise Σ_c Σ_{x∈c} ‖x − μ_c‖² (Lloyd 1982, k-means++ starts).

    Parameters
    ----------
    points
        Floating [n, d].
    k
        Clusters.
    rng
        Seeds the starts.

    Returns
    -------
    list of np.ndarray
        min(k, n) disjoint, non-empty, ascending index arrays that together hold every cell.
    """
    n = len(points)
    if k >= n:
        return [np.array([i]) for i in range(n)]
    if k == 1:
        return [np.arange(n)]
    seed = int(rng.integers(2**31))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than k: mended below
        model = KMeans(k, n_init=STARTS, random_state=seed).fit(points.astype(np.float64))
    labels = _without_empty(model.labels_.astype(np.int64), k)
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=k))[:-1])


def _without_empty(labels: np.ndarray, k: int) -> np.ndarray:
    """Give each empty cluster one cell of the largest: only cells with equal coordinates leave any empty."""
    sizes = np.bincount(labels, minlength=k)
    for empty in np.flatnonzero(sizes == 0):
        largest = int(sizes.argmax())
        labels[np.flatnonzero(labels == largest)[-1]] = empty
        sizes[largest] -= 1
        sizes[empty] = 1
    return labels


def _sizes(groups: list[np.ndarray]) -> np.ndarray:
    return np.array([len(members) for members in groups], dtype=np.float64)


@selector
def k_medoids(cells: ClassCells, k: int, rng: np.random.Generator) -> Selection:
    """Pick, of each k-means cluster in the embedding, the cell nearest its centre: min(k, n) cells."""
    chosen = []
    for members in clusters(cells.embedding, k, rng):
        points = cells.embedding[members].astype(np.float64)
        distance = ((points - points.mean(axis=0)) ** 2).sum(axis=1)
        chosen.append(members[distance.argmin()])
    return real(cells, chosen)


@selector
def class_centroid(cells: ClassCells, k: int, rng: np.random.Generator) -> Selection:
    """Average the whole class in log1p space: one row, whatever k; draws nothing from `rng`."""
    return averages(cells, [np.arange(len(cells.rows))])


@selector
def cluster_centroids(cells: ClassCells, k: int, rng: np.random.Generator) -> Selection:
    """Average log1p expression over each k-means cluster in the embedding: min(k, n) equal rows."""
    return averages(cells, clusters(cells.embedding, k, rng))


@selector
def weighted_centroids(cells: ClassCells, k: int, rng: np.random.Generator) -> Selection:
    """Average as `cluster_centroids` does, each row weighing what its cluster does: w_c = |c|.

    The weighted mean of the rows is the class mean exactly.
    """
    groups = clusters(cells.embedding, k, rng)
    return averages(cells, groups, _sizes(groups))
