"""Counts drawn by inversion are negative-binomial, whatever the mean, the dispersion and the threads."""

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from scdd.nn.count_draws import _by_inversion, draw_negative_binomial, draw_sparse_negative_binomial
from scdd.nn.heads import NegativeBinomialHead

# both sides of the limits beyond which a gamma-Poisson draw takes over
PAIRS = [(0.02, 0.05), (0.1, 1.0), (1.0, 0.3), (4.0, 0.5), (7.9, 100.0), (30.0, 2.0), (0.5, 0.01)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def binned(counts, mass):
    """Observed and expected numbers of neighbouring counts, at least 25 expected in each bin."""
    observed, expected, o, e = [], [], 0.0, 0.0
    for k in range(len(mass)):
        o, e = o + (counts == k).sum(), e + mass[k]
        if e >= 25:
            observed.append(o)
            expected.append(e)
            o = e = 0.0
    observed[-1] += len(counts) - sum(observed)
    expected[-1] += len(counts) - sum(expected)
    return observed, expected


@pytest.mark.parametrize(("mu", "theta"), PAIRS)
def test_distribution(mu, theta):
    rows, genes = 2000, 50
    counts = draw_negative_binomial(torch.full((rows, genes), mu), torch.full((genes,), theta), seeded())
    counts = counts.flatten().numpy().astype(int)
    law = stats.nbinom(theta, theta / (theta + mu))
    observed, expected = binned(counts, law.pmf(np.arange(600)) * len(counts))
    assert len(observed) > 2
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    assert abs(counts.mean() - mu) < 5 * law.std() / len(counts) ** 0.5


def mixed():
    generator = seeded(1)
    mu = torch.exp(2 * torch.randn(150, 40, generator=generator) - 1)
    return mu, torch.exp(torch.randn(40, generator=generator))


def test_sparse_is_dense():
    mu, theta = mixed()
    dense = draw_negative_binomial(mu, theta, seeded(3)).numpy()
    parts = draw_sparse_negative_binomial(mu, theta, seeded(3))
    matrix = sparse.csr_matrix(tuple(part.numpy() for part in parts), shape=dense.shape)
    matrix.check_format()
    assert np.array_equal(matrix.toarray(), dense)
    assert matrix.data.min() > 0
    assert 0.1 < (dense > 0).mean() < 0.9


def test_threads_do_not_matter_and_seeds_do():
    mu, theta = mixed()
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(draw_negative_binomial(mu, theta, seeded(5)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    assert not torch.equal(found[0], draw_negative_binomial(mu, theta, seeded(6)))
    first, second = seeded(5), seeded(5)
    draw_negative_binomial(mu, theta, first)
    draw_negative_binomial(mu, theta, second)
    assert torch.equal(first.get_state(), second.get_state())
    assert not torch.equal(draw_negative_binomial(mu, theta, first), found[0])


def test_silent_genes_and_no_cells():
    mu, theta = mixed()
    assert not draw_negative_binomial(torch.zeros_like(mu), theta, seeded()).any()
    parts = draw_sparse_negative_binomial(torch.zeros_like(mu), theta, seeded())
    assert len(parts.values) == 0
    assert parts.indptr.tolist() == [0] * (len(mu) + 1)
    assert draw_negative_binomial(mu[:0], theta, seeded()).shape == (0, 40)


@pytest.mark.parametrize("theta", [0.3, 1.0, 3.0, 20.0, 200.0, 1e5])
def test_the_largest_uniform_numbers_give_no_absurd_counts(theta):
    mu = torch.tensor([0.01, 0.05, 0.3, 1.0, 2.0, 4.0, 7.9])
    mu = mu[mu / theta < 16]
    for steps in (1, 2, 4, 16):
        uniform = torch.full_like(mu, 1 - steps * 2.0**-24)
        counts = _by_inversion(uniform, mu / theta, torch.full_like(mu, theta)).numpy()
        # as far as float32 can tell probabilities apart
        p = theta / (theta + mu.double().numpy())
        assert (counts <= stats.nbinom.ppf(1 - 1e-10, theta, p)).all()
        assert (counts >= stats.nbinom.ppf(1 - 2e-6, theta, p)).all()


def test_the_head_draws_from_it():
    torch.manual_seed(0)
    head = NegativeBinomialHead(4, 30)
    features, totals = torch.randn(4000, 4)[:1].expand(4000, 4), torch.full((4000,), 200.0)
    with torch.no_grad():
        counts = head.draw_counts(features, totals, seeded())
        wanted = head.rate(features[:1], totals[:1])[0]
    assert torch.allclose(counts.mean(0), wanted, rtol=0.15)
    spread = wanted + wanted.square() / head.theta.detach()
    assert torch.allclose(counts.var(0), spread, rtol=0.3)
