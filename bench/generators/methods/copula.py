"""Per class: negative binomial counts of every gene, tied together by a Gaussian copula of few factors.

The model of scDesign2 (Sun et al., Genome Biol. 22, 2021) and scDesign3 (Song et al., Nat. Biotechnol. 42, 2024),
made as strong as it gets on a few hundred cells:

- means scale with the library size of a cell, so that library sizes are drawn first and correlations are of what
  library sizes leave over;
- dispersions by likelihood, that of all classes together counting as some further cells of each;
- all genes are in the copula, not the frequent ones alone. Scores are conditional means ``E[z | x]`` in place of
  random ones, corrected for what coarse counts hide; their correlations are cut to the factors above the noise
  (Marchenko–Pastur), the eigenvalues shrunk, so that the copula of 2,000 genes is a product of two thin matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.special import gammaln, ndtri
from sklearn.utils.extmath import randomized_svd

from generators.methods.made import LABEL, Made, Watch, as_cells, each_class

if TYPE_CHECKING:
    from generators.tasks import Task

_POISSON = 1e-4
GRID = np.append(_POISSON, np.geomspace(0.01, 30.0, 24))
_COMMUNALITY = 0.95
_MOST_FACTORS = 60
_ROUNDS = 4


class Marginals(NamedTuple):
    """Of a class: ``rate`` [G], expected share of the library; ``dispersion`` φ [G] in ``var = μ + φ μ²``."""

    rate: np.ndarray
    dispersion: np.ndarray


class ClassModel(NamedTuple):
    """Marginals, factor ``loadings`` [G, k] of the copula, log library sizes [n] of the class."""

    marginals: Marginals
    loadings: np.ndarray
    log_library: np.ndarray


def nb_copula(task: Task, labels: np.ndarray, *, seed: int, settings: dict[str, Any]) -> Made:
    """Settings: ``copula`` (true), ``shared_cells`` (20): weight of all classes together, in cells of a class."""
    watch, rng = Watch(), np.random.default_rng(seed)
    own = task.train.obs[LABEL].to_numpy().astype(str)
    models = fit(task.train.X.toarray(), own, **settings)
    trained = watch.lap()
    x = np.empty((len(labels), task.train.n_vars), dtype=np.float32)
    for name, places in each_class(labels):
        x[places] = sample(models[name], len(places), rng)
    return Made(as_cells(x, labels, task.train.var_names), trained, watch.lap())


def fit(
    x: np.ndarray, labels: np.ndarray, *, copula: bool = True, shared_cells: float = 20.0
) -> dict[str, ClassModel]:
    """Fit every class of counts x [n, G]."""
    library = x.sum(axis=1, dtype=np.float64)
    classes = list(each_class(labels))
    marginals = fit_marginals(x, library, classes, shared_cells=shared_cells)
    scores = {name: conditional_scores(x[rows], library[rows], marginals[name]) for name, rows in classes}
    pooled = np.vstack([scores[name] for name, _ in classes])
    found = {}
    for name, rows in classes:
        loadings = np.zeros((x.shape[1], 0))
        if copula:
            loadings = factor_loadings(scores[name], pooled, shared_cells=shared_cells)
        found[name] = ClassModel(marginals[name], loadings, np.log(library[rows]))
    return found


def fit_marginals(
    x: np.ndarray, library: np.ndarray, classes: list[tuple[str, np.ndarray]], *, shared_cells: float = 20.0
) -> dict[str, Marginals]:
    """Rates, and dispersions of the greatest likelihood on a grid.

    Moments would follow the few cells with most counts and leave too many zeros. The likelihood of all
    classes together counts as ``shared_cells`` further cells of each.
    """
    rates = {name: x[rows].sum(axis=0, dtype=np.float64) / library[rows].sum() for name, rows in classes}
    each = {name: likelihoods(x[rows], library[rows, None] * rates[name]) for name, rows in classes}
    pooled = sum(each.values()) * (shared_cells / len(x))
    return {name: Marginals(rates[name], GRID[(each[name] + pooled).argmax(axis=0)]) for name in each}


def likelihoods(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Log-likelihood [K, G] of counts [n, G] under every dispersion of the grid, without terms free of it."""
    cells, genes = np.nonzero(x)
    counts, expected = x[cells, genes].astype(np.float64), mean[cells, genes]
    found = np.empty((len(GRID), x.shape[1]))
    for k, shape in enumerate(1.0 / GRID):
        # log P(x) = log P(0) + log Γ(x + r) / Γ(r) + x log(μ / (r + μ)), where only counts have more than the first
        more = gammaln(counts + shape) - gammaln(shape) - counts * np.log(shape + expected)
        found[k] = np.bincount(genes, weights=more, minlength=x.shape[1])
        found[k] -= shape * np.log1p(mean / shape).sum(axis=0)
    return found


def conditional_scores(x: np.ndarray, library: np.ndarray, marginals: Marginals) -> np.ndarray:
    """``E[z | x]`` [n, G] of the normal z that a count stands for: z lies between two quantiles."""
    mean = library[:, None] * marginals.rate
    upper = cumulative(x, mean, marginals.dispersion)
    lower = np.where(x > 0, cumulative(np.maximum(x - 1, 0), mean, marginals.dispersion), 0.0)
    edges = [stats.norm.pdf(ndtri(np.clip(side, 0.0, 1.0))) for side in (lower, upper)]
    width = np.maximum(upper - lower, 1e-12)
    return np.clip((edges[0] - edges[1]) / width, -5.0, 5.0)


def cumulative(x: np.ndarray, mean: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """``P(X <= x)`` of the negative binomial, Poisson where there is no overdispersion."""
    shape = 1.0 / np.maximum(dispersion, _POISSON)
    p = shape / (shape + mean)
    return stats.nbinom.cdf(x, shape, p)


def factor_loadings(scores: np.ndarray, pooled: np.ndarray, *, shared_cells: float) -> np.ndarray:
    """Loadings B [G, k] of the copula ``z = B f + sqrt(1 - |B|²) e``.

    Counts show a part ``a_g = var E[z | x]`` of z, and ``cov(m_i, m_j) ≈ ρ_ij a_i a_j`` to first order
    (Mehler): correlations of ``m / sqrt(a)`` are ρ damped by ``sqrt(a_i a_j)``, with the same noise for
    every pair. There the factors are told from noise, and then the damping is undone.
    """
    n, genes = scores.shape
    weight = shared_cells / (n + shared_cells)
    rows = np.vstack([scores * np.sqrt((1 - weight) / n), pooled * np.sqrt(weight / len(pooled))])
    shown = np.square(rows).sum(axis=0)
    seen = shown > 1e-4
    standard = rows[:, seen] / np.sqrt(shown[seen])
    # equal weights w_i of the cells would count 1 / Σ w_i² of them
    effective = 1.0 / ((1 - weight) ** 2 / n + weight**2 / len(pooled))
    own = np.ones(standard.shape[1])  # what a gene has for itself: noise of one size once divided by it
    for _ in range(_ROUNDS):
        vectors, values = spiked(standard / np.sqrt(own), effective)
        shared = vectors * np.sqrt(values) * np.sqrt(own)[:, None]
        own = np.maximum(1.0 - np.square(shared).sum(axis=1), 1.0 - _COMMUNALITY)
    loadings = np.zeros((genes, shared.shape[1]))
    loadings[seen] = shared / np.sqrt(shown[seen])[:, None]
    length = np.sqrt(np.square(loadings).sum(axis=1))
    limit = np.sqrt(_COMMUNALITY)
    return loadings * np.minimum(1.0, limit / np.maximum(length, 1e-12))[:, None]


def spiked(standard: np.ndarray, effective: float) -> tuple[np.ndarray, np.ndarray]:
    """Signal of a correlation matrix ``S'S`` in spiked form: vectors [G, k] and values less the noise [k].

    An eigenvalue λ above the edge ``(1 + sqrt γ)²``, ``γ = G / n``, came from ``ℓ`` with
    ``λ = (1 + ℓ)(1 + γ / ℓ)`` (Baik and Silverstein, J. Multivar. Anal. 97, 2006).
    """
    size = min(_MOST_FACTORS, *standard.shape)
    _, singular, right = randomized_svd(standard, size, n_iter=4, random_state=0)
    values, ratio = np.square(singular), standard.shape[1] / effective
    kept = values > (1 + np.sqrt(ratio)) ** 2 * 1.02
    b = values[kept] - 1 - ratio
    signal = (b + np.sqrt(np.maximum(b**2 - 4 * ratio, 0.0))) / 2
    # sample vectors lean off the true ones by this cosine²
    cosine = (1 - ratio / signal**2) / (1 + ratio / signal)
    return right[kept].T, signal * np.maximum(cosine, 0.0)


def sample(model: ClassModel, n: int, rng: np.random.Generator) -> np.ndarray:
    """Counts float32 [n, G] of n new cells."""
    own = model.log_library
    spread = own.std() * len(own) ** -0.2 if len(own) > 1 else 0.0
    # smoothed, so that no library size is that of a train cell; the spread of all is kept
    library = own.mean() + (
        rng.choice(own, n) - own.mean() + 0.5 * spread * rng.standard_normal(n)
    ) / np.sqrt(1 + 0.25 * len(own) ** -0.4)
    alone = np.sqrt(1 - np.square(model.loadings).sum(axis=1))
    z = rng.standard_normal((n, model.loadings.shape[1])) @ model.loadings.T
    z += alone * rng.standard_normal((n, len(alone)))
    mean = np.exp(library)[:, None] * model.marginals.rate
    return quantile(stats.norm.cdf(z), mean, model.marginals.dispersion).astype(np.float32)


def quantile(u: np.ndarray, mean: np.ndarray, dispersion: np.ndarray, *, most: int = 20_000) -> np.ndarray:
    """Smallest x with ``P(X <= x) >= u``, by adding up probabilities; most counts are 0 and done at once."""
    form = u.shape
    shape = np.broadcast_to(1.0 / np.maximum(dispersion, _POISSON), form).ravel()
    mean, u = np.broadcast_to(mean, form).ravel(), np.minimum(u.ravel(), 1 - 1e-12)
    found, left = np.zeros(u.size, dtype=np.int64), np.arange(u.size)
    ratio = mean / (shape + mean)
    mass = np.exp(-shape * np.log1p(mean / shape))
    total = mass.copy()
    for x in range(1, most):
        going = total < u[left]
        left, mass, total = left[going], mass[going], total[going]
        if not len(left):
            break
        mass = mass * ratio[left] * (x - 1 + shape[left]) / x
        total = total + mass
        found[left] = x
    return found.reshape(form)
