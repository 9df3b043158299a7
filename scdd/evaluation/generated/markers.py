"""Differential expression of a class against the rest: slope, ranks and top genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scdd.evaluation.generated.gene_statistics import spearman

if TYPE_CHECKING:
    from scipy import sparse


class Contrast(NamedTuple):
    """Of a class against the rest, [G]: log2 fold changes of mean CP10k, and Welch's t of log1p values."""

    fold: np.ndarray
    t: np.ndarray


class MarkerAgreement(NamedTuple):
    """Slope and Spearman of generated fold changes on real ones; share of the top markers in common."""

    slope: float
    spearman: float
    overlap: float


def contrast(x: sparse.csr_matrix, members: np.ndarray, genes: np.ndarray) -> Contrast:
    """``log2((mean CP10k + 1) / (mean CP10k of the rest + 1))`` and Welch's t of the chosen genes."""
    part = x[:, genes]
    inside, rest = part[members], part[~members]
    cp10k = [np.asarray(z.expm1().mean(axis=0, dtype=np.float64)).ravel() for z in (inside, rest)]
    (mean_in, error_in), (mean_out, error_out) = (_mean_and_error(z) for z in (inside, rest))
    t = (mean_in - mean_out) / np.sqrt(error_in + error_out + 1e-9)
    return Contrast(np.log2((cp10k[0] + 1.0) / (cp10k[1] + 1.0)), t)


def agreement(made: Contrast, real: Contrast, *, top: int = 100) -> MarkerAgreement:
    """Compare two contrasts; the top genes are the ``top`` of highest t.

    A slope below one means classes that differ too little. Noise of the real fold changes flattens the
    slope of real cells too, hence its floor.
    """
    centred = real.fold - real.fold.mean()
    scale = float(centred @ centred)
    slope = float(centred @ (made.fold - made.fold.mean())) / scale if scale > 0 else np.nan
    top = min(top, len(real.t))
    best = [set(np.argsort(-side.t, kind="stable")[:top]) for side in (made, real)]
    return MarkerAgreement(slope, spearman(made.fold, real.fold), len(best[0] & best[1]) / top)


def _mean_and_error(x: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and squared standard error of every gene."""
    n = x.shape[0]
    mean = np.asarray(x.mean(axis=0, dtype=np.float64)).ravel()
    square = np.asarray(x.multiply(x).mean(axis=0, dtype=np.float64)).ravel()
    return mean, np.maximum(square - mean**2, 0.0) / max(n - 1, 1)
