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
    cut off again. With ``own_weights`` every patch has a matrix of its own: unlike those of an image,
    patches of genes are not alike, and what a gene means need not be guessed from the position.
    """

    def __init__(
        self, genes: int, patch: int, width: int, *, learned: bool = True, own_weights: bool = False
    ):
        super().__init__()
        if not 1 <= patch <= genes:
            raise ValueError(f"patch is {patch}; choose 1 to the {genes} genes")
        self.genes, self.patch, self.tokens = genes, patch, -(-genes // patch)
        self.own_weights = own_weights
        if own_weights:
            # of the same spread as one shared matrix, whose two sides make Xavier's bound
            self.weight = nn.Parameter(torch.empty(self.tokens, patch, width))
            nn.init.uniform_(self.weight, -math.sqrt(6 / (patch + width)), math.sqrt(6 / (patch + width)))
        else:
            self.weight = nn.Parameter(torch.empty(width, patch))
            nn.init.xavier_uniform_(self.weight)
        self.bias = nn.Parameter(torch.zeros(width))
        table = sinusoids(self.tokens, width)
        if learned:
            # one scalar of a gene leaves nothing to start from but its position: keep the two of one size
            self.position = nn.Parameter(table)
        else:
            self.register_buffer("position", table)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of cells [B, G] as they are."""
        patches = F.pad(x, (0, self.tokens * self.patch - self.genes)).unflatten(1, (self.tokens, self.patch))
        if self.own_weights:
            tokens = torch.einsum("bnp,npd->bnd", patches, self.weight.to(x.dtype)) + self.bias
        else:
            tokens = F.linear(patches, self.weight, self.bias)
        return tokens + self.position.to(tokens.dtype)

    def noised(self, x0: Tensor, signal: Tensor, noise: Tensor, seed: Tensor, dtype: torch.dtype) -> Tensor:
        """Tokens of ``signal x0 + noise eps``, eps drawn from ``seed`` where it is needed; in ``dtype``."""
        tables = (table.to(dtype) for table in (self.weight, self.bias, self.position))
        return noise_patch_embed(x0, signal, noise, *tables, seed=seed)

    def leave(self, patches: Tensor) -> Tensor:
        """[B, N, P] back to [B, G]."""
        return patches.flatten(1)[:, : self.genes]


class PatchReadout(nn.Module):
    """``x_n = W_n token_n``: tokens [B, N, D] to [B, G], a matrix for every patch, zeros at the start."""

    def __init__(self, genes: int, patch: int, width: int):
        super().__init__()
        self.genes = genes
        self.weight = nn.Parameter(torch.zeros(-(-genes // patch), width, patch))

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        found = torch.einsum("bnd,ndp->bnp", tokens, self.weight.to(tokens.dtype))
        return found.flatten(1)[:, : self.genes]


def sinusoids(tokens: int, width: int) -> Tensor:
    """Sines and cosines of the position [tokens, width], all columns of use, wavelengths up to 10,000."""
    half = -(-width // 2)
    rate = torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
    angle = torch.arange(tokens)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width]
