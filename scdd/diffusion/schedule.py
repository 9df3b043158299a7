"""Noise schedules of the variance-preserving forward process ``z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) eps``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """``alpha_bar`` [T + 1], from 1 at t = 0 (clean) down to almost 0 at t = T (noise).

    Step t of Ho et al. 2020 (counted 1..T) is index t here, so index 0 is the data itself.
    """

    alpha_bar: Tensor

    @classmethod
    def linear(cls, steps: int = 1_000, first: float = 1e-4, last: float = 0.02) -> NoiseSchedule:
        """The linear-beta schedule of DDPM, rescaled when ``steps`` is not 1000 so that the ends stay."""
        if steps < 1:
            raise ValueError(f"steps={steps}; a schedule has at least one step")
        scale = 1_000 / steps
        beta = torch.linspace(first * scale, min(last * scale, 0.999), steps, dtype=torch.float64)
        return cls(torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - beta, 0)]).float())

    @classmethod
    def cosine(cls, steps: int = 1_000, offset: float = 0.008) -> NoiseSchedule:
        """``a_t = cos^2`` of the time (Nichol & Dhariwal 2021), no step above beta = 0.999."""
        if steps < 1:
            raise ValueError(f"steps={steps}; a schedule has at least one step")
        time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        wave = torch.cos((time + offset) / (1 + offset) * torch.pi / 2).square()
        beta = (1 - wave[1:] / wave[:-1]).clamp(max=0.999)
        return cls(torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - beta, 0)]).float())

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alpha_bar) - 1

    def signal(self, t: Tensor) -> Tensor:
        """``sqrt(a_t)`` as a column [B, 1]."""
        return self.alpha_bar.to(t.device)[t].sqrt()[:, None]

    def noise(self, t: Tensor) -> Tensor:
        """``sqrt(1 - a_t)`` as a column [B, 1]."""
        return (1 - self.alpha_bar.to(t.device)[t]).sqrt()[:, None]

    def add_noise(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """``z_t`` [B, d] of clean ``z0`` [B, d] at integer times ``t`` [B]."""
        return self.signal(t) * z0 + self.noise(t) * eps
