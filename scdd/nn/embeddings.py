"""Embeddings of diffusion time and of conditions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

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


class ConditionEmbedding(nn.Module):
    """Codes [B, F] of F categorical conditions to their summed embeddings [B, dim].

    Code ``-1`` is the null token of its field: what is learnt under condition dropout and read by
    classifier-free guidance (Ho & Salimans 2022).
    """

    def __init__(self, sizes: Sequence[int], dim: int):
        super().__init__()
        self.sizes = tuple(sizes)
        self.tables = nn.ModuleList(nn.Embedding(size + 1, dim) for size in sizes)

    def forward(self, codes: Tensor) -> Tensor:  # noqa: D102
        # A negative index is moved to the last row, which holds the null token.
        fields = [
            table(torch.where(code < 0, size, code))
            for table, size, code in zip(self.tables, self.sizes, codes.unbind(1), strict=True)
        ]
        return torch.stack(fields).sum(0)


def drop_conditions(codes: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Set all conditions of a random ``share`` of the rows to null (-1)."""
    keep = torch.rand(len(codes), 1, generator=generator).to(codes.device) >= share
    return torch.where(keep, codes, -1)
