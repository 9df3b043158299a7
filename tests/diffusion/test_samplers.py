"""Samplers on data whose best denoiser is known: the right moments in the calls they promise."""

from __future__ import annotations

import pytest
import torch

from scdd.diffusion.parameterisation import target
from scdd.diffusion.samplers import plan, sample
from scdd.diffusion.schedule import NoiseSchedule

MEAN, VARIANCE = 1.5, 0.25


def optimal(schedule, kind, calls=None):
    """The best denoiser of N(MEAN, VARIANCE), in any parameterisation; counts its calls."""

    def denoise(x, t):
        if calls is not None:
            calls.append(float(t[0]))
        step = (t * schedule.steps).round().long()
        a, s = schedule.signal(step), schedule.noise(step)
        clean = (MEAN * s.square() + a * VARIANCE * x) / (a.square() * VARIANCE + s.square())
        return target(kind, clean, (x - a * clean) / s, a, s), None

    return denoise


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize(
    "schedule", [NoiseSchedule.linear(), NoiseSchedule.cosine()], ids=["linear", "cosine"]
)
@pytest.mark.parametrize(
    ("sampler", "steps", "off"),
    [("ddpm", 1000, 0.02), ("ddim", 100, 0.04), ("dpm++", 20, 0.03), ("flow", 100, 0.03)],
)
def test_moments_of_the_data(schedule, kind, sampler, steps, off):
    calls = []
    noise = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0))
    chosen = plan(schedule, sampler, steps, kind)
    x = sample(optimal(schedule, kind, calls), schedule, noise, chosen, seed=1)
    assert len(calls) == steps
    assert calls == sorted(calls, reverse=True)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert x.var().item() == pytest.approx(VARIANCE, abs=off)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 999, 1000])
def test_times_fall_from_noise_to_data(sampler, steps):
    for schedule in (NoiseSchedule.linear(), NoiseSchedule.cosine()):
        chosen = plan(schedule, sampler, steps, "v")
        assert len(chosen.times) == steps + 1
        assert chosen.times[0] == 1000
        assert chosen.times[-1] == 0
        assert (chosen.times[:-1] > chosen.times[1:]).all()
        assert chosen.coefficients.isfinite().all()


def test_a_second_order_solver_needs_fewer_calls():
    schedule = NoiseSchedule.linear()
    noise = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))

    def drawn(sampler, steps):
        return sample(optimal(schedule, "eps"), schedule, noise, plan(schedule, sampler, steps, "eps"))

    exact = drawn("ddim", 1000)
    errors = {sampler: (drawn(sampler, 20) - exact).norm().item() for sampler in ("dpm++", "ddim")}
    assert errors["dpm++"] < 0.5 * errors["ddim"]


def test_guidance_goes_beyond_the_condition():
    schedule = NoiseSchedule.cosine()
    conditional = optimal(schedule, "x0")

    def denoise(x, t):
        kept, _ = conditional(x, t)
        return kept, kept - 1.0

    noise, chosen = torch.randn(200, 3), plan(schedule, "ddim", 25, "x0")
    plain = sample(denoise, schedule, noise, chosen, guidance=1.0)
    torch.testing.assert_close(plain, sample(conditional, schedule, noise, chosen))
    assert sample(denoise, schedule, noise, chosen, guidance=2.0).mean() > plain.mean() + 0.5


def test_a_stochastic_sampler_follows_its_seed():
    schedule = NoiseSchedule.linear()
    noise, chosen = torch.zeros(5, 3), plan(schedule, "ddpm", 20, "v")
    first, again, other = (
        sample(optimal(schedule, "v"), schedule, noise, chosen, seed=seed) for seed in (3, 3, 4)
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first - other).abs().max() > 0.1


def test_the_cosine_schedule_ends_in_noise():
    alpha = NoiseSchedule.cosine().alpha_bar
    assert alpha[0] == 1
    assert (alpha[1:] < alpha[:-1]).all()
    assert alpha[500].item() == pytest.approx(0.49, abs=0.02)
    assert alpha[-1] < 1e-4


@pytest.mark.parametrize(("sampler", "steps"), [("euler", 10), ("ddim", 0), ("ddim", 1001)])
def test_refuses(sampler, steps):
    with pytest.raises(ValueError, match=r"sampler|steps"):
        plan(NoiseSchedule.linear(), sampler, steps, "eps")
