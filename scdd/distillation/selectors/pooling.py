"""Rows averaged over neighbourhoods: of every size, from one cell to the whole class, or of one size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils.extmath import randomized_svd

from scdd.distillation.selectors.base import ClassCells, Selection, averages, selector
from scdd.distillation.selectors.herding import herding_order

if TYPE_CHECKING:
    from collections.abc import Iterable

DIMENSIONS = 20  # of the in-class SVD in which `pool_local` takes its neighbours
NEIGHBOURS = 5  # averaged with each seed by `knn_smoothed`


def pool_sizes(n: int, k: int) -> np.ndarray:
    """Cells in each of min(k, n) pools: m_q = round(n^(q/(k−1))), from 1 to n; n alone at k = 1.

    At k = 1 the whole class is pooled: of the two ends, its centroid trains most models far better than
    any one cell.
    """
    count = min(k, n)
    if count == 1:
        return np.array([n])
    return np.floor(np.geomspace(1, n, count) + 0.5).astype(np.int64)


def _nearest(points: np.ndarray, seed: int) -> np.ndarray:
    """Order all cells by distance to `seed`, itself first; of equals, the lowest index."""
    distance = ((points - points[seed]) ** 2).sum(axis=1)
    distance[seed] = -1.0  # before its exact duplicates
    return np.argsort(distance, kind="stable")


def _shuffled(n: int, seed: int, rng: np.random.Generator) -> np.ndarray:
    """Order all cells at random, `seed` first."""
    order = rng.permutation(n)
    return np.concatenate([[seed], order[order != seed]])


def _pools(orders: Iterable[np.ndarray], sizes: np.ndarray) -> list[np.ndarray]:
    """Take the first `sizes[q]` cells of each order, fewer where an earlier pool holds the same cells.

    Each order starts with a seed of its own, so a pool of one cell is always new.
    """
    pools: list[np.ndarray] = []
    seen: set[bytes] = set()
    for order, size in zip(orders, sizes, strict=True):
        pool = np.sort(order[:size])
        while pool.tobytes() in seen:
            size -= 1  # noqa: PLW2901
            pool = np.sort(order[:size])
        seen.add(pool.tobytes())
        pools.append(pool)
    return pools


def _spectrum(cells: ClassCells, orders: Iterable[np.ndarray], k: int) -> Selection:
    # Widest first, so that of two equal pools it is never the whole class that gives way.
    pools = _pools(orders, pool_sizes(len(cells.rows), k)[::-1])
    return averages(cells, pools[::-1])


@selector
def pool(cells: ClassCells, k: int, rng: np.random.Generator) -> Selection:
    """Average m_q random cells in log1p space, m_q spaced geometrically from 1 to n: min(k, n) rows.

    The first row is a real cell, the last the class mean (the only row at k = 1). Trees get near-real
    rows, linear models and distances near-centroids. Rows weigh the same.
    """
    n = len(cells.rows)
    seeds = rng.permutation(n)[: min(k, n)]
    return _spectrum(cells, (_shuffled(n, seed, rng) for seed in seeds), k)


@selector
def pool_local(cells: ClassCells, k: int, rng: np.random.Generator) -> Selection:
    """Average the m_q nearest cells of herded seeds, m_q from 1 to n as in `pool`: min(k, n) rows.

    Seeds are herded in the embedding, the first taking the smallest pool; neighbours are nearest in
    20 dimensions of the class's own uncentred SVD, which the embedding of all classes may not resolve.
    """
    scores = _in_class_svd(cells.expression, rng)
    seeds = herding_order(cells.embedding, k)[::-1]
    return _spectrum(cells, (_nearest(scores, seed) for seed in seeds), k)


def _in_class_svd(expression: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scores U S of a truncated SVD, float64 [n, min(20, n, G)] (Halko, Martinsson & Tropp 2011)."""
    rank = min(DIMENSIONS, *expression.shape)
    left, singular, _ = randomized_svd(expression, rank, random_state=int(rng.integers(2**31)))
    return (left * singular).astype(np.float64)


@selector
def knn_smoothed(cells: ClassCells, k: int, rng: np.random.Generator) -> Selection:
    """Average each of min(k, n) herded cells with its 5 nearest cells of the class in the embedding.

    After the smoothing of Wagner, Yan & Yanai (bioRxiv 217737, 2018), in log1p space. Where two seeds
    have the same neighbours, as in a class of six cells, the later one averages fewer.
    """
    points = cells.embedding.astype(np.float64)
    seeds = herding_order(points, k)
    sizes = np.full(len(seeds), min(NEIGHBOURS + 1, len(points)))
    return averages(cells, _pools((_nearest(points, seed) for seed in seeds), sizes))
