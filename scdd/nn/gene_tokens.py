"""Cells as tokens: runs of genes, embedded linearly, with an honest remainder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scdd.kernels import noise_patch_embed


class GeneTokens(nn.Module):
    """``tokens[b, n] = W patch_n(x_b) + bias + position[n]``: [B, G] -> [B, N, D], ``N = ceil(G / P)``.

    With ``patch=1`` every gene is a token: ``W`` is the direction of expression, ``position`` the gene.
    Where P does not divide G the last patch is filled up with zeros, and what the network says of them is
    cut off again.
    """

    def __init__(self, genes: int, patch: int, width: int, *, learned: bool = True):
        super().__init__()
        if not 1 <= patch <= genes:
            raise ValueError(f"patch is {patch}; choose 1 to the {genes} genes")
        self.genes, self.patch, self.tokens = genes, patch, -(-genes // patch)
        self.weight = nn.Parameter(torch.empty(width, patch))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.weight)
        table = sinusoids(self.tokens, width)
        if learned:
            # one scalar of a gene leaves nothing to start from but its position: keep the two of one size
            self.position = nn.Parameter(table)
        else:
            self.register_buffer("position", table)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of cells [B, G] as they are."""
        patches = F.pad(x, (0, self.tokens * self.patch - self.genes)).unflatten(1, (self.tokens, self.patch))
        tokens = F.linear(patches, self.weight, self.bias)
        return tokens + self.position.to(tokens.dtype)

    def noised(self, x0: Tensor, signal: Tensor, noise: Tensor, seed: Tensor, dtype: torch.dtype) -> Tensor:
        """Tokens of ``signal x0 + noise eps``, eps drawn from ``seed`` where it is needed; in ``dtype``."""
        tables = (table.to(dtype) for table in (self.weight, self.bias, self.position))
        return noise_patch_embed(x0, signal, noise, *tables, seed=seed)

    def leave(self, patches: Tensor) -> Tensor:
        """[B, N, P] back to [B, G]."""
        return patches.flatten(1)[:, : self.genes]


def sinusoids(tokens: int, width: int) -> Tensor:
    """Sines and cosines of the position [tokens, width], all columns of use, wavelengths up to 10,000."""
    half = -(-width // 2)
    rate = torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
    angle = torch.arange(tokens)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]
