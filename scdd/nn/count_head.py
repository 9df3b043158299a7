"""Counts read off a noised cell, through a code of a few numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scdd.nn.autoencoder import NOISE_PACE, kl_to_standard, mlp
from scdd.nn.heads import NegativeBinomialHead, Observed

_HIDDEN = (256, 256)
_DROPOUT = 0.1


class CountHead(nn.Module):
    """``z ~ q(z | s, c)``, ``count_g ~ NB(total rho_g(z, c), theta_g)``: a variational autoencoder.

    ``s`` [B, R] are the scores of a noised cell along the directions in which its class ``c`` varies
    (:meth:`scdd.nn.linear_start.LinearStart.scores`); what lies across them is noise for the most part. What
    a count is told of its cell, but for the class, passes the code ``z`` [B, d], whose
    ``kl_weight KL(q || N(0, I))`` is paid for. From all genes of the noised cell, and without that strait,
    the likelihood learns to recognise the training cells through their noise, and the counts of new cells
    are read off worse than from the mean of their class. A class of -1 is none.

    Sohn et al., *Learning structured output representation using deep conditional generative models* (2015).
    """

    def __init__(self, scores: int, genes: int, classes: int, *, latent: int, kl_weight: float):
        super().__init__()
        self.genes, self.classes, self.kl_weight = genes, classes, kl_weight
        wide = mlp([scores + classes, *_HIDDEN], dropout=_DROPOUT)
        self.encoder = nn.Sequential(wide, nn.Linear(_HIDDEN[-1], latent))
        self.noise = nn.Parameter(torch.full((latent,), -1.0 / NOISE_PACE))
        self.decoder = mlp([latent + classes, *reversed(_HIDDEN)], dropout=_DROPOUT)
        # the class is told once more behind the decoder, where its profile is a row of weights
        self.likelihood = NegativeBinomialHead(_HIDDEN[0] + classes, genes)

    def start_from(self, log_share: Tensor) -> None:
        """Begin at log shares of counts [C + 1, G + 1]: classes, then all cells; genes, then others."""
        with torch.no_grad():
            self.likelihood.share.bias.copy_(log_share[-1])
            self.likelihood.share.weight[:, -self.classes :] = (log_share[:-1] - log_share[-1]).mT

    def loss(
        self, scores: Tensor, label: Tensor, counts: Tensor, totals: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Its terms a gene, for scores [B, R] and classes [B] of cells of counts [B, G] and totals [B]."""
        told = self._told(label, scores)
        mean = self.encoder(torch.cat([scores, told], 1))
        features = self._features(self._code(mean, generator), told)
        terms = {
            "kl": self.kl_weight * kl_to_standard(mean, self._log_noise),
            "reconstruction": self.likelihood.loss(features, Observed(counts, counts, totals)),
        }
        return {name: value / self.genes for name, value in terms.items()}

    @torch.no_grad()
    def draw(self, scores: Tensor, label: Tensor, totals: Tensor, generator: torch.Generator) -> Tensor:
        """Counts [B, G] for scores [B, R], classes [B] and totals [B]."""
        told = self._told(label, scores)
        code = self._code(self.encoder(torch.cat([scores, told], 1)), generator)
        return self.likelihood.draw_counts(self._features(code, told), totals, generator)

    def _features(self, code: Tensor, told: Tensor) -> Tensor:
        return torch.cat([self.decoder(torch.cat([code, told], 1)), told], 1)

    @property
    def _log_noise(self) -> Tensor:
        return NOISE_PACE * self.noise

    def _code(self, mean: Tensor, generator: torch.Generator) -> Tensor:
        return mean + self._log_noise.exp() * torch.randn(mean.shape, generator=generator).to(mean)

    def _told(self, label: Tensor, like: Tensor) -> Tensor:
        return F.one_hot(label.long() + 1, self.classes + 1)[:, 1:].to(like)
