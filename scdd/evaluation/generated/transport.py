"""Optimal transport between samples: exact and sliced Wasserstein distances."""

from __future__ import annotations

import importlib.util

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

MOST_EXACT = 5_000


def exact_wasserstein(x: np.ndarray, y: np.ndarray, *, power: int = 2) -> float:
    """``W_p = (min_π Σ π_ij |x_i - y_j|^p)^(1/p)`` of uniform samples; NaN above 5,000 cells.

    POT's network simplex (Flamary et al., JMLR 22, 2021) where it is installed; else the assignment of
    scipy, for which the larger sample is cut to the size of the smaller.
    """
    if max(len(x), len(y)) > MOST_EXACT or not min(len(x), len(y)):
        return np.nan
    pot = importlib.util.find_spec("ot") is not None
    if not pot:
        n = min(len(x), len(y))
        x, y = x[:n], y[:n]
    cost = cdist(x, y, "sqeuclidean" if power == 2 else "euclidean")
    if pot:
        import ot

        return float(ot.emd2([], [], cost, numItermax=1_000_000)) ** (1 / power)
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean()) ** (1 / power)


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, *, projections: int = 200, seed: int = 0) -> float:
    """``(mean_θ W_2²(θ'x, θ'y))^(1/2)`` over random directions θ of length one.

    Bonneel et al. (JMIV 51, 2015). Samples of different sizes are compared at common quantiles.
    """
    rng = np.random.default_rng(seed)
    axes = rng.standard_normal((x.shape[1], projections)).astype(np.float32)
    axes /= np.linalg.norm(axes, axis=0)
    a, b = np.sort(x @ axes, axis=0), np.sort(y @ axes, axis=0)
    if len(a) != len(b):
        at = (np.arange(min(len(a), len(b))) + 0.5) / min(len(a), len(b))
        a, b = np.quantile(a, at, axis=0), np.quantile(b, at, axis=0)
    return float(np.sqrt(np.mean(np.square(a - b, dtype=np.float64))))
