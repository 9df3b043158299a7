"""The likelihood of counts against scipy, and the head that reads them off noised cells."""

import numpy as np
import torch
from scipy import stats

from scdd.nn.count_head import CountHead
from scdd.nn.count_likelihood import negative_binomial_loss, negative_binomial_losses
from scdd.nn.heads import Observed


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


def head(genes=7):
    torch.manual_seed(0)
    found = CountHead(genes, 2, latent=3, kl_weight=0.3)
    share = torch.rand(genes)
    share = 0.8 * share / share.sum()
    found.start_from(share)
    return found, share


def test_it_starts_at_the_mean_shares():
    found, share = head()
    nb = found.autoencoder.head
    rate = nb.rate(torch.zeros(2, nb.share.in_features), torch.tensor([10.0, 100.0]))
    torch.testing.assert_close(rate, torch.tensor([[10.0], [100.0]]) * share)


def test_the_loss_is_a_genes():
    found, _ = head()
    found.eval()
    x, counts = torch.randn(5, 7), torch.ones(5, 7)
    totals, label = torch.full((5,), 20.0), torch.tensor([0, 1, 0, 1, 0])
    cells = Observed(x, counts, totals, label)
    whole = found.autoencoder.loss(cells, torch.Generator().manual_seed(3))
    mine = found.loss(x, counts, totals, label, torch.Generator().manual_seed(3))
    assert set(mine) == {"kl", "label", "reconstruction"}
    for name, value in mine.items():
        torch.testing.assert_close(value, whole[name] / 7)


def test_counts_follow_the_cell_the_total_and_the_seed():
    found, _ = head(60)
    rng = torch.Generator().manual_seed(0)
    label = torch.arange(400) % 2
    share = torch.full((2, 60), 0.2)
    share[0, :30], share[1, 30:] = 1.0, 1.0
    share /= share.sum(1, keepdim=True)
    x = torch.where(label[:, None] == 0, 1.0, -1.0) * torch.linspace(-1, 1, 60)
    totals = torch.full((400,), 100.0)
    counts = torch.poisson(share[label] * 100, generator=rng)
    optimiser = torch.optim.Adam(found.parameters(), 5e-3)
    for _ in range(150):
        noised = x + 0.5 * torch.randn(x.shape, generator=rng)
        optimiser.zero_grad()
        sum(found.loss(noised, counts, totals, label, rng).values()).backward()
        optimiser.step()
    found.eval()
    noised = x + 0.5 * torch.randn(x.shape, generator=rng)
    drawn = found.draw(noised, totals, torch.Generator().manual_seed(1))
    for k in range(2):
        np.testing.assert_allclose(drawn[label == k].mean(0), 100 * share[k], rtol=0.25, atol=0.1)
    again = found.draw(noised, totals, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, found.draw(noised, totals, torch.Generator().manual_seed(2)))
    larger = found.draw(noised, 10 * totals, torch.Generator().manual_seed(1))
    assert 9 < larger.sum() / drawn.sum() < 11
