"""The algebra of diffusion, and the traps of one-step generation, against closed forms."""

from __future__ import annotations

import pytest
import torch

from scdd.diffusion.mean_flow import mean_flow_step, mean_flow_target, sample_times, total_derivative
from scdd.diffusion.one_step import code_then_noise, ddim
from scdd.diffusion.parameterisation import clean_estimate, target
from scdd.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.linear()


def optimal(mean: float, variance: float, kind: str = "x0"):
    """The best denoiser of data N(mean, variance): E[z0 | z_t], in any parameterisation."""

    def denoise(z_t, t):
        a = SCHEDULE.alpha_bar[(t * SCHEDULE.steps).round().long()][:, None]
        clean = mean + a.sqrt() * variance / (a * variance + 1 - a) * (z_t - a.sqrt() * mean)
        eps = (z_t - a.sqrt() * clean) / (1 - a).sqrt()
        return target(kind, clean, eps, a.sqrt(), (1 - a).sqrt())

    return denoise


def gain(variance: float, t_star: int) -> float:
    """d z0^ / d code of the one-step map under the optimal denoiser."""
    code = torch.zeros(1, 1, requires_grad=True)
    clean = code_then_noise(optimal(0.3, variance), SCHEDULE, "x0", code, torch.ones(1, 1), t_star)
    return torch.autograd.grad(clean.sum(), code)[0].item()


@pytest.mark.parametrize(
    ("t", "alpha_bar"), [(0, 1.0), (100, 0.897), (250, 0.524), (500, 0.079), (1000, 4.0e-5)]
)
def test_the_linear_schedule_has_the_published_values(t, alpha_bar):
    assert SCHEDULE.alpha_bar[t].item() == pytest.approx(alpha_bar, rel=0.02)


def test_a_shorter_schedule_ends_in_as_much_noise():
    assert NoiseSchedule.linear(100).alpha_bar[-1] < 1e-3
    with pytest.raises(ValueError, match="at least one step"):
        NoiseSchedule.linear(0)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_the_true_target_gives_back_the_clean_latent(kind):
    z0, eps = torch.randn(2, 5, 4, dtype=torch.float64)
    t = torch.tensor([1, 100, 250, 600, 999])
    signal, noise = SCHEDULE.signal(t).double(), SCHEDULE.noise(t).double()
    z_t = signal * z0 + noise * eps
    output = target(kind, z0, eps, signal, noise)
    torch.testing.assert_close(clean_estimate(kind, output, z_t, signal, noise), z0, rtol=1e-6, atol=1e-6)


def test_unknown_parameterisation():
    with pytest.raises(ValueError, match="eps, v or x0"):
        clean_estimate("score", *torch.ones(4, 1, 1))


@pytest.mark.parametrize(("t_star", "expected"), [(100, 0.72), (250, 0.25), (500, 2.5e-2), (1000, 1.2e-5)])
def test_the_gain_on_the_code_is_a_l_over_a_l_plus_1_minus_a(t_star, expected):
    assert gain(0.3, t_star) == pytest.approx(expected, rel=0.05)


def test_a_plain_one_step_model_at_t_equal_T_collapses_to_the_class_mean():
    codes = torch.randn(256, 1, generator=torch.Generator().manual_seed(0))
    at_end = code_then_noise(optimal(0.3, 0.3), SCHEDULE, "x0", codes, torch.zeros(256, 1), 1000)
    assert at_end.std() < 1e-3
    torch.testing.assert_close(at_end.mean(), torch.tensor(0.3), atol=1e-3, rtol=0)
    assert code_then_noise(optimal(0.3, 0.3), SCHEDULE, "x0", codes, torch.zeros(256, 1), 250).std() > 0.2


def test_standardising_latents_multiplies_the_gain():
    raw, standardised = gain(0.0025, 250), gain(0.30, 250)
    assert standardised / raw > 80


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_many_ddim_steps_restore_the_variance_that_one_step_loses(kind):
    noise = torch.randn(4_096, 1, generator=torch.Generator().manual_seed(0))
    spread = [ddim(optimal(0.3, 0.3, kind), SCHEDULE, kind, noise, k).std().item() for k in (1, 5, 250)]
    assert spread[0] < 0.02
    assert spread[0] < spread[1] < spread[2]
    assert spread[2] == pytest.approx(0.3**0.5, rel=0.05)


def test_skip_keeps_hold_of_the_starting_code():
    noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plain, blended = (
        torch.autograd.grad(ddim(optimal(0.0, 0.01), SCHEDULE, "x0", noise, 5, skip=s).sum(), noise)[0].norm()
        for s in (False, True)
    )
    assert blended > plain


def test_total_derivative_equals_forward_mode():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3)).double()

    def u(z, t, span):
        return net(torch.cat([z, t[:, None], span[:, None]], 1))

    z, v = torch.randn(2, 7, 3, dtype=torch.float64)
    t, span = torch.rand(2, 7, dtype=torch.float64)
    one = torch.ones_like(t)
    _, exact = torch.func.jvp(u, (z, t, span), (v, one, one))
    torch.testing.assert_close(total_derivative(u, z, t, span, v), exact, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        mean_flow_target(u, z, t, span, v), v - span[:, None] * exact, rtol=1e-3, atol=1e-4
    )


def test_mean_flow_of_a_point_mass_is_exact():
    point = torch.tensor([[2.0, -1.0]])

    def u(z, t, span):
        return (z - point) / t[:, None]  # every path from z at time t leads to the point

    z, t = torch.randn(6, 2), torch.full((6,), 0.7)
    span = torch.linspace(0, 0.6, 6)
    torch.testing.assert_close(
        mean_flow_target(u, z, t, span, u(z, t, span)), u(z, t, span), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(mean_flow_step(u, torch.randn(6, 2)), point.expand(6, 2))


def test_times_are_ordered_and_half_of_them_instantaneous():
    t, span = sample_times(10_000, torch.Generator().manual_seed(0))
    assert ((t > 0) & (t < 1) & (span >= 0) & (span <= t)).all()
    assert (span == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
