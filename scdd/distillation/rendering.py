"""From clean latents to the expression rows that are written out.

A set of nothing but means serves linear models and distances and ruins trees: with every row dense, any
gene separates any two classes, and a forest splits on noise. A set of nothing but sparse draws wastes the
denoising. So the rows of a class form a *depth spectrum*: row q is the mean of m_q draws of its cell, m_q
geometric from 1 (count-like) to infinity (the expectation). Row q of every class sees the same random
numbers, so that a gene on which two classes agree takes one value in both and cannot tell them apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.nn.autoencoder import AutoencoderNet

DEEPEST = 64
RENDERINGS = ("spectrum", "mean", "draw")


class Background(NamedTuple):
    """The profile that a lone mean row is shrunk towards: balanced mean and within-class sd, float32 [G]."""

    mean: Tensor
    sd: Tensor

    def shrink(self, x: Tensor, threshold: float) -> Tensor:
        """Soft-threshold ``(x - mean) / sd``: the nearest shrunken centroids of Tibshirani et al. 2002."""
        score = (x - self.mean) / self.sd
        return self.mean + torch.sign(score) * (score.abs() - threshold).clamp_min(0) * self.sd


class Renderer:
    """Turns latents [M, d] into expression [M, G]; ``rank`` [M] numbers the rows within each class."""

    def __init__(
        self, net: AutoencoderNet, rank: Tensor, sizes: Tensor, totals: Tensor, background: Background,
        *, rendering: str, shrinkage: float, seed: int,
    ):  # fmt: skip
        if rendering not in RENDERINGS:
            raise InputError(f"rendering={rendering!r}; choose one of {', '.join(RENDERINGS)}")
        self.net, self.rank, self.totals, self.seed = net, rank, totals, seed
        self.background, self.shrinkage = background, shrinkage
        self.depth = torch.tensor(
            [depth_of(int(r), int(n), rendering) for r, n in zip(rank, sizes, strict=True)]
        )
        self.alone = sizes == 1

    def expected(self, latent: Tensor, rows: Tensor) -> Tensor:
        """The expectation of the given rows, differentiable in the latent."""
        x = self.net.decode(latent, self.totals[rows])
        shrunk = self.background.shrink(x, self.shrinkage)
        return torch.where(self.alone[rows, None], shrunk, x)

    @torch.no_grad()
    def rows(self, latent: Tensor) -> Tensor:
        """The rows as they are written: the mean of each row's draws, never negative."""
        everything = torch.arange(len(latent))
        out = self.expected(latent, everything).clamp_min(0)
        features = self.net.features(latent)
        for rank in self.rank.unique().tolist():
            for depth in self.depth[self.rank == rank].unique().tolist():
                here = ((self.rank == rank) & (self.depth == depth)).nonzero()[:, 0]
                if not math.isinf(depth):
                    stream = torch.Generator().manual_seed(self.seed + 7_919 * rank)
                    out[here] = self.net.head.draw(
                        features[here], self.totals[here], stream, depth=int(depth), shared=True
                    )
        return out


def depth_of(rank: int, size: int, rendering: str) -> float:
    """Draws averaged in row ``rank`` of a class of ``size`` rows; infinity is the expectation."""
    if rendering == "draw":
        return 1.0
    if rendering == "mean" or rank == size - 1:
        return math.inf
    return float(round(DEEPEST ** (rank / (size - 1))))
