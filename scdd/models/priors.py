"""What is known of each class before generation: where its codes lie and how large its cells are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


class ClassPriors(NamedTuple):
    """Gaussian of the codes and log-normal of the library size, for every class.

    ``mean`` [C, d], ``factor`` [C, d, d] (Cholesky of the covariance), ``log_total`` [C, 2] (mean, sd).
    """

    mean: Tensor
    factor: Tensor
    log_total: Tensor

    @classmethod
    def fit(cls, batches: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]], classes: int, latent: int) -> Self:
        """One pass over (codes [n, d], totals [n], class [n]) batches, float64 sums."""
        n = np.zeros(classes)
        first, second = np.zeros((classes, latent)), np.zeros((classes, latent, latent))
        size = np.zeros((classes, 2))
        for codes, totals, label in batches:
            z, log_total = codes.astype(np.float64), np.log(np.maximum(totals, 1.0))
            np.add.at(n, label, 1)
            np.add.at(first, label, z)
            np.add.at(size, label, np.stack([log_total, log_total**2], 1))
            for k in np.unique(label):
                second[k] += z[label == k].T @ z[label == k]
        n = np.maximum(n, 1)
        mean, level = first / n[:, None], size[:, 0] / n
        covariance = second / n[:, None, None] - mean[:, :, None] * mean[:, None, :]
        # Shrinkage keeps the factor of a class with fewer cells than dimensions well defined.
        share = (latent / (latent + n))[:, None, None]
        covariance = (1 - share) * covariance + (share * 0.5 + 1e-4) * np.eye(latent)
        sd = np.sqrt(np.maximum(size[:, 1] / n - level**2, 1e-4))
        tensors = (mean, np.linalg.cholesky(covariance), np.stack([level, sd], 1))
        return cls(*(torch.from_numpy(value).float() for value in tensors))

    def sample(self, label: Tensor, generator: torch.Generator) -> Tensor:
        """Codes [n, d] of the given classes."""
        eps = torch.randn(len(label), self.mean.shape[1], generator=generator)
        return self.mean[label] + torch.einsum("nij,nj->ni", self.factor[label], eps)

    def sample_totals(self, label: Tensor, generator: torch.Generator) -> Tensor:
        """Library sizes [n] of the given classes."""
        mean, sd = self.log_total[label].unbind(1)
        return torch.exp(mean + sd * torch.randn(len(label), generator=generator)).round().clamp_min(1)

    def typical_totals(self, label: Tensor) -> Tensor:
        """Median library size [n] of the given classes."""
        return self.log_total[label, 0].exp()
