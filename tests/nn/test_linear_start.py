"""The linear start is the posterior mean of a Gaussian, and sampling it gives that Gaussian back."""

import pytest
import torch

from scdd.diffusion.parameterisation import clean_estimate
from scdd.diffusion.samplers import plan, sample
from scdd.diffusion.schedule import NoiseSchedule
from scdd.nn.linear_start import LinearStart
from scdd.nn.transformer import DiffusionTransformerNet, TransformerShape

GENES, RANK, CLASSES = 12, 3, 2


def start(kind="v", *, isotropic=False):
    generator = torch.Generator().manual_seed(0)
    schedule = NoiseSchedule.linear(1_000)
    found = LinearStart(GENES, CLASSES, RANK, schedule.alpha_bar, kind)
    found.anchor[:-1] = torch.randn(CLASSES, GENES, generator=generator)
    found.basis.copy_(torch.linalg.qr(torch.randn(GENES, RANK, generator=generator)).Q)
    found.spread.copy_(torch.tensor([[4.0, 2.0, 1.5], [0.5, 3.0, 1.0], [6.0, 4.0, 2.0]]))
    found.rest.fill_(0.3)
    if not isotropic:
        found.rest.copy_(0.2 + torch.rand(GENES, generator=generator))
    return found, schedule


def covariance(found, label):
    """Of a class's cells around their anchor: the spread along the basis, the rest across it."""
    across = torch.eye(GENES) - found.basis @ found.basis.mT
    return (
        found.basis @ torch.diag(found.spread[label]) @ found.basis.mT
        + across @ torch.diag(found.rest) @ across
    )


@pytest.mark.parametrize("kind", ["v", "x0", "eps"])
def test_it_is_the_posterior_mean_of_a_gaussian(kind):
    found, schedule = start(kind, isotropic=True)
    t = torch.tensor([100, 400, 900])
    x_t = torch.randn(3, GENES, generator=torch.Generator().manual_seed(1))
    codes = torch.tensor([[0], [1], [-1]])
    cells = found.centre(x_t, t / schedule.steps, codes)
    said = found.uncentred(found.prediction(cells), cells)
    clean = clean_estimate(kind, said, x_t, schedule.signal(t), schedule.noise(t))
    for row in range(3):
        a, sigma = schedule.alpha_bar[t[row]].double(), covariance(found, codes[row, 0]).double()
        mean = found.anchor[codes[row, 0]].double()  # -1 is the last, of zeros
        gain = a.sqrt() * sigma @ torch.linalg.inv(a * sigma + (1 - a) * torch.eye(GENES).double())
        wanted = mean + gain @ (x_t[row].double() - a.sqrt() * mean)
        torch.testing.assert_close(clean[row].double(), wanted, rtol=2e-4, atol=2e-4)


def test_sampling_it_gives_the_gaussian_back():
    found, schedule = start(isotropic=True)
    n = 4_000
    codes = torch.ones(n, 1, dtype=torch.long)
    noise = torch.randn(n, GENES, generator=torch.Generator().manual_seed(2))

    def denoise(x, t):
        cells = found.centre(x, t, codes)
        return found.uncentred(found.prediction(cells), cells), None

    last = 342
    x = sample(denoise, schedule, noise, plan(schedule, "dpm++", 30, "v", last=last))
    a = schedule.alpha_bar[last]
    torch.testing.assert_close(x.mean(0), a.sqrt() * found.anchor[1], atol=0.08, rtol=0)
    wanted = a * covariance(found, 1) + (1 - a) * torch.eye(GENES)
    assert ((x.T.cov() - wanted).norm() / wanted.norm()) < 0.1


def test_scores_are_in_standard_deviations_of_a_class():
    found, schedule = start()
    n, t = 4_000, torch.full((4_000,), 1)
    along = torch.randn(n, RANK, generator=torch.Generator().manual_seed(3)) * found.spread[0].sqrt()
    x = schedule.signal(t) * (found.anchor[0] + along @ found.basis.mT)
    scores = found.scores(found.centre(x, t / schedule.steps, torch.zeros(n, 1, dtype=torch.long)))
    torch.testing.assert_close(scores.std(0), torch.ones(RANK), atol=0.05, rtol=0)


@pytest.mark.parametrize("sampler", ["dpm++", "ddim", "ddpm", "flow"])
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_plans_end_at_the_last_time(sampler, steps):
    schedule = NoiseSchedule.linear(1_000)
    times = plan(schedule, sampler, steps, "v", last=342).times
    assert times[0] == 1_000
    assert times[-1] == 342
    assert len(times) == steps + 1
    assert (times.diff() < 0).all()
    with pytest.raises(ValueError, match="last is 1000"):
        plan(schedule, sampler, steps, "v", last=1_000)
    with pytest.raises(ValueError, match=r"steps is 700; it lies in 1\.\.658"):
        plan(schedule, sampler, 700, "v", last=342)


@pytest.mark.parametrize("mixer", ["attention", "subspace"])
def test_a_transformer_begins_as_it_and_moves_the_state_along_the_basis(mixer):
    found, schedule = start()
    torch.manual_seed(0)
    shape = TransformerShape(patch=5, width=16, heads=2, depth=2, mixer=mixer, counts=True, linear_rank=RANK)
    net = DiffusionTransformerNet(GENES, shape, conditions=[CLASSES], start=found)
    x_t = torch.randn(4, GENES, generator=torch.Generator().manual_seed(1))
    t, codes = torch.tensor([100, 400, 700, 900]) / schedule.steps, torch.tensor([[0], [1], [-1], [0]])
    none = torch.zeros(4, 0)
    cells = found.centre(x_t, t, codes)
    begins = found.uncentred(found.prediction(cells), cells)
    torch.testing.assert_close(net(x_t, t, codes, none).prediction, begins)
    assert net.enter(x_t, t, codes).shape == (4, 3 + 1, 16)  # patches of 5 of 12 genes, and the state
    with torch.no_grad():
        net.move.weight.normal_()
    moved = net(x_t, t, codes, none).prediction - begins
    torch.testing.assert_close(moved @ found.basis @ found.basis.mT, moved, atol=1e-4, rtol=1e-4)
    assert moved.norm(dim=1).min() > 0.1
