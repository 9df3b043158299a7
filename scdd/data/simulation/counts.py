"""Negative binomial counts, drawn at the cost of their non-zeros."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def sample_negative_binomial(
    mean: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Draw x ~ NB(μ, α), Var x = μ + α μ², at the cost of one exponential an entry and the non-zeros.

    An NB count is a Poisson number of bursts of logarithmic size: rate ρ = log(1 + α μ) / α and
    size ~ Log(α μ / (1 + α μ)). An entry is non-zero if its first burst, at time E ~ Exp(1), comes
    before ρ; then Poisson(ρ − E) follow it. So zeros, nearly all entries, need no gamma draw.

    Parameters
    ----------
    mean
        μ ≥ 0, [n, G].
    dispersion
        α > 0, broadcast against `mean`.
    rng
        Source of randomness.

    Returns
    -------
    scipy.sparse.csr_matrix
        float32 [n, G], whole numbers.

    References
    ----------
    Quenouille, "A relation between the logarithmic, Poisson, and negative binomial series",
    Biometrics 1949.
    """
    odds = mean * dispersion
    rate = np.log1p(odds) / dispersion
    rate -= rng.standard_exponential(mean.shape)
    row, column = np.nonzero(rate > 0)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(mean)))])
    bursts = 1 + rng.poisson(rate[row, column])
    odds = odds[row, column]
    sizes = rng.logseries(np.repeat(odds / (1.0 + odds), bursts))
    counts = np.diff(np.concatenate([[0], np.cumsum(sizes)[np.cumsum(bursts) - 1]]))
    return sparse.csr_matrix((counts.astype(np.float32), column.astype(np.int32), indptr), shape=mean.shape)
