"""What is known of each class before generation: where its codes lie and how large its cells are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

import torch

if TYPE_CHECKING:
    from torch import Tensor


class ClassPriors(NamedTuple):
    """Gaussian of the codes and log-normal of the library size, for every class.

    ``mean`` [C, d], ``factor`` [C, d, d] (Cholesky of the covariance), ``log_total`` [C, 2] (mean, sd).
    """

    mean: Tensor
    factor: Tensor
    log_total: Tensor

    @classmethod
    def fit(cls, codes: Tensor, totals: Tensor, label: Tensor, classes: int) -> Self:
        """From the codes [n, d], library sizes [n] and classes [n] of the training cells; float64 inside."""
        latent = codes.shape[1]
        means, factors, sizes = [], [], []
        for k in range(classes):
            z, log_total = codes[label == k].double(), totals[label == k].double().clamp_min(1).log()
            n = max(len(z), 1)
            centred = z - z.mean(0)
            # Shrinkage keeps the factor of a class with fewer cells than dimensions well defined.
            share = latent / (latent + n)
            ridge = (share * 0.5 + 1e-4) * torch.eye(latent, dtype=torch.float64)
            means.append(z.mean(0))
            factors.append(torch.linalg.cholesky((1 - share) * centred.T @ centred / n + ridge))
            sizes.append(torch.stack([log_total.mean(), log_total.std(correction=0).clamp_min(0.01)]))
        return cls(*(torch.stack(values).float() for values in (means, factors, sizes)))

    def sample(self, label: Tensor, generator: torch.Generator) -> Tensor:
        """Codes [n, d] of the given classes."""
        eps = torch.randn(len(label), self.mean.shape[1], generator=generator)
        return self.mean[label] + torch.einsum("nij,nj->ni", self.factor[label], eps)

    def excess(self, codes: Tensor, label: Tensor) -> Tensor:
        """``max(0, m^2 / d - 1)`` [n], m the Mahalanobis distance to the class: 0 inside its typical set."""
        centred = (codes - self.mean[label])[:, :, None]
        white = torch.linalg.solve_triangular(self.factor[label], centred, upper=False)[:, :, 0]
        return (white.square().mean(1) - 1).clamp_min(0)

    def sample_totals(self, label: Tensor, generator: torch.Generator) -> Tensor:
        """Library sizes [n] of the given classes."""
        mean, sd = self.log_total[label].unbind(1)
        return torch.exp(mean + sd * torch.randn(len(label), generator=generator)).round().clamp_min(1)

    def typical_totals(self, label: Tensor) -> Tensor:
        """Median library size [n] of the given classes."""
        return self.log_total[label, 0].exp()
