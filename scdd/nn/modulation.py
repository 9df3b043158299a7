"""Shift, scale and gate of every norm, from the condition (adaLN-Zero), in three sizes."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ModulationKind = Literal["full", "shared", "low_rank"]


class Modulation(nn.Module):
    """Context [B, D] to rows [B, D]: shift, scale, gate of 2 branches a block, then shift, scale of the end.

    In the published transformers this layer holds two thirds of the weights of a white-box block, though its
    input is a time and a class.

    ``"full"``: one linear map a block, as published (Peebles & Xie 2023), ``6 D^2`` weights a block.
    ``"shared"``: one linear map for all blocks and a learned offset for each (adaLN-single, Chen et al.
    2024).
    ``"low_rank"``: through ``rank`` numbers, which all blocks share.

    All start at zero, so that every gate is closed and the output is constant.
    """

    def __init__(self, width: int, depth: int, *, kind: ModulationKind = "full", rank: int = 64):
        super().__init__()
        self.width, self.depth, self.kind = width, depth, kind
        rows = 6 * depth + 2
        if kind not in get_args(ModulationKind):
            raise ValueError(f"modulation is {kind!r}; choose one of {', '.join(get_args(ModulationKind))}")
        low = kind == "low_rank"
        self.narrow = nn.Linear(width, rank, bias=False) if low else nn.Identity()
        self.project = nn.Linear(rank if low else width, (8 if kind == "shared" else rows) * width)
        if kind == "shared":
            self.offset = nn.Parameter(torch.zeros(depth, 6 * width))
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, context: Tensor) -> tuple[Tensor, ...]:
        """``6 depth + 2`` rows [B, D], pieces of one tensor."""
        found = self.project(self.narrow(F.silu(context)))
        if self.kind == "shared":
            blocks, end = found.split([6 * self.width, 2 * self.width], dim=1)
            blocks = blocks[:, None] + self.offset
            found = torch.cat([blocks.flatten(1), end], dim=1)
        return found.chunk(6 * self.depth + 2, dim=1)
