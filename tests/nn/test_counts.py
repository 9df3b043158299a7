"""The likelihood of counts against scipy, and the head that reads them off noised cells."""

import numpy as np
import torch
from scipy import stats

from scdd.nn.autoencoder import NOISE_PACE
from scdd.nn.count_head import CountHead
from scdd.nn.count_likelihood import negative_binomial_loss, negative_binomial_losses


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


CLASSES, SCORES = 2, 3


def head(genes=7):
    torch.manual_seed(0)
    found = CountHead(SCORES, genes, CLASSES, latent=4, kl_weight=0.3)
    log_share = torch.log_softmax(torch.randn(CLASSES + 1, genes + 1), 1)
    found.start_from(log_share)
    return found, log_share


def test_it_starts_at_the_shares_of_the_classes():
    found, log_share = head()
    likelihood, label = found.likelihood, torch.tensor([0, 1, -1])
    with torch.no_grad():
        likelihood.share.weight[:, :-CLASSES] = 0  # what the decoder adds
        features = found._features(torch.zeros(3, 4), found._told(label, torch.zeros(1)))
        rate = likelihood.rate(features.nan_to_num(), torch.tensor([10.0, 100.0, 1.0]))
    torch.testing.assert_close(rate, torch.tensor([[10.0], [100.0], [1.0]]) * log_share.exp()[:, :-1])


def test_the_loss_is_that_of_a_conditional_vae_a_gene():
    found, _ = head()
    found.eval()
    scores, label = torch.randn(5, SCORES), torch.tensor([0, 1, -1, 1, 0])
    counts, totals = torch.arange(35.0).reshape(5, 7), torch.full((5,), 300.0)
    terms = found.loss(scores, label, counts, totals, torch.Generator().manual_seed(3))
    told = torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 1], [1, 0]])
    mean, spread = found.encoder(torch.cat([scores, told], 1)), (NOISE_PACE * found.noise).exp()
    prior = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, spread), prior).sum(1).mean()
    z = mean + spread * torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    features = torch.cat([found.decoder(torch.cat([z, told], 1)), told], 1)
    share = torch.softmax(found.likelihood.share(features), 1)
    whole = torch.cat([counts, (300 - counts.sum(1)).clamp_min(0)[:, None]], 1)
    nb = negative_binomial_losses(whole, 300 * share + 1e-8, found.likelihood.log_theta).sum() / 5
    assert set(terms) == {"kl", "reconstruction"}
    torch.testing.assert_close(terms["kl"], 0.3 * kl / 7)
    torch.testing.assert_close(terms["reconstruction"], nb / 7)


def test_counts_follow_cell_class_total_and_seed():
    """A gene goes by the class alone, another by the first score alone."""
    found, _ = head(60)
    rng = torch.Generator().manual_seed(0)

    def cells(n):
        label, scores = torch.arange(n) % 3 - 1, torch.randn(n, SCORES, generator=rng)
        weight = torch.ones(n, 60)
        weight[label == 0, :20] = 5.0
        weight[scores[:, 0] > 0, 40:] = 5.0
        return label, scores, weight / weight.sum(1, keepdim=True)

    label, scores, share = cells(600)
    totals = torch.full((600,), 500.0)
    counts = torch.poisson(share * 500, generator=rng)
    optimiser = torch.optim.Adam(found.parameters(), 5e-3)
    for _ in range(200):
        optimiser.zero_grad()
        sum(found.loss(scores, label, counts, totals, rng).values()).backward()
        optimiser.step()
    found.eval()
    label, scores, share = cells(600)
    drawn = found.draw(scores, label, totals, torch.Generator().manual_seed(1))
    for k in (-1, 0, 1):
        for side in (scores[:, 0] > 0.2, scores[:, 0] < -0.2):
            here = (label == k) & side
            wanted = 500 * share[here].mean(0).reshape(3, 20).sum(1)
            np.testing.assert_allclose(
                drawn[here].mean(0).reshape(3, 20).sum(1), wanted, rtol=0.15, atol=5, err_msg=f"class {k}"
            )
    assert torch.equal(drawn, found.draw(scores, label, totals, torch.Generator().manual_seed(1)))
    assert not torch.equal(drawn, found.draw(scores, label, totals, torch.Generator().manual_seed(2)))
    larger = found.draw(scores, label, 10 * totals, torch.Generator().manual_seed(1))
    assert 9 < larger.sum() / drawn.sum() < 11
