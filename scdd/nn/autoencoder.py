"""An MLP autoencoder of expression with standardised latents."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scdd.nn.heads import GaussianHead, NegativeBinomialHead, Observed

if TYPE_CHECKING:
    from collections.abc import Sequence

# The spread of q(z | x) must get from its start to one that ignores the cell, or to almost none, in the few
# hundred steps that the weights need.
NOISE_PACE = 10.0

HEADS: dict[str, type[GaussianHead | NegativeBinomialHead]] = {
    "gaussian": GaussianHead,
    "nb": NegativeBinomialHead,
}


def mlp(sizes: Sequence[int], *, dropout: float = 0.0) -> nn.Sequential:
    """Linear, batch norm, SiLU and dropout for each pair of ``sizes``.

    Batch norm as in SCimilarity's autoencoder: models are in evaluation mode, with frozen statistics,
    whenever codes are encoded, decoded or distilled.
    """
    layers: list[nn.Module] = []
    for wide_in, wide_out in itertools.pairwise(sizes):
        layers += [nn.Linear(wide_in, wide_out), nn.BatchNorm1d(wide_out), nn.SiLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def kl_to_standard(mean: Tensor, log_spread: Tensor) -> Tensor:
    """``KL(N(mean, spread^2) || N(0, I))`` of means [B, d] and spreads [d], mean over cells."""
    return 0.5 * (mean.square() + (2 * log_spread).exp() - 1 - 2 * log_spread).sum(1).mean()


class AutoencoderNet(nn.Module):
    """``z = E(x)``, ``x^ = head(D(z))``; codes outside are ``(z - mean) / std``, per dimension.

    Parameters
    ----------
    genes, latent
        G and d.
    hidden
        Widths from the genes to the latent; the decoder mirrors them.
    head
        ``"gaussian"`` on log1p data, ``"nb"`` on counts.
    classes, label_weight
        With both above 0 a linear classifier of the code is trained along, ``label_weight * CE``: codes
        then keep what tells close classes apart, which the squared error of 2,000 genes barely notices.
    kl_weight
        Above 0 the encoder is variational, ``q(z|x) = N(E(x), s^2)`` with one learnt s a dimension.
    """

    gene_mean: Tensor
    gene_std: Tensor
    latent_mean: Tensor
    latent_std: Tensor
    head: GaussianHead | NegativeBinomialHead

    def __init__(
        self,
        genes: int,
        latent: int,
        hidden: Sequence[int],
        *,
        head: str = "gaussian",
        dropout: float = 0.0,
        kl_weight: float = 0.0,
        classes: int = 0,
        label_weight: float = 0.0,
    ):
        super().__init__()
        self.kl_weight, self.label_weight = kl_weight, label_weight
        self.classifier = nn.Linear(latent, classes) if classes and label_weight else None
        self.register_buffer("gene_mean", torch.zeros(genes))
        self.register_buffer("gene_std", torch.ones(genes))
        self.register_buffer("latent_mean", torch.zeros(latent))
        self.register_buffer("latent_std", torch.ones(latent))
        self.encoder = nn.Sequential(mlp([genes, *hidden], dropout=dropout), nn.Linear(hidden[-1], latent))
        self.noise = nn.Parameter(torch.full((latent,), -1.0 / NOISE_PACE), requires_grad=kl_weight > 0)
        self.decoder = mlp([latent, *reversed(hidden)], dropout=dropout)
        self.head = HEADS[head](hidden[0], genes)

    def encode_raw(self, x: Tensor) -> Tensor:
        """``E(x)`` [B, d] before standardisation; genes are z-scored and clipped at 10 on the way in."""
        return self.encoder(((x - self.gene_mean) / self.gene_std).clamp(-10, 10))

    @property
    def posterior_spread(self) -> Tensor:
        """Standard deviation of ``q(z | x)`` [d] before standardisation; zeros for a plain autoencoder."""
        return (NOISE_PACE * self.noise).exp() if self.kl_weight > 0 else torch.zeros_like(self.noise)

    @property
    def code_spread(self) -> Tensor:
        """The same of standardised codes [d]: what a cell's code is known to."""
        return self.posterior_spread / self.latent_std

    def encode(self, x: Tensor) -> Tensor:
        """Standardised codes [B, d] of log1p CP10k [B, G]."""
        return (self.encode_raw(x) - self.latent_mean) / self.latent_std

    def posterior_draw(self, code: Tensor, generator: torch.Generator) -> Tensor:
        """``z ~ q(z | x)`` [B, d] around standardised codes; a plain autoencoder's stay as they are.

        A decoder trained on draws expects draws: from posterior means alone it makes cells too alike.
        """
        if self.kl_weight <= 0:
            return code
        return code + self.code_spread * torch.randn(code.shape, generator=generator).to(code)

    def features(self, code: Tensor) -> Tensor:
        """Decoder features [B, H] of standardised codes, the input of the head."""
        return self.decoder(code * self.latent_std + self.latent_mean)

    def decode(self, code: Tensor, totals: Tensor) -> Tensor:
        """``E[log1p CP10k]`` [B, G] of standardised codes."""
        return self.head.expected(self.features(code), totals)

    def loss(self, observed: Observed, generator: torch.Generator) -> dict[str, Tensor]:
        """Reconstruction, plus the classifier's cross-entropy, plus ``kl_weight * KL(q(z|x) || N(0, I))``."""
        z = self.encode_raw(observed.x)
        losses = {}
        if self.kl_weight > 0:
            log_noise = NOISE_PACE * self.noise
            losses["kl"] = self.kl_weight * kl_to_standard(z, log_noise)
            z = z + log_noise.exp() * torch.randn(z.shape, generator=generator).to(z)
        if self.classifier is not None and observed.label is not None:
            losses["label"] = self.label_weight * F.cross_entropy(self.classifier(z), observed.label)
        losses["reconstruction"] = self.head.loss(self.decoder(z), observed)
        return losses
