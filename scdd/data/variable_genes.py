"""Highly variable genes, fitted by streaming; equal to scanpy's ``seurat_v3`` and ``seurat`` flavours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdd.data.statistics.moments import column_moments
from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas

FLAVOURS = ("auto", "seurat_v3", "seurat")


def highly_variable_genes(atlas: Atlas, n_top: int, *, flavor: str = "auto") -> np.ndarray:
    """Positions of the ``n_top`` most variable genes, in file order.

    ``"seurat_v3"`` (Stuart et al. 2019) ranks counts by the variance left after a loess fit of
    log-variance on log-mean, values clipped at ``mean + sqrt(n) sd``. ``"seurat"`` (Satija et al. 2015)
    ranks normalised data by dispersion, z-scored in 20 bins of mean expression. ``"auto"`` takes
    ``seurat_v3`` for counts, ``seurat`` otherwise. The scores equal scanpy's to a relative 1e-4.
    """
    if flavor not in FLAVOURS:
        raise InputError(f"flavor={flavor!r}; choose one of {', '.join(FLAVOURS)}")
    if n_top < 1:
        raise InputError(f"n_top_genes={n_top}; ask for at least one gene, or None for all")
    if flavor == "seurat_v3" and atlas.expression == "log1p":
        raise InputError("flavor='seurat_v3' ranks counts and the data is log1p; pass flavor='seurat'")
    use_counts = flavor == "seurat_v3" or (flavor == "auto" and atlas.expression == "counts")
    score = standardised_variance(atlas) if use_counts else normalised_dispersion(atlas)
    score = np.where(np.isfinite(score), score, -np.inf)
    # A stable sort breaks ties by file order, so that the choice never depends on the machine.
    chosen = np.argsort(-score, kind="stable")[: min(n_top, atlas.n_vars)]
    return np.sort(chosen)


def standardised_variance(atlas: Atlas) -> np.ndarray:
    """The ``seurat_v3`` score of every gene, float64 [G]; two passes over the counts."""
    from skmisc.loess import loess

    n, mean, variance, _ = column_moments(atlas)
    varying = variance > 0
    if varying.sum() < 3:
        return variance
    fit = loess(np.log10(mean[varying]), np.log10(variance[varying]), span=0.3, degree=2)
    fit.fit()
    expected_sd = np.ones(atlas.n_vars)
    expected_sd[varying] = np.sqrt(10**fit.outputs.fitted_values)
    clip = expected_sd * np.sqrt(n) + mean
    clipped = column_moments(atlas, clip=clip)
    square = clipped.variance * max(n - 1, 1) + n * clipped.mean**2
    spread = n * mean**2 + square - 2 * clipped.mean * n * mean
    return spread / (max(n - 1, 1) * expected_sd**2)


def normalised_dispersion(atlas: Atlas) -> np.ndarray:
    """The ``seurat`` score of every gene, float64 [G]: one pass over CP10k values."""
    if atlas.expression == "log1p":
        _, mean, variance, _ = column_moments(atlas, map_values=np.expm1)
    else:
        _, mean, variance, _ = column_moments(atlas, target_sum=1e4)
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
    with np.errstate(divide="ignore"):
        dispersion = np.log(np.where(dispersion == 0, np.nan, dispersion))
    table = pd.DataFrame({"bin": pd.cut(np.log1p(mean), bins=20), "dispersion": dispersion})
    by_bin = table.groupby("bin", observed=True)["dispersion"]
    centre, spread = by_bin.transform("mean"), by_bin.transform("std")
    # A bin of one gene has no spread: scanpy gives that gene the score 1.
    alone = spread.isna()
    centre, spread = centre.mask(alone, 0.0), spread.mask(alone, centre)
    return ((table["dispersion"] - centre) / spread).to_numpy()
