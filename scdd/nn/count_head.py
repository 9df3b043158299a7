"""Counts read off the tokens of a noised cell: a negative binomial whose mean the transformer says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scdd.nn.count_likelihood import negative_binomial_loss
from scdd.nn.gene_tokens import PatchReadout
from scdd.nn.heads import DISPERSION_PACE

_WIDTH = 256


class CountHead(nn.Module):
    """``count_g ~ NB(total rho_g, theta_g)``, ``rho = softmax(offset[class] + f(cell) + W_n token_n)``.

    The offsets are the log shares of each class (last: of all cells). ``f`` is a perceptron of what is known
    of the cell as a whole, its coordinates in :class:`scdd.nn.linear_start.LinearStart` and the mean of its
    tokens, so that single tokens need only say what is left. The last column stands for all genes that are
    not modelled.
    """

    def __init__(self, width: int, patch: int, genes: int, classes: int, rank: int):
        super().__init__()
        self.genes = genes
        self.own = PatchReadout(genes, patch, width)
        self.offset = nn.Parameter(torch.zeros(classes + 1, genes + 1))
        self.cell = nn.Sequential(nn.Linear(rank + width, _WIDTH), nn.LayerNorm(_WIDTH), nn.SiLU())
        self.shift = nn.Linear(_WIDTH, genes + 1)
        nn.init.zeros_(self.shift.weight)
        nn.init.zeros_(self.shift.bias)
        self.dispersion = nn.Parameter(torch.zeros(genes + 1))

    def start_from(self, log_share: Tensor, log_theta: Tensor) -> None:
        """Begin at the shares of every class and of all cells, [C + 1, G + 1], and at dispersions [G + 1]."""
        with torch.no_grad():
            self.offset.copy_(log_share)
            self.dispersion.copy_(log_theta / DISPERSION_PACE)

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion of every gene [G]."""
        return (DISPERSION_PACE * self.dispersion[:-1]).exp()

    def share(self, tokens: Tensor, scores: Tensor, codes: Tensor) -> Tensor:
        """Shares [B, G + 1] of cells with tokens [B, N, D], scores [B, R] and conditions [B, F]."""
        label = codes[:, 0]
        whole = self.shift(self.cell(torch.cat([scores, tokens.mean(1).float()], 1)))
        logits = self.offset[torch.where(label < 0, len(self.offset) - 1, label)] + whole
        genes = logits[:, :-1] + self.own(tokens).float()
        return torch.softmax(torch.cat([genes, logits[:, -1:]], 1), 1)

    def loss(self, share: Tensor, counts: Tensor, totals: Tensor) -> Tensor:
        """``-log p(counts)`` a gene, mean over cells, of shares [B, G + 1] and counts [B, G]."""
        others = (totals - counts.sum(1)).clamp_min(0)
        every = torch.cat([counts, others[:, None]], 1)
        mu = share * totals[:, None] + 1e-8
        return negative_binomial_loss(every, mu, DISPERSION_PACE * self.dispersion) / self.genes
