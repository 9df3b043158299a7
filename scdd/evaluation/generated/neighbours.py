"""Exact nearest neighbours: faiss where it is installed, else scikit-learn's brute force."""

from __future__ import annotations

import importlib.util

import numpy as np
from sklearn.neighbors import NearestNeighbors


def nearest(
    query: np.ndarray, cells: np.ndarray, k: int, *, without_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distances and positions of the ``k`` nearest of ``cells``, [n, k], nearest first.

    ``without_self``: ``query`` are the very rows of ``cells``, and no row is its own neighbour.
    """
    wanted = min(k + without_self, len(cells))
    distance, index = _search(query, cells, wanted)
    if not without_self:
        return distance, index
    own = index == np.arange(len(query))[:, None]
    # A copy may stand before the row itself, or push it out: then the last one goes.
    own[~own.any(axis=1), -1] = True
    shape = (len(query), wanted - 1)
    return distance[~own].reshape(shape), index[~own].reshape(shape)


def _search(query: np.ndarray, cells: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if importlib.util.find_spec("faiss") is None:
        return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(cells).kneighbors(query)
    import faiss

    index = faiss.IndexFlatL2(cells.shape[1])
    index.add(np.ascontiguousarray(cells, dtype=np.float32))
    squared, found = index.search(np.ascontiguousarray(query, dtype=np.float32), k)
    return np.sqrt(np.maximum(squared, 0)), found
