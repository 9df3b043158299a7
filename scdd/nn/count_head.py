"""Counts read off a noised cell, through a code of a few numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scdd.nn.autoencoder import AutoencoderNet
from scdd.nn.heads import NegativeBinomialHead, Observed

_HIDDEN = (256, 256)
_DROPOUT = 0.1
_LABEL_WEIGHT = 50.0


class CountHead(nn.Module):
    """``z ~ q(z | x_t)``, ``count_g ~ NB(total rho_g(z), theta_g)``: an autoencoder of noised cells.

    All that a count is told of its cell passes the code ``z`` [B, d], whose ``kl_weight KL(q || N(0, I))`` is
    paid for. Without such a strait the likelihood learns to recognise the training cells through their noise,
    2,000 genes wide, and the counts of new cells are read off worse than from the mean of their class.
    """

    def __init__(self, genes: int, classes: int, *, latent: int, kl_weight: float):
        super().__init__()
        self.genes = genes
        self.autoencoder = AutoencoderNet(
            genes, latent, _HIDDEN, head="nb", dropout=_DROPOUT, kl_weight=kl_weight, classes=classes,
            label_weight=_LABEL_WEIGHT if classes > 1 else 0.0,
        )  # fmt: skip

    def start_from(self, share: Tensor) -> None:
        """Begin at the mean share that each gene [G] has of the counts of the training cells."""
        self._head.start_from(share, share, share)

    def loss(
        self, x_t: Tensor, counts: Tensor, totals: Tensor, label: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Its terms a gene, for noised cells [B, G] of counts [B, G], totals [B] and classes [B]."""
        terms = self.autoencoder.loss(Observed(x_t, counts, totals, label), generator)
        return {name: value / self.genes for name, value in terms.items()}

    @torch.no_grad()
    def draw(self, x_t: Tensor, totals: Tensor, generator: torch.Generator) -> Tensor:
        """Counts [B, G] of noised cells [B, G] with totals [B]."""
        code = self.autoencoder.posterior_draw(self.autoencoder.encode(x_t), generator)
        return self._head.draw_counts(self.autoencoder.features(code), totals, generator)

    @property
    def _head(self) -> NegativeBinomialHead:
        head = self.autoencoder.head
        assert isinstance(head, NegativeBinomialHead), "that is how it was built"
        return head
