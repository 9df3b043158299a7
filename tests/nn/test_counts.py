"""The likelihood of counts against scipy, and the head that says their mean."""

import numpy as np
import torch
from scipy import stats

from scdd.nn.count_head import CountHead
from scdd.nn.count_likelihood import negative_binomial_loss, negative_binomial_losses
from scdd.nn.heads import DISPERSION_PACE


def some_counts(n=200, genes=6):
    generator = torch.Generator().manual_seed(0)
    mu = torch.rand(n, genes, generator=generator) * torch.logspace(-2, 1.5, genes)
    theta = torch.logspace(-1.5, 2.5, genes)
    gamma = torch._standard_gamma(theta.expand(n, -1).contiguous(), generator=generator) / theta
    return torch.poisson(mu * gamma, generator=generator), mu, theta


def test_the_likelihood_is_that_of_scipy():
    counts, mu, theta = (value.double() for value in some_counts())
    found = negative_binomial_losses(counts, mu, theta.log())
    mass = stats.nbinom.logpmf(counts.numpy(), theta.numpy(), (theta / (theta + mu)).numpy())
    np.testing.assert_allclose(found.numpy(), -mass.sum(0), rtol=1e-9)
    whole = negative_binomial_loss(counts, mu, theta.log())
    np.testing.assert_allclose(whole.item(), -mass.sum() / len(counts), rtol=1e-9)


def test_its_gradients_are_right():
    counts, mu, theta = (value.double() for value in some_counts(8, 4))
    log_mu, log_theta = mu.log().requires_grad_(), theta.log().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m, t: negative_binomial_loss(counts, m.exp(), t), (log_mu, log_theta)
    )


def head():
    torch.manual_seed(0)
    found = CountHead(8, 3, 7, 2, 4)
    share = torch.rand(3, 8) + 0.1
    found.start_from((share / share.sum(1, keepdim=True)).log(), torch.linspace(-1, 3, 8))
    return found, share / share.sum(1, keepdim=True)


def test_it_starts_at_the_shares_of_classes_and_their_dispersions():
    found, share = head()
    tokens, scores = torch.randn(3, 3, 8), torch.randn(3, 4)
    codes = torch.tensor([[0], [1], [-1]])
    torch.testing.assert_close(found.share(tokens, scores, codes), share)
    torch.testing.assert_close(found.theta, torch.linspace(-1, 3, 8)[:-1].exp())


def test_shares_sum_to_one_and_follow_the_tokens_of_their_genes():
    found, _ = head()
    with torch.no_grad():
        found.own.weight.normal_()
    tokens, scores, codes = torch.randn(2, 3, 8), torch.randn(2, 4), torch.zeros(2, 1, dtype=torch.long)
    before = found.share(tokens, scores, codes)
    torch.testing.assert_close(before.sum(1), torch.ones(2))
    other = tokens.clone()
    other[:, 1] += 1.0  # the second patch: genes 3 to 5
    ratio = (found.share(other, scores, codes) / before).log()
    same = ratio[:, [0, 1, 2, 6, 7]]
    torch.testing.assert_close(same, same[:, :1].expand_as(same), atol=1e-4, rtol=0)
    assert (ratio[:, 3:6] - ratio[:, :1]).abs().min() > 1e-3


def test_the_loss_counts_the_genes_that_are_not_modelled():
    found, share = head()
    counts, totals = torch.full((1, 7), 2.0), torch.tensor([20.0])
    every = np.array([2.0] * 7 + [6.0])
    theta = (DISPERSION_PACE * found.dispersion).exp().detach().numpy()
    mu = 20 * share[0].numpy()
    wanted = -stats.nbinom.logpmf(every, theta, theta / (theta + mu)).sum() / 7
    np.testing.assert_allclose(found.loss(share[:1], counts, totals).item(), wanted, rtol=1e-4)
