"""Consistency training (Song et al. 2023; Song & Dhariwal 2024): noise to data in one call, no teacher.

With ``x_s = x_0 + s eps`` (noise level s) a network learns the end of the deterministic path through ``x_s``,
``f(x_s, s) = x_0``. Skip scaling makes ``f(x, 0) = x`` by construction; training asks that neighbouring
levels of one cell under one noise agree, ``f(x_0 + s' eps, s') ~ sg f(x_0 + s eps, s)`` for ``s < s'``.
As in the improved techniques: no moving-average teacher, a pseudo-Huber distance, log-normal levels, a grid
that is refined while training and weights ``1 / (s' - s)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    # Maps (x scaled to unit variance [B, d], clock [B] in [0, 1]) to the network's output [B, d].
    Network = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class NoiseLevels:
    """Noise levels from 0 to ``largest``, and the scaling of Karras et al. 2022 for data of sd ``data``.

    ``smallest`` is the first level above 0. The paper's levels are for data of deviation 1/2; latents here
    have 1, and the log-normal's mean is moved by log 2 accordingly.
    """

    smallest: float = 0.002
    largest: float = 80.0
    data: float = 1.0
    power: float = 7.0
    log_mean: float = -0.4
    log_sd: float = 2.0

    def grid(self, count: int) -> Tensor:
        """Levels [count + 1]: 0, then ``count`` from smallest to largest, even in ``s^(1/7)``."""
        if count < 2:
            raise ValueError(f"count={count}; a grid has at least two levels above 0")
        low, high = self.smallest ** (1 / self.power), self.largest ** (1 / self.power)
        above = torch.linspace(low, high, count, dtype=torch.float64).pow(self.power)
        return torch.cat([torch.zeros(1, dtype=torch.float64), above]).float()

    def clock(self, level: Tensor) -> Tensor:
        """Log level, 0 at ``smallest`` (and below) and 1 at ``largest``: what the network is told."""
        floor = math.log(self.smallest)
        return (level.clamp_min(self.smallest).log() - floor) / (math.log(self.largest) - floor)

    def draw_pairs(self, grid: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Neighbouring levels ``s < s'`` [n] each, ``s'`` about log-normal."""
        cumulative = torch.erf((grid[1:].log() - self.log_mean) / (math.sqrt(2) * self.log_sd))
        below = torch.cat([cumulative.new_full((1,), -1.0), cumulative[:-1]])
        at = torch.multinomial(cumulative - below, n, replacement=True, generator=generator)
        return grid[at], grid[at + 1]


def grid_size(step: int, steps: int, first: int, last: int) -> int:
    """How fine the grid is at ``step`` of ``steps``: doubled from ``first`` to ``last`` at even intervals."""
    doublings = max(int(math.log2(last / first)), 0)
    interval = max(steps // (doublings + 1), 1)
    return int(min(first * 2 ** min(step // interval, doublings), last))


def consistency_map(network: Network, x: Tensor, level: Tensor, levels: NoiseLevels) -> Tensor:
    """``f(x, s) = c_skip x + c_out F(c_in x, clock(s))`` [B, d]; c_skip is 1 and c_out 0 at s = 0."""
    s, data = level[:, None], levels.data
    total = (s.square() + data**2).sqrt()
    output = network(x / total, levels.clock(level))
    return (data / total).square() * x + s * data / total * output


def pseudo_huber(error: Tensor) -> Tensor:
    """``sqrt(|e|^2 + c^2) - c`` [B], ``c = 0.00054 sqrt(d)``."""
    c = 0.00054 * error.shape[1] ** 0.5
    return (error.square().sum(1) + c * c).sqrt() - c


def consistency_loss(
    network: Network, x0: Tensor, eps: Tensor, lower: Tensor, upper: Tensor, levels: NoiseLevels
) -> Tensor:
    """Mean of ``|f(x0 + s' eps, s') - sg f(x0 + s eps, s)|_Huber / (s' - s)``, with one ``eps`` for both."""
    with torch.no_grad():
        aim = consistency_map(network, x0 + lower[:, None] * eps, lower, levels)
    found = consistency_map(network, x0 + upper[:, None] * eps, upper, levels)
    return (pseudo_huber(found - aim) / (upper - lower)).mean()


def consistency_step(network: Network, noise: Tensor, levels: NoiseLevels) -> Tensor:
    """Unit noise [B, d] to data in one call."""
    level = torch.full((len(noise),), levels.largest, device=noise.device, dtype=noise.dtype)
    return consistency_map(network, levels.largest * noise, level, levels)


def consistency_steps(
    network: Network, noise: Tensor, levels: NoiseLevels, steps: int, generator: torch.Generator
) -> Tensor:
    """One step, then ``steps - 1`` times: add fresh noise of a lower level, and map again.

    The noise has to be fresh: that of the path, ``(x - f) / s``, goes with f and would change its law.
    """
    x = consistency_step(network, noise, levels)
    between = levels.grid(steps + 1).flip(0)[1:steps].tolist() if steps > 1 else []
    for value in between:
        fresh = torch.randn(x.shape, generator=generator).to(x)
        level = torch.full((len(x),), value, device=x.device, dtype=x.dtype)
        x = consistency_map(network, x + value * fresh, level, levels)
    return x
