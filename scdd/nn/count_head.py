"""Counts read off the tokens of a noised cell: a negative binomial whose mean the transformer says."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scdd.nn.count_draws import draw_negative_binomial
from scdd.nn.count_likelihood import negative_binomial_loss
from scdd.nn.heads import DISPERSION_PACE

_FIRST_THETA = 5.0


class CountHead(nn.Module):
    """``count_g ~ NB(total rho_g, theta_g)``, ``rho = softmax(offset[class] + W tokens)``.

    The offsets are the log shares of each class (last: of all cells), so that the tokens need only say in
    what a cell differs from its class. The last column stands for all genes that are not modelled.
    """

    def __init__(self, width: int, patch: int, genes: int, classes: int):
        super().__init__()
        self.genes = genes
        self.enter, self.rest = nn.Linear(width, patch, bias=False), nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.enter.weight)
        nn.init.zeros_(self.rest.weight)
        self.offset = nn.Parameter(torch.zeros(classes + 1, genes + 1))
        self.dispersion = nn.Parameter(torch.full((genes + 1,), math.log(_FIRST_THETA) / DISPERSION_PACE))

    def start_from(self, log_share: Tensor, log_theta: Tensor) -> None:
        """Begin at the shares of every class and of all cells, [C + 1, G + 1], and at dispersions [G + 1]."""
        with torch.no_grad():
            self.offset.copy_(log_share)
            self.dispersion.copy_(log_theta / DISPERSION_PACE)

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion of every gene [G]."""
        return (DISPERSION_PACE * self.dispersion[:-1]).exp()

    def rate(self, tokens: Tensor, label: Tensor, totals: Tensor) -> Tensor:
        """Means [B, G + 1] of the tokens [B, N, D] of cells of classes [B] (-1: not given) and totals [B]."""
        own = self.enter(tokens).flatten(1)[:, : self.genes]
        rest = self.rest(tokens).mean(1)
        offset = self.offset[torch.where(label < 0, len(self.offset) - 1, label)]
        logits = torch.cat([own, rest], 1).float() + offset
        return torch.softmax(logits, 1) * totals[:, None]

    def loss(self, tokens: Tensor, label: Tensor, counts: Tensor, totals: Tensor) -> Tensor:
        """``-log p(counts)`` a gene, mean over cells."""
        others = (totals - counts.sum(1)).clamp_min(0)
        every = torch.cat([counts, others[:, None]], 1)
        mu = self.rate(tokens, label, totals) + 1e-8
        return negative_binomial_loss(every, mu, DISPERSION_PACE * self.dispersion) / self.genes

    def draw(self, rate: Tensor, generator: torch.Generator) -> Tensor:
        """Counts [B, G] of means [B, G]."""
        return draw_negative_binomial(rate, self.theta, generator)
