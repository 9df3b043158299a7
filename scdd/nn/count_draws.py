"""Exact draws of negative-binomial counts, quick where most of them are zero."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

# Rows drawn from one seed, by one thread: what is read and written many times stays in its cache.
_ROWS = 64
# Inversion counts upwards from zero. Beyond these it would take long, and a gamma-Poisson draw does not.
_LARGEST_MEAN = 8.0
_LARGEST_ODDS = 16.0
# (16 / 17)^_TERMS is less than the steps of a float32 uniform
_TERMS = 512
# Masses this small and all after them sum to less than half such a step.
_NOTHING = 1e-9


class SparseCounts(NamedTuple):
    """Counts as a CSR matrix has them: ``values`` and column ``indices`` of each run ``indptr`` [B + 1]."""

    values: Tensor
    indices: Tensor
    indptr: Tensor


def draw_negative_binomial(mu: Tensor, theta: Tensor, generator: torch.Generator) -> Tensor:
    """``k ~ NB(mu, theta)`` [B, G], of mean ``mu`` [B, G] and variance ``mu + mu^2 / theta``, ``theta`` [G].

    One uniform number an entry is held against ``P(0) = (theta / (theta + mu))^theta``. Only where it is
    larger, for a tenth of the entries of a usual cell, the other masses are summed until it is reached. Large
    or very dispersed counts are drawn as Poisson of a gamma. All is float32: probabilities are right to
    about 1e-7.

    Runs of rows have seeds of their own, drawn from ``generator``, and are shared among as many threads as
    PyTorch has; the counts do not depend on how many.
    """
    counts = torch.zeros_like(mu)
    for block, (at, values) in zip(counts.split(_ROWS), _draw(mu, theta, generator), strict=True):
        block.view(-1)[at] = values
    return counts


def draw_sparse_negative_binomial(mu: Tensor, theta: Tensor, generator: torch.Generator) -> SparseCounts:
    """The same counts as :func:`draw_negative_binomial`, without ever laying out the zeros."""
    genes, found = mu.shape[1], _draw(mu, theta, generator)
    # the entries of a row end where those of the next begin
    starts = torch.arange(1, _ROWS + 1, device=mu.device) * genes
    ends = [torch.searchsorted(at, starts) for at, _ in found]
    lengths = torch.cat([torch.diff(end, prepend=end.new_zeros(1)) for end in ends])[: len(mu)]
    indptr = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    columns = torch.cat([at % genes for at, _ in found]) if found else indptr[:0]
    return SparseCounts(torch.cat([v for _, v in found]), columns.int(), indptr.int())


def _draw(mu: Tensor, theta: Tensor, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Flat positions, ascending, and values of the counts above zero of every run of rows."""
    pieces = mu.split(_ROWS)
    seeds = torch.randint(2**62, (len(pieces),), generator=generator, device=generator.device).tolist()
    threads = 1 if mu.is_cuda else min(torch.get_num_threads(), len(pieces))
    run = partial(_draw_rows, theta)
    if threads < 2:
        return list(map(run, pieces, seeds))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, pieces, seeds))


@torch.no_grad()
def _draw_rows(theta: Tensor, mu: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(mu.device).manual_seed(seed)
    uniform = torch.rand(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device)
    odds = mu / theta
    limit = (_LARGEST_MEAN / theta).clamp_max(_LARGEST_ODDS)
    none = torch.log1p(odds).mul_(-theta).exp_()
    # where the count may be large the number is not looked at
    some = (uniform > none).logical_or_(odds > limit).view(-1).nonzero()[:, 0]
    gene = some % mu.shape[1]
    size, uniform, odds = theta[gene], uniform.view(-1)[some], odds.view(-1)[some]
    values, large = torch.empty_like(odds), odds > limit[gene]
    few, many = (~large).nonzero()[:, 0], large.nonzero()[:, 0]
    values[few] = _by_inversion(uniform[few], odds[few], size[few])
    values[many] = _gamma_poisson(odds[many] * size[many], size[many], generator)
    # a gamma-Poisson draw may be zero
    if len(many) and not values[many].all():
        kept = values.nonzero()[:, 0]
        return some[kept], values[kept]
    return some, values


def _by_inversion(uniform: Tensor, odds: Tensor, theta: Tensor) -> Tensor:
    """The least k [n] whose sum of masses up to it reaches ``uniform``; that of zero alone does not.

    ``P(k) = P(k - 1) q (k - 1 + theta) / k`` with ``q = mu / (theta + mu)``. Who has arrived leaves; of the
    others, always fewer, twice as many masses are summed at a time. Rounded sums may end just below the
    largest uniform numbers: those arrive where nothing is left to be summed.
    """
    mass = torch.log1p(odds).mul_(-theta).exp_()
    found, at = torch.ones_like(mass), torch.arange(len(mass), device=mass.device)
    ratio, left = odds / (1 + odds), uniform - mass
    first, width = 1, 1
    while first < _TERMS and len(at):
        k = torch.arange(first, first + width, dtype=mass.dtype, device=mass.device)
        masses = ((theta[:, None] + (k - 1)) / k).mul_(ratio[:, None]).cumprod(1).mul_(mass[:, None])
        sums = masses.cumsum(1)
        found[at] = first + (sums < left[:, None]).sum(1, dtype=mass.dtype)
        on = (sums[:, -1] < left).nonzero()[:, 0]
        spent = masses[on, -1] < _NOTHING
        ended = on[spent]
        found[at[ended]] = first + (masses[ended] >= _NOTHING).sum(1, dtype=mass.dtype)
        on = on[~spent]
        left = left[on] - sums[on, -1]
        at, ratio, theta, mass = at[on], ratio[on], theta[on], masses[on, -1]
        first, width = first + width, min(2 * width, 64)
    return found


def _gamma_poisson(mu: Tensor, theta: Tensor, generator: torch.Generator) -> Tensor:
    gamma = torch._standard_gamma(theta.contiguous(), generator=generator) / theta
    return torch.poisson(mu * gamma, generator=generator)
