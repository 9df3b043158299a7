"""Heads say what they should: expectations, draws and likelihoods against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from scdd.nn.autoencoder import AutoencoderNet
from scdd.nn.embeddings import ConditionEmbedding, drop_conditions
from scdd.nn.heads import GaussianHead, NegativeBinomialHead, Observed, expected_log1p


@pytest.mark.parametrize("mu", [0.01, 0.5, 3.0, 20.0, 300.0])
@pytest.mark.parametrize("theta", [0.3, 2.0, 50.0])
def test_expected_log1p_equals_the_sum_over_the_distribution(mu, theta):
    scale = 4.0
    k = torch.arange(20_000, dtype=torch.float64)
    mass = torch.from_numpy(stats.nbinom.pmf(k.numpy(), theta, theta / (theta + mu)))
    exact = (mass * torch.log1p(scale * k)).sum().item()
    got = expected_log1p(*(torch.tensor([[v]], dtype=torch.float64) for v in (mu, theta, scale))).item()
    assert got == pytest.approx(exact, rel=0.06, abs=1e-3)
    if mu <= 3 and theta >= 2:
        assert got == pytest.approx(exact, rel=5e-3)


def test_negative_binomial_loss_equals_scipy():
    torch.manual_seed(0)
    head = NegativeBinomialHead(4, 6).double()
    head.dispersion.data.normal_(std=0.1)
    features, totals = torch.randn(5, 4, dtype=torch.float64), torch.full((5,), 300.0, dtype=torch.float64)
    counts = torch.randint(0, 40, (5, 6)).double()
    share = torch.softmax(head.share(features), 1).detach().numpy()
    mu, theta = share * 300.0, head.log_theta.exp().detach().numpy()
    k = np.concatenate([counts.numpy(), 300.0 - counts.sum(1, keepdim=True).numpy()], 1)
    expected = -stats.nbinom.logpmf(k, theta, theta / (theta + mu)).sum(1).mean()
    np.testing.assert_allclose(head.rate(features, totals).detach().numpy(), mu[:, :-1])
    loss = head.loss(features, Observed(counts, counts, totals)).item()
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "nb"])
def test_deep_draws_approach_the_expectation(kind):
    torch.manual_seed(0)
    head = (GaussianHead if kind == "gaussian" else NegativeBinomialHead)(3, 8)
    if kind == "gaussian":
        head.ceiling.fill_(9)
        head.start_from(torch.linspace(0.3, 2.0, 8), torch.full((8,), 0.8), torch.full((8,), 0.1))
        torch.nn.init.zeros_(head.expectation.weight)
        torch.nn.init.zeros_(head.detection.weight)
    features, totals = torch.randn(2, 3), torch.tensor([500.0, 2_000.0])
    with torch.no_grad():
        expected = head.expected(features, totals)
        many = head.draw(features, totals, torch.Generator().manual_seed(1), depth=3_000)
        one = head.draw(features, totals, torch.Generator().manual_seed(1), depth=1)
    torch.testing.assert_close(many, expected, rtol=0.08, atol=0.05)
    assert (one - expected).abs().mean() > 3 * (many - expected).abs().mean()


def test_a_gaussian_draw_has_the_detected_share_of_zeros():
    head = GaussianHead(3, 4_000)
    head.ceiling.fill_(9)
    torch.nn.init.zeros_(head.detection.weight)
    torch.nn.init.constant_(head.detection.bias, -1.0)
    torch.nn.init.constant_(head.expectation.bias, 1.0)
    with torch.no_grad():
        row = head.draw(torch.zeros(1, 3), torch.ones(1), torch.Generator().manual_seed(0))
    assert (row > 0).float().mean().item() == pytest.approx(
        torch.sigmoid(torch.tensor(-1.0)).item(), abs=0.03
    )


def test_shared_draws_are_equal_where_the_features_are():
    torch.manual_seed(0)
    head = GaussianHead(3, 50)
    head.ceiling.fill_(9)
    features = torch.randn(1, 3).expand(2, 3).contiguous()
    with torch.no_grad():
        shared = head.draw(features, torch.ones(2), torch.Generator().manual_seed(1), depth=3, shared=True)
        apart = head.draw(features, torch.ones(2), torch.Generator().manual_seed(1), depth=3)
    assert torch.equal(shared[0], shared[1])
    assert not torch.equal(apart[0], apart[1])


def test_codes_are_standardised_outside_and_not_inside():
    net = AutoencoderNet(10, 3, (8,)).eval()
    net.latent_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    net.latent_std.copy_(torch.tensor([0.1, 3.0, 1.0]))
    x = torch.rand(4, 10)
    code = net.encode(x)
    torch.testing.assert_close(code * net.latent_std + net.latent_mean, net.encode_raw(x))
    torch.testing.assert_close(net.features(code), net.decoder(net.encode_raw(x)))


def test_a_variational_autoencoder_pays_for_its_codes():
    net = AutoencoderNet(10, 3, (8,), kl_weight=0.5)
    observed = Observed(torch.rand(6, 10), None, torch.ones(6))
    losses = net.loss(observed, torch.Generator().manual_seed(0))
    assert set(losses) == {"reconstruction", "kl"}
    assert losses["kl"] > 0


def test_the_null_condition_has_a_row_of_its_own():
    torch.manual_seed(0)
    embedding = ConditionEmbedding([3, 2], 4)
    codes = torch.tensor([[0, 1], [-1, 1], [2, -1], [-1, -1]])
    got = embedding(codes)
    first, second = (table.weight for table in embedding.tables)
    torch.testing.assert_close(got[0], first[0] + second[1])
    torch.testing.assert_close(got[1], first[3] + second[1])
    torch.testing.assert_close(got[2], first[2] + second[2])
    torch.testing.assert_close(got[3], first[3] + second[2])


def test_dropping_conditions_drops_all_of_a_row():
    codes = torch.ones(4_000, 2, dtype=torch.long)
    dropped = drop_conditions(codes, 0.25, torch.Generator().manual_seed(0))
    null = (dropped == -1).all(1)
    assert ((dropped == 1).all(1) | null).all()
    assert null.float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_no_draw_exceeds_what_was_seen():
    """A mean divided by a tiny detection rate once gave cells of 150,000 counts per 10,000."""
    torch.manual_seed(0)
    head = GaussianHead(3, 20)
    seen = torch.rand(30, 20) * 2
    head.loss(torch.randn(30, 3), Observed(seen, None, torch.ones(30)))
    torch.nn.init.constant_(head.expectation.bias, 5.0)
    torch.nn.init.constant_(head.detection.bias, -4.0)
    with torch.no_grad():
        row = head.draw(torch.zeros(50, 3), torch.ones(50), torch.Generator().manual_seed(0))
    assert row.max() > 0
    assert (row <= seen.max(0).values).all()


def test_expected_log1p_holds_in_float32_for_counts_that_are_almost_poisson():
    mu, scale = torch.tensor([[0.01, 1.0, 5.0]]), torch.full((1, 1), 5.0)
    for theta in (torch.full((3,), value) for value in (200.0, 1e4, 1e6)):
        exact = expected_log1p(mu.double(), theta.double(), scale.double())
        torch.testing.assert_close(expected_log1p(mu, theta, scale).double(), exact, rtol=1e-5, atol=0)


def test_dispersions_arrive_in_the_steps_that_weights_need():
    """Counts that are almost Poisson: from a start at 5, in 400 steps of Adam at its usual rate."""
    torch.manual_seed(0)
    head = NegativeBinomialHead(1, 4)
    share = torch.tensor([0.2, 0.3, 0.1, 0.4])
    head.start_from(torch.zeros(4), torch.ones(4), share)
    totals = torch.full((400,), 500.0)
    counts = torch.poisson(share * totals[:, None])
    seen = Observed(torch.log1p(counts), counts, counts.sum(1))
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
    for _ in range(400):
        optimiser.zero_grad()
        head.loss(torch.zeros(400, 1), seen).backward()
        optimiser.step()
    assert head.theta.min() > 50
