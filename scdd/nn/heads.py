"""Expression heads: what a decoder's features say about a cell, as a loss, an expectation and a draw.

Every head speaks log1p CP10k on its outside, so that models and distillation need not know which it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scdd.nn.count_draws import SparseCounts, draw_negative_binomial, draw_sparse_negative_binomial
from scdd.nn.count_likelihood import negative_binomial_loss

TARGET_SUM = 1e4

# Adam moves every number by about its rate: inverse dispersions lie decades apart, and must get there in the
# few hundred steps that the weights need. With 1 in place of 10, counts were so overdispersed after 600
# steps that a forest told them apart by the housekeeping genes alone.
DISPERSION_PACE = 10.0
_FIRST_THETA = 5.0


class Observed(NamedTuple):
    """Cells: ``x`` log1p CP10k [B, G], raw ``counts`` [B, G], ``totals`` [B] and class ``label`` [B]."""

    x: Tensor
    counts: Tensor | None
    totals: Tensor
    label: Tensor | None = None


class GaussianHead(nn.Module):
    """``x ~ d * N(m / p, s^2)``, ``d ~ Bernoulli(p)``: expectation ``m`` by squared error, ``p`` detected.

    The squared error alone fits ``m = E[x | z]``; detection only serves draws, which need zeros.
    """

    needs_counts = False
    spread: Tensor
    ceiling: Tensor

    def __init__(self, width: int, genes: int):
        super().__init__()
        self.expectation, self.detection = nn.Linear(width, genes), nn.Linear(width, genes)
        # Spread of a gene where it is detected; a running estimate, not trained.
        self.register_buffer("spread", torch.full((genes,), 0.5))
        # Highest value seen of a gene: no draw exceeds it, however small the detection it is divided by.
        self.register_buffer("ceiling", torch.zeros(genes))

    def start_from(self, mean: Tensor, detected: Tensor, share: Tensor) -> None:
        """Begin at the training cells' mean and detection rate of each gene [G]."""
        with torch.no_grad():
            self.expectation.bias.copy_(mean)
            self.detection.bias.copy_(torch.logit(detected.clamp(1e-3, 1 - 1e-3)))

    def loss(self, features: Tensor, observed: Observed) -> Tensor:
        """Sum over genes of squared error plus detection cross-entropy, mean over cells."""
        mean, logit, seen = self.expectation(features), self.detection(features), observed.x > 0
        if self.training:
            self._follow_spread(mean.detach(), logit.detach(), observed.x, seen)
        error = (observed.x - mean).square()
        detection = F.binary_cross_entropy_with_logits(logit, seen.to(logit.dtype), reduction="none")
        return (error + 0.1 * detection).sum(1).mean()

    def _follow_spread(self, mean: Tensor, logit: Tensor, x: Tensor, seen: Tensor) -> None:
        level = mean.clamp_min(0) / torch.sigmoid(logit).clamp_min(1e-2)
        square = torch.where(seen, (x - level).square(), 0).sum(0) / seen.sum(0).clamp_min(1)
        self.ceiling.copy_(torch.maximum(self.ceiling, x.max(0).values))
        update = torch.where(seen.any(0), square.sqrt().clamp(0.05, 2.0), self.spread)
        self.spread.lerp_(update, 0.02)

    def expected(self, features: Tensor, totals: Tensor) -> Tensor:
        """``E[log1p CP10k]`` [B, G]. Linear, so that silent genes keep a gradient; clamp on export."""
        return self.expectation(features)

    def draw(
        self,
        features: Tensor,
        totals: Tensor,
        generator: torch.Generator,
        *,
        depth: int = 1,
        shared: bool = False,
    ) -> Tensor:
        """The mean of ``depth`` independent draws of each row's cell [B, G].

        With ``shared`` all rows see the same random numbers: two rows that agree on a gene then get the
        very same value of it, and what differs between them is what their features say.
        """
        mean, p = self.expectation(features).clamp_min(0), torch.sigmoid(self.detection(features))
        shape = (1, p.shape[1]) if shared else p.shape
        hits = torch.zeros_like(p)
        for _ in range(depth):
            hits += torch.rand(shape, generator=generator).to(p) < p
        noise = torch.randn(shape, generator=generator).to(p)
        level = torch.minimum(mean / p.clamp_min(1e-2), self.ceiling)
        value = (hits * level + hits.sqrt() * self.spread * noise) / depth
        return torch.minimum(value.clamp_min(0), self.ceiling)


class NegativeBinomialHead(nn.Module):
    """``count ~ NB(total * rho, theta)``: ``rho`` a softmax over the genes and one column for all others.

    The column of other genes is fitted like a gene: without it the shares of the chosen genes would float.
    Variance ``mu + mu^2 / theta``, ``theta`` per gene (Lopez et al. 2018, without zero inflation).
    """

    needs_counts = True

    def __init__(self, width: int, genes: int):
        super().__init__()
        self.share = nn.Linear(width, genes + 1)
        start = math.log(_FIRST_THETA) / DISPERSION_PACE
        self.dispersion = nn.Parameter(torch.full((genes + 1,), start))

    def start_from(self, mean: Tensor, detected: Tensor, share: Tensor) -> None:
        """Begin at the mean share that each gene [G] has of the counts of the training cells."""
        rest = (1 - share.sum()).clamp_min(1e-3)
        with torch.no_grad():
            self.share.bias.copy_(torch.cat([share.clamp_min(1e-7), rest[None]]).log())

    def rate(self, features: Tensor, totals: Tensor) -> Tensor:
        """``mu = total * rho`` [B, G]."""
        return self._all_rates(features, totals)[:, :-1]

    def _all_rates(self, features: Tensor, totals: Tensor) -> Tensor:
        return torch.softmax(self.share(features), 1) * totals[:, None]

    @property
    def log_theta(self) -> Tensor:
        """Log of the inverse dispersion of every gene and of all others [G + 1]."""
        return DISPERSION_PACE * self.dispersion

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion of every gene [G]."""
        return self.log_theta[:-1].exp()

    def loss(self, features: Tensor, observed: Observed) -> Tensor:
        """Negative log-likelihood, summed over genes, mean over cells."""
        assert observed.counts is not None, "the negative-binomial head is trained on counts"
        others = (observed.totals - observed.counts.sum(1)).clamp_min(0)
        k = torch.cat([observed.counts, others[:, None]], 1)
        return negative_binomial_loss(k, self._all_rates(features, observed.totals) + 1e-8, self.log_theta)

    def expected(self, features: Tensor, totals: Tensor) -> Tensor:
        """``E[log1p(10^4 count / total)]`` [B, G], by summing the first masses of the distribution."""
        return expected_log1p(self.rate(features, totals), self.theta, TARGET_SUM / totals[:, None])

    def draw_counts(self, features: Tensor, totals: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of every cell's counts [B, G]; the same for any number of threads."""
        return draw_negative_binomial(self.rate(features, totals), self.theta, generator)

    def draw_sparse(self, features: Tensor, totals: Tensor, generator: torch.Generator) -> SparseCounts:
        """The counts of :meth:`draw_counts`, zeros left out."""
        return draw_sparse_negative_binomial(self.rate(features, totals), self.theta, generator)

    def draw(
        self,
        features: Tensor,
        totals: Tensor,
        generator: torch.Generator,
        *,
        depth: int = 1,
        shared: bool = False,
    ) -> Tensor:
        """The mean of ``depth`` independent draws of each row's cell, in log1p CP10k [B, G].

        Counts of different rows are always independent: ``shared`` has no cheap form for a gamma-Poisson.
        """
        total = torch.zeros(len(features), len(self.theta))
        for _ in range(depth):
            total += torch.log1p(TARGET_SUM * self.draw_counts(features, totals, generator) / totals[:, None])
        return total / depth


def expected_log1p(mu: Tensor, theta: Tensor, scale: Tensor, terms: int = 12) -> Tensor:
    """``E[log1p(scale * k)]``, ``k ~ NB(mu, theta)``: exact masses up to ``terms``, then a delta-method tail.

    The log of a mean is not the mean of a log: at one count a cell and scale 5 the two differ by 40 %.
    """
    mass = torch.exp(-theta * torch.log1p(mu / theta))
    ratio = mu / (theta + mu)
    total, first, second, sure = torch.zeros_like(mu), torch.zeros_like(mu), torch.zeros_like(mu), mass
    for k in range(1, terms + 1):
        mass = mass * ratio * ((k - 1 + theta) / k)
        total = total + mass * torch.log1p(scale * k)
        first, second, sure = first + k * mass, second + k * k * mass, sure + mass
    tail = (1 - sure).clamp_min(1e-6)
    centre = ((mu - first) / tail).clamp_min(terms + 1)
    square = (mu + mu.square() * (1 + 1 / theta) - second) / tail
    spread = (square - centre.square()).clamp_min(0)
    bend = spread * (scale / (1 + scale * centre)).square() / 2
    # Once nothing is left in the tail its moments are rounding errors, and the sum is complete.
    return total + torch.where(1 - sure > 1e-5, tail * (torch.log1p(scale * centre) - bend).clamp_min(0), 0.0)
