"""Gene by gene: means, variances, zeros, and the curves that tie them; genes detected in a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from scipy import sparse

# What is added before a logarithm: about one read in a thousand cells; one cell in a hundred.
_PSEUDO = {"mean": 1e-3, "variance": 1e-3, "zero fraction": 1e-2}


class GeneStatistics(NamedTuple):
    """Of log1p values, float64 [G] each; ``detected`` are genes above zero of every cell [n]."""

    mean: np.ndarray
    variance: np.ndarray
    zero: np.ndarray
    detected: np.ndarray


def gene_statistics(x: sparse.csr_matrix, genes: np.ndarray) -> GeneStatistics:
    """Statistics of the chosen genes (a boolean mask) of log1p cells x [n, G]."""
    part = x[:, genes]
    n = part.shape[0]
    mean = np.asarray(part.mean(axis=0, dtype=np.float64)).ravel()
    square = np.asarray(part.multiply(part).mean(axis=0, dtype=np.float64)).ravel()
    positive = part > 0
    zero = 1.0 - np.asarray(positive.sum(axis=0)).ravel() / n
    variance = np.maximum(square - mean**2, 0.0) * n / max(n - 1, 1)
    return GeneStatistics(mean, variance, zero, np.asarray(positive.sum(axis=1)).ravel())


def agreement(made: GeneStatistics, real: GeneStatistics) -> dict[str, float]:
    """Spearman correlation over genes and ``log-MSE = mean (log10(a + ε) - log10(b + ε))²`` of each kind."""
    found = {}
    pairs = {
        "mean": (made.mean, real.mean),
        "variance": (made.variance, real.variance),
        "zero fraction": (made.zero, real.zero),
    }
    for name, (a, b) in pairs.items():
        found[f"{name}, Spearman"] = spearman(a, b)
        gap = np.log10(a + _PSEUDO[name]) - np.log10(b + _PSEUDO[name])
        found[f"{name}, log-MSE"] = float(np.mean(gap**2))
    return found


def curve_distances(made: GeneStatistics, real: GeneStatistics) -> dict[str, float]:
    """Mean gap between the curves variance (log10) and zero fraction against mean, see ``curve``."""
    edges = curve_edges(real.mean)
    found = {}
    for name, kind in (("mean–variance curve", "variance"), ("zero–mean curve", "zero")):
        a, b = (curve(statistics, edges, kind) for statistics in (made, real))
        found[name] = float(np.nanmean(np.abs(a - b))) if np.isfinite(a - b).any() else np.nan
    return found


def curve_edges(mean: np.ndarray, bins: int = 20) -> np.ndarray:
    """Bins of mean expression that hold as many genes each."""
    return np.unique(np.quantile(mean, np.linspace(0, 1, bins + 1)))


def curve(statistics: GeneStatistics, edges: np.ndarray, kind: str) -> np.ndarray:
    """Median of ``log10 variance`` or of the zero fraction in every bin of mean; NaN below five genes."""
    values = np.log10(statistics.variance + 1e-6) if kind == "variance" else statistics.zero
    place = np.clip(np.searchsorted(edges, statistics.mean, side="right") - 1, 0, len(edges) - 2)
    inside = (statistics.mean >= edges[0]) & (statistics.mean <= edges[-1])
    found = np.full(max(len(edges) - 1, 0), np.nan)
    for number in range(len(found)):
        members = values[inside & (place == number)]
        if len(members) >= 5:
            found[number] = np.median(members)
    return found


def detected_distance(made: GeneStatistics, real: GeneStatistics) -> float:
    """Kolmogorov–Smirnov distance between the genes detected in generated and in real cells."""
    return float(stats.ks_2samp(made.detected, real.detected).statistic)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; 0 where one side is constant, which then says nothing of the other."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)
