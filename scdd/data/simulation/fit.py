"""Fitting the count model of the simulator to an atlas: moments, in one pass over its blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scdd.data.atlas import Atlas
from scdd.data.simulation.model import CountModel
from scdd.errors import InputError

_ROUNDS = 20  # of fitting two sets of parameters in turn
_DISPERSION = (1e-6, 100.0)  # the lower is Poisson to six digits; the upper is one odd cell, not a gene


def fit_count_model(reference: Any, *, label_key: str = "cell_type", batch_key: str = "batch") -> CountModel:
    """Fit the model to an atlas of counts by moments, in one pass over its blocks.

    f_cg = Σ x / Σ s h over the class and h_bg = (1 + Σ x) / (1 + Σ s f) over the batch, in turn; since
    E[x² − x] = (1 + α) μ², α_g = Σ (x² − x) / Σ μ² − 1 over all cells; m and v are those of log s over
    the class's cells with any count, less what counting adds to them. Proportions are those of the
    atlas. Memory is O((K + B) G).

    Parameters
    ----------
    reference
        Atlas, AnnData or path, of counts.
    label_key, batch_key
        Columns of its `obs`; without a column "batch" it is one batch.

    Raises
    ------
    InputError
        No such column, cells without a label, values that are no counts, a class without any count.
    """
    atlas = Atlas.of(reference)
    if atlas.expression == "log1p":
        raise InputError(f"{atlas.name} holds log1p values: the simulator fits counts, read it as counts")
    label, classes = atlas.labels(label_key)
    batch, batches = np.zeros(atlas.n_obs, dtype=np.int64), ["batch_1"]
    if batch_key != "batch" or batch_key in atlas.obs:
        batch, batches = atlas.labels(batch_key)
    sums = _sums(atlas, label, batch, (len(classes), len(batches)))
    size = sums.by_class.sum(axis=1)
    if not size.all():
        empty = classes[int(size.argmin())]
        raise InputError(f"no cell of {label_key} {empty!r} has any count: leave that class out")
    fraction, factor = _factorise(sums)
    dispersion, noise = _dispersion(sums, fraction, factor)
    mean, sd = _log_moments(sums, label, noise)
    return CountModel(
        fraction=fraction,
        batch_factor=factor,
        dispersion=dispersion,
        log_size_mean=mean,
        log_size_sd=sd,
        proportion=sums.cells / sums.cells.sum(),
        var_names=pd.Index(atlas.var_names),
        classes=list(classes),
        batches=list(batches),
        origin=atlas.name,
    )


class _Sums(NamedTuple):
    """What one pass leaves, over the cells of each class (K), batch (B) or both."""

    by_class: np.ndarray  # [K, G] Σ x
    by_batch: np.ndarray  # [B, G] Σ x
    pairs: np.ndarray  # [G] Σ x² − x
    cells: np.ndarray  # [K, B]
    size: np.ndarray  # [K, B] Σ s
    square: np.ndarray  # [K, B] Σ s² − s
    total: np.ndarray  # [n] of every cell


def _sums(atlas: Atlas, label: np.ndarray, batch: np.ndarray, shape: tuple[int, int]) -> _Sums:
    by_class, by_batch = (np.zeros((k, atlas.n_vars)) for k in shape)
    pairs, total = np.zeros(atlas.n_vars), np.zeros(atlas.n_obs)
    for rows, counts in atlas.blocks():
        block = counts.astype(np.float64)
        total[rows] = row_totals(block)
        by_class += (_indicator(label[rows], shape[0]) @ block).toarray()
        by_batch += (_indicator(batch[rows], shape[1]) @ block).toarray()
        pairs += np.bincount(block.indices, block.data * (block.data - 1.0), minlength=atlas.n_vars)
    cell = label * shape[1] + batch
    cells, size, square = (
        np.bincount(cell, weight, minlength=shape[0] * shape[1]).reshape(shape)
        for weight in (None, total, total * (total - 1.0))
    )
    return _Sums(by_class, by_batch, pairs, cells, size, square, total)


def _indicator(codes: np.ndarray, k: int) -> sparse.csr_matrix:
    n = len(codes)
    return sparse.csr_matrix((np.ones(n), (codes, np.arange(n))), shape=(k, n))


def _factorise(sums: _Sums) -> tuple[np.ndarray, np.ndarray]:
    """Split means into class and batch: each in turn given the other, the Poisson likelihood rises.

    One round would leave a batch's effect in the classes that it holds most of.
    """
    factor = np.ones_like(sums.by_batch)
    for _ in range(_ROUNDS):
        fraction = sums.by_class / (sums.size @ factor)
        factor = (1.0 + sums.by_batch) / (1.0 + sums.size.T @ fraction)
    return fraction / fraction.sum(axis=1, keepdims=True), factor


def _dispersion(sums: _Sums, fraction: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate α, and by it the noise Σ_g α_g p_g² of a cell's total about its size, [K, B].

    The total T of a cell is known, its size s is not: E[T² − T] = E[s²] (1 + Σ_g α_g p_g²). To take T
    for s would lose part of every α to the sizes, so α and E[s²] are solved for in turn.
    """
    f_square, h_square, norm = fraction**2, factor**2, (fraction @ factor.T) ** 2
    alpha = np.zeros(fraction.shape[1])
    for _ in range(_ROUNDS):
        noise = (f_square * alpha) @ h_square.T / norm
        size_square = sums.square / (1.0 + noise) / norm
        mean_square = (h_square * (size_square.T @ f_square)).sum(axis=0)
        ratio = np.divide(sums.pairs, mean_square, out=np.ones_like(alpha), where=mean_square > 0)
        alpha = np.clip(ratio - 1.0, *_DISPERSION)
    return alpha, noise


def _log_moments(sums: _Sums, label: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of log s by class: those of log T without what counting adds."""
    filled, k = sums.total > 0, len(sums.cells)
    log, label = np.log(sums.total[filled]), label[filled]
    n = np.bincount(label, minlength=k)
    mean = np.bincount(label, log, minlength=k) / n
    # From the mean, not as E[log²] − E[log]², which would cancel.
    variance = np.bincount(label, (log - mean[label]) ** 2, minlength=k) / n
    cells = sums.cells.sum(axis=1)
    spread = (sums.cells * noise).sum(axis=1) / cells + cells / sums.size.sum(axis=1)
    added = np.minimum(np.log1p(spread), variance)
    return mean + added / 2, np.sqrt(variance - added)


def row_totals(counts: sparse.csr_matrix) -> np.ndarray:
    """Counts of every cell, float64 [n]."""
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
