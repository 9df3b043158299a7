"""Which genes go together: correlation of gene–gene correlations, and how well real cells know them."""

from __future__ import annotations

import numpy as np


def gene_correlations(genes: np.ndarray) -> np.ndarray:
    """Pearson correlations of all pairs of genes [n, H] -> [H (H - 1) / 2]; 0 for a constant gene."""
    z = genes.astype(np.float64)
    z -= z.mean(axis=0)
    length = np.sqrt(np.square(z).sum(axis=0))
    z /= np.where(length > 1e-9, length, np.inf)
    return (z.T @ z)[np.triu_indices(z.shape[1], 1)]


def correlation_of_correlations(made: np.ndarray, real: np.ndarray) -> float:
    """Pearson correlation of the gene–gene correlations of two samples; 0 where one has none."""
    a, b = gene_correlations(made), gene_correlations(real)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def split_half_reliability(real: np.ndarray, *, seed: int = 0) -> float:
    """``2 r / (1 + r)`` of the correlation r between two halves (Spearman–Brown): the best to be had."""
    order = np.random.default_rng(seed).permutation(len(real))
    half = len(real) // 2
    r = correlation_of_correlations(real[order[:half]], real[order[half : 2 * half]])
    return 2 * r / (1 + r) if r > -1 else -1.0
