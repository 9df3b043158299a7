"""Do the samples fill the same places: precision, recall, density, coverage, and mixing (iLISI)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from scdd.evaluation.generated.neighbours import nearest


class Support(NamedTuple):
    """Shares in [0, 1], but ``density``, which may be above 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def support(real: np.ndarray, made: np.ndarray, *, k: int = 5) -> Support:
    """Precision, recall, density and coverage from balls that reach the k-th neighbour.

    Precision is the share of made cells inside any ball of a real cell, recall that of real cells inside
    any ball of a made one (Kynkäänniemi et al., NeurIPS 2019); density counts balls a made cell lies in,
    over k; coverage is the share of real cells whose ball holds a made one (Naeem et al., ICML 2020).
    """
    radius_real = nearest(real, real, k, without_self=True)[0][:, -1]
    radius_made = nearest(made, made, k, without_self=True)[0][:, -1]
    inside_real = np.zeros(len(made))
    covered, recalled = np.zeros(len(real), dtype=bool), np.zeros(len(real), dtype=bool)
    for start in range(0, len(real), 1_024):
        part = slice(start, start + 1_024)
        distance = cdist(real[part], made)
        within = distance < radius_real[part, None]
        inside_real += within.sum(axis=0)
        covered[part] = within.any(axis=1)
        recalled[part] = (distance < radius_made).any(axis=1)
    return Support(
        float(np.mean(inside_real > 0)),
        float(recalled.mean()),
        float(inside_real.mean() / k),
        float(covered.mean()),
    )


def mixing(x: np.ndarray, y: np.ndarray, *, perplexity: float = 30.0) -> float:
    """Give iLISI in [0, 1]: median inverse Simpson index of the two samples in a neighbourhood, minus one.

    Gaussian weights over ``3 · perplexity`` neighbours with entropy ``log perplexity`` (Korsunsky et al.,
    Nat. Methods 16, 2019), rescaled as in scIB (Luecken et al., Nat. Methods 19, 2022). Two samples alike
    stay below 1, as neighbourhoods are finite.
    """
    z, sample = np.vstack([x, y]), np.repeat([0, 1], [len(x), len(y)])
    k = min(int(3 * perplexity), len(z) - 1)
    distance, index = nearest(z, z, k, without_self=True)
    weight = _perplexity_weights(distance, min(perplexity, k / 3))
    share = (weight * sample[index]).sum(axis=1)
    return float(np.median(1.0 / (share**2 + (1 - share) ** 2)) - 1.0)


def _perplexity_weights(distance: np.ndarray, perplexity: float, steps: int = 60) -> np.ndarray:
    """Rows ``softmax(-β d)`` whose entropy is ``log perplexity``; β by bisection in log space."""
    d = distance - distance.min(axis=1, keepdims=True)
    # Relative distances: β then lies in the same range for all data.
    d = d / np.maximum(d.mean(axis=1, keepdims=True), 1e-12)
    low, high = np.full((len(d), 1), -12.0), np.full((len(d), 1), 12.0)
    weight = np.full_like(d, 1.0 / d.shape[1])
    for _ in range(steps):
        middle = (low + high) / 2
        weight = np.exp(-np.exp(middle) * d)
        weight /= weight.sum(axis=1, keepdims=True)
        entropy = -(weight * np.log(np.maximum(weight, 1e-300))).sum(axis=1, keepdims=True)
        broad = entropy > np.log(perplexity)
        low, high = np.where(broad, middle, low), np.where(broad, high, middle)
    return weight
