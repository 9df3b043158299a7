"""Nearest neighbours in a denoised space, with weighted votes."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize


class CosineNeighbours(ClassifierMixin, BaseEstimator):
    """Cosine k nearest neighbours on principal components; each neighbour votes with its weight.

    Counts are mostly sampling noise, so distances over thousands of genes are too. The components
    of the training rows remove it, and the cosine ignores how dense a row is.

    Parameters
    ----------
    n_neighbours
        k; no more than there are training rows.
    n_components
        Principal components of the training rows; fewer for fewer rows.
    seed
        Seed of the randomized SVD.
    """

    def __init__(self, n_neighbours: int = 5, n_components: int = 30, seed: int = 0):
        self.n_neighbours = n_neighbours
        self.n_components = n_components
        self.seed = seed

    def fit(self, x: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> CosineNeighbours:
        """Learn the components and remember the rows: x [n, G], y [n], sample_weight [n]."""
        self.classes_, self.codes_ = np.unique(y, return_inverse=True)
        self.weight_ = (
            np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        )
        size = max(1, min(self.n_components, len(x) - 1, x.shape[1]))
        # The randomized solver needs far more rows and columns than components to be exact enough.
        solver = "randomized" if min(x.shape) > 10 * size else "full"
        self.pca_ = PCA(size, svd_solver=solver, random_state=self.seed).fit(x)
        self.index_ = NearestNeighbors(n_neighbors=min(self.n_neighbours, len(x)), algorithm="brute")
        self.index_.fit(self._embed(x))
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Class with the largest sum of weights among the k neighbours; ties go to the nearer class."""
        distance, neighbour = self.index_.kneighbors(self._embed(x))
        # A bonus far below any weight settles ties by distance instead of by the order of the classes.
        bonus = 1e-9 * self.weight_.mean() / (1.0 + distance)
        votes = np.zeros((len(x), len(self.classes_)))
        rows = np.repeat(np.arange(len(x)), neighbour.shape[1])
        np.add.at(votes, (rows, self.codes_[neighbour].ravel()), (self.weight_[neighbour] + bonus).ravel())
        return self.classes_[votes.argmax(axis=1)]

    def _embed(self, x: np.ndarray) -> np.ndarray:
        # On unit vectors the Euclidean order is the cosine order, and its search is the faster one.
        return normalize(self.pca_.transform(x))
