"""Embeddings of diffusion time and of conditions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scdd.nn.number_codes import STEPS, offsets_of_codes

if TYPE_CHECKING:
    from collections.abc import Sequence


class TimeEmbedding(nn.Module):
    """Times [B] in [0, 1] to [B, dim]: sinusoids of 1000 t, then a two-layer SiLU MLP."""

    rates: Tensor

    def __init__(self, dim: int, frequencies: int = 64):
        super().__init__()
        rates = torch.exp(-math.log(10_000.0) * torch.arange(frequencies) / frequencies)
        self.register_buffer("rates", rates, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:  # noqa: D102
        angle = 1_000.0 * t[:, None] * self.rates
        return self.mlp(torch.cat([angle.cos(), angle.sin()], 1))


class NumberEmbedding(nn.Module):
    """Codes [B] of one number (see :mod:`scdd.nn.number_codes`) to [B, dim].

    A two-layer SiLU MLP of the number and slow sinusoids of it; code ``-1`` has a vector of its own.
    """

    rates: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("rates", torch.tensor([0.5, 1.0, 2.0, 4.0]), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(1 + 2 * len(self.rates), dim), nn.SiLU(), nn.Linear(dim, dim))
        self.absent = nn.Parameter(torch.randn(dim))

    def forward(self, codes: Tensor) -> Tensor:  # noqa: D102
        offset = offsets_of_codes(codes.clamp_min(0)).to(self.absent.dtype)
        x = (offset / STEPS).clamp(-8, 8)[:, None]
        angle = x * self.rates
        found = self.mlp(torch.cat([x, angle.cos(), angle.sin()], 1))
        return torch.where((codes < 0)[:, None], self.absent.to(found.dtype), found)


class ConditionEmbedding(nn.Module):
    """Codes [B, F] of F conditions to their summed embeddings [B, dim].

    ``sizes`` says how many categories each has; 0 stands for a number. Code ``-1`` is the null token of its
    field: what is learnt under condition dropout and read by classifier-free guidance (Ho & Salimans 2022).
    """

    def __init__(self, sizes: Sequence[int], dim: int):
        super().__init__()
        self.sizes = tuple(sizes)
        self.tables = nn.ModuleList(
            nn.Embedding(size + 1, dim) if size else NumberEmbedding(dim) for size in sizes
        )

    def forward(self, codes: Tensor) -> Tensor:  # noqa: D102
        # A negative index is moved to the last row, which holds the null token.
        fields = [
            table(torch.where(code < 0, size, code) if size else code)
            for table, size, code in zip(self.tables, self.sizes, codes.unbind(1), strict=True)
        ]
        return torch.stack(fields).sum(0)


def drop_conditions(codes: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Set all conditions of a random ``share`` of the rows to null (-1)."""
    keep = torch.rand(len(codes), 1, generator=generator).to(codes.device) >= share
    return torch.where(keep, codes, -1)
