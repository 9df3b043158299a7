"""Consistency maps against the exact path of Gaussian data, for which the end is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scdd.diffusion.consistency import (
    NoiseLevels,
    consistency_loss,
    consistency_map,
    consistency_step,
    consistency_steps,
    grid_size,
    pseudo_huber,
)

LEVELS = NoiseLevels()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def level_of(clock: torch.Tensor) -> torch.Tensor:
    """Inverse of the clock."""
    low, high = math.log(LEVELS.smallest), math.log(LEVELS.largest)
    return (low + clock * (high - low)).exp()


def exact(u: torch.Tensor, clock: torch.Tensor) -> torch.Tensor:
    """The network whose map is ``x / sqrt(1 + s^2)``: the end of the path for data of N(0, 1)."""
    s = level_of(clock)[:, None]
    return u * ((1 + s.square()).sqrt() - 1) / s


def test_at_no_noise_the_map_is_the_identity_whatever_the_network():
    x = torch.randn(5, 3, generator=seeded())
    wild = lambda u, clock: 1e3 * torch.ones_like(u)  # noqa: E731
    torch.testing.assert_close(consistency_map(wild, x, torch.zeros(5), LEVELS), x)
    assert not torch.allclose(consistency_map(wild, x, torch.ones(5), LEVELS), x)


def test_the_skip_scaling_gives_the_exact_map_of_gaussian_data():
    x, level = torch.randn(64, 2, generator=seeded()), torch.logspace(-2, 1.9, 64)
    wanted = x / (1 + level[:, None].square()).sqrt()
    torch.testing.assert_close(consistency_map(exact, x, level, LEVELS), wanted, rtol=1e-4, atol=1e-5)
    noise = torch.randn(9, 2, generator=seeded(1))
    torch.testing.assert_close(consistency_step(exact, noise, LEVELS), noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_more_steps_keep_the_law_of_the_data(steps):
    noise = torch.randn(20_000, 1, generator=seeded())
    made = consistency_steps(exact, noise, LEVELS, steps, seeded(1))
    assert made.std().item() == pytest.approx(1, abs=0.03)
    assert made.mean().item() == pytest.approx(0, abs=0.03)


def test_more_steps_take_as_many_calls_and_their_own_noise():
    calls: list[float] = []

    def counted(u: torch.Tensor, clock: torch.Tensor) -> torch.Tensor:
        calls.append(level_of(clock)[0].item())
        return exact(u, clock)

    noise = torch.randn(4, 2, generator=seeded())
    first, again, other = (consistency_steps(counted, noise, LEVELS, 4, seeded(s)) for s in (1, 1, 2))
    assert len(calls) == 12
    assert calls[:4] == sorted(calls[:4], reverse=True)
    assert calls[0] == pytest.approx(80, rel=1e-3)
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, other)


def test_the_grid_begins_clean_and_is_refined_to_its_last_size():
    grid = LEVELS.grid(18)
    assert grid[0] == 0
    assert grid[1].item() == pytest.approx(0.002, rel=1e-3)
    assert grid[-1].item() == pytest.approx(80, rel=1e-3)
    assert (grid.diff() > 0).all()
    sizes = [grid_size(step, 1_000, 10, 160) for step in range(1_000)]
    assert sizes[0] == 10
    assert sizes[-1] == 160
    assert sorted(set(sizes)) == [10, 20, 40, 80, 160]
    assert sizes == sorted(sizes)
    assert {grid_size(step, 3, 10, 160) for step in range(3)} == {10, 20, 40}
    with pytest.raises(ValueError, match="at least two"):
        LEVELS.grid(1)


def test_pairs_are_neighbours_and_about_log_normal():
    grid = LEVELS.grid(200)
    lower, upper = LEVELS.draw_pairs(grid, 20_000, seeded())
    where = torch.searchsorted(grid, upper)
    torch.testing.assert_close(grid[where - 1], lower)
    logs = upper.log()
    assert logs.median().item() == pytest.approx(-0.4, abs=0.15)
    assert logs.std().item() == pytest.approx(2.0, abs=0.25)


def test_pseudo_huber_is_a_norm_for_large_and_a_square_for_small_errors():
    large, small = torch.full((1, 4), 3.0), torch.full((1, 4), 1e-5)
    assert pseudo_huber(large).item() == pytest.approx(6.0, rel=1e-3)
    c = 0.00054 * 2
    assert pseudo_huber(small.double()).item() == pytest.approx(4e-10 / (2 * c), rel=1e-3)


class Small(nn.Module):
    def __init__(self, width: int = 48):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, u: torch.Tensor, clock: torch.Tensor) -> torch.Tensor:
        c = clock[:, None]
        waves = [torch.sin(3 * c), torch.cos(3 * c), torch.sin(6 * c), torch.cos(6 * c)]
        return self.layers(torch.cat([u, c, *waves], 1))


def test_training_finds_the_map_from_noise_to_gaussian_data():
    """Data N(1.5, 0.5^2): one step from noise n is ``1.5 + 0.5 n``, up to the finite largest level."""
    torch.manual_seed(0)
    g, network, steps = seeded(), Small(), 900
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        x0 = 1.5 + 0.5 * torch.randn(256, 1, generator=g)
        grid = LEVELS.grid(grid_size(step, steps, 10, 80))
        loss = consistency_loss(
            network, x0, torch.randn(256, 1, generator=g), *LEVELS.draw_pairs(grid, 256, g), LEVELS
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    noise = torch.linspace(-2, 2, 41)[:, None]
    with torch.no_grad():
        made = consistency_step(network, noise, LEVELS)
    error = (made - (1.5 + 0.5 * noise)).abs()
    assert error.mean() < 0.1
    assert error.max() < 0.3
