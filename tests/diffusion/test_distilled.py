"""Teacher and student maps against data for which the deterministic path is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scdd.diffusion.distilled import student_loss, student_map, teacher_map
from scdd.diffusion.one_step import ddim
from scdd.diffusion.parameterisation import target
from scdd.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.linear()
MEAN, VARIANCE = 0.7, 0.3


def levels(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a = SCHEDULE.alpha_bar.double()[(t * SCHEDULE.steps).round().long()][:, None]
    return a.sqrt(), (1 - a).sqrt()


def as_output(kind: str, clean: torch.Tensor, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    signal, noise = levels(t)
    return target(kind, clean, (z_t - signal * clean) / noise, signal, noise)


def gaussian(z_t: torch.Tensor, t: torch.Tensor, mean: float = MEAN) -> torch.Tensor:
    """``E[z0 | z_t]`` of data N(mean, VARIANCE)."""
    signal, noise = levels(t)
    gain = signal * VARIANCE / (signal.square() * VARIANCE + noise.square())
    return mean + gain * (z_t - signal * mean)


def exact(noise: torch.Tensor) -> torch.Tensor:
    """The end of the path from ``z_T``: deviations keep their quantile."""
    signal, sigma = levels(torch.ones(len(noise)))
    spread = (signal.square() * VARIANCE + sigma.square()).sqrt()
    return MEAN + VARIANCE**0.5 * (noise - signal * MEAN) / spread


NOISE = torch.randn(256, 1, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_the_teacher_follows_the_exact_path_of_gaussian_data(kind):
    def denoise(z_t, t):
        return as_output(kind, gaussian(z_t, t), z_t, t), None

    made = teacher_map(denoise, SCHEDULE, kind, NOISE, 20)
    torch.testing.assert_close(made, exact(NOISE), atol=0.04, rtol=0)
    assert not made.requires_grad


def test_guidance_moves_the_teacher_away_from_the_mean_of_all():
    def denoise(z_t, t):
        return (as_output("v", gaussian(z_t, t, mean), z_t, t) for mean in (MEAN, 0.0))

    plain, guided = (
        teacher_map(lambda z, t: tuple(denoise(z, t)), SCHEDULE, "v", NOISE, 20, guidance=w)
        for w in (0.0, 1.0)
    )
    # The score of a Gaussian is linear in its mean: 2 s(0.7) - s(0) is the score of mean 1.4.
    torch.testing.assert_close(plain, exact(NOISE), atol=0.04, rtol=0)
    torch.testing.assert_close(guided, plain + MEAN, atol=0.02, rtol=0)


def mixture(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """``E[z0 | z_t]`` of two narrow Gaussians at -1 and 1."""
    signal, noise = levels(t)
    centres, var = torch.tensor([[-1.0, 1.0]], dtype=torch.float64), 0.05
    total = signal.square() * var + noise.square()
    weight = torch.softmax(-(z_t - signal * centres).square() / (2 * total), 1)
    each = centres + signal * var / total * (z_t - signal * centres)
    return (weight * each).sum(1, keepdim=True)


def test_a_few_steps_of_the_teacher_are_nearer_its_path_than_as_many_of_ddim():
    out = lambda z, t: as_output("v", mixture(z, t), z, t)  # noqa: E731
    path = ddim(out, SCHEDULE, "v", NOISE, 1_000)
    quick = (teacher_map(lambda z, t: (out(z, t), None), SCHEDULE, "v", NOISE, 20) - path).abs().mean()
    plain = (ddim(out, SCHEDULE, "v", NOISE, 20) - path).abs().mean()
    assert quick < 0.6 * plain
    assert quick < 0.03


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1).double()

    def forward(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert (t == 1).all()
        return self.layer(z)


def test_a_student_regressed_on_the_teacher_becomes_its_map():
    torch.manual_seed(0)
    student = Linear()
    clean = teacher_map(lambda z, t: (as_output("v", gaussian(z, t), z, t), None), SCHEDULE, "v", NOISE, 20)
    optimiser = torch.optim.LBFGS(student.parameters(), max_iter=50)

    def closure():
        optimiser.zero_grad()
        loss = student_loss(student, SCHEDULE, NOISE, clean)
        loss.backward()
        return loss

    optimiser.step(closure)
    fresh = torch.randn(64, 1, generator=torch.Generator().manual_seed(5)).double()
    torch.testing.assert_close(student_map(student, SCHEDULE, fresh), exact(fresh), atol=0.03, rtol=0)


def test_a_teacher_that_predicts_v_starts_the_student_at_the_mean():
    out = lambda z, t: as_output("v", gaussian(z, t), z, t)  # noqa: E731
    start = student_map(out, SCHEDULE, NOISE)
    torch.testing.assert_close(start, torch.full_like(start, MEAN), atol=0.01, rtol=0)


def test_a_student_is_differentiable_in_its_noise():
    noise = NOISE[:4].clone().requires_grad_()
    student_map(Linear(), SCHEDULE, noise).sum().backward()
    assert (noise.grad != 0).all()
