"""The distances of the published variants, each as its authors' code computes it."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from scdd.evaluation.generated.neighbours import nearest
from scdd.evaluation.generated.support import mixing


def biased_mmd(a: np.ndarray, b: np.ndarray, rates: np.ndarray) -> float:
    """Biased ``mean k(a,a') + mean k(b,b') - 2 mean k(a,b)``, ``k = Σ_r exp(-r d²)``, summed over rates."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        squared = np.maximum(np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T, 0.0)
        return float(sum(np.exp(-rate * squared).mean() for rate in rates))

    a, b = a.astype(np.float64), b.astype(np.float64)
    return kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)


def summed_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Five kernels ``exp(-d²/b)``, ``b`` the mean squared distance of the pool times 1/4, 1/2, 1, 2, 4."""
    pool = np.vstack([a, b]).astype(np.float64)
    mean = 2 * np.square(pool - pool.mean(0)).sum() / (len(pool) - 1)
    return biased_mmd(a, b, 1.0 / (max(mean, 1e-12) * np.array([0.25, 0.5, 1, 2, 4])))


def fixed_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Five kernels ``exp(-d²/2σ²)``, σ 0.01, 0.1, 1, 10, 100; the first rows, as many of each."""
    n = min(len(a), len(b))
    return biased_mmd(a[:n], b[:n], 0.5 / np.array([0.01, 0.1, 1.0, 10.0, 100.0]) ** 2)


def neighbour_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Kernels ``exp(-d²/2σ²)``, σ the median distance to the 25th neighbour times 1/2, 1, 2."""
    k = min(25, len(b) - 1)
    sigma = float(np.median(nearest(b, b, k, without_self=True)[0]))
    return biased_mmd(a, b, 0.5 / np.square(max(sigma, 1e-12) * np.array([0.5, 1.0, 2.0])))


def chunked_mmd(a: np.ndarray, b: np.ndarray, size: int) -> float:
    """Mean of the summed MMD over chunks of ``size`` genes in their order."""
    starts = range(0, a.shape[1] - size + 1, size) or range(1)
    return float(np.mean([summed_mmd(a[:, s : s + size], b[:, s : s + size]) for s in starts]))


def paired_kl(a: np.ndarray, b: np.ndarray) -> float:
    """``mean_i KL(softmax(b_i) ‖ softmax(a_i))`` over genes, row i with row i."""
    n = min(len(a), len(b))
    p, q = log_softmax(b[:n], axis=1), log_softmax(a[:n], axis=1)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def tsne_lisi(a: np.ndarray, b: np.ndarray) -> float:
    """Median LISI, 1 to 2, on a joint t-SNE of 50 components."""
    from sklearn.decomposition import PCA

    joint = np.vstack([a, b])
    joint = PCA(min(50, *joint.shape), random_state=0).fit_transform(joint)
    with threadpool_limits(1):
        place = TSNE(2, perplexity=min(30, (len(joint) - 1) / 3), random_state=0).fit_transform(joint)
    return 1.0 + mixing(place[: len(a)], place[len(a) :])
