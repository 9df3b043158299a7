"""The conditional denoiser of latent codes: residual MLP blocks under adaptive layer norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scdd.kernels import gated_residual_modulate, modulate
from scdd.nn.embeddings import ConditionEmbedding, TimeEmbedding

if TYPE_CHECKING:
    from collections.abc import Sequence


class Denoiser(nn.Module):
    """``f(z_t, t, span, condition)`` [B, d] -> [B, d].

    Each of ``depth`` blocks computes ``h + gate * MLP(LN(h) (1 + scale) + shift)``, with shift, scale and
    gate linear in the embedded time and conditions and zero at the start (adaLN-Zero, Peebles & Xie 2023).
    ``span`` is the interval of an average-velocity map (MeanFlow); it is 0 for a plain denoiser.
    """

    def __init__(self, latent: int, conditions: Sequence[int], *, width: int = 256, depth: int = 3):
        super().__init__()
        self.enter = nn.Linear(latent, width)
        self.time, self.span = TimeEmbedding(width), TimeEmbedding(width)
        self.condition = ConditionEmbedding(conditions, width)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        # Shift, scale and gate of every block, then shift and scale of the last norm, from one GEMM.
        self.modulation = nn.Linear(width, (3 * depth + 2) * width)
        self.leave = nn.Linear(width, latent)
        for layer in (self.modulation, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, t: Tensor, codes: Tensor, span: Tensor | None = None) -> Tensor:  # noqa: D102
        context = self.time(t) + self.condition(codes)
        context = context + self.span(torch.zeros_like(t) if span is None else span)
        rows = self.modulation(nn.functional.silu(context)).chunk(3 * len(self.branches) + 2, dim=1)
        h = self.enter(z)
        y = modulate(h, rows[0], rows[1])
        for number, branch in enumerate(self.branches):
            gate, shift, scale = rows[3 * number + 2 : 3 * number + 5]
            # The gated residual of one block and the norm of the next are one fused pass.
            y, h = gated_residual_modulate(branch(y), shift, scale, residual=h, gate=gate)
        return self.leave(y)
