"""The width of Gaussian kernels: what users give, and a yardstick from the data."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Final, Literal, get_args

import torch
from torch import Tensor

from .._check import (
    require_choice,
    require_device_of,
    require_dims,
    require_dtype_of,
    require_float,
    require_number,
    require_whole,
)
from . import reference

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_BANDWIDTHS: Final = 16

Statistic = Literal["mean", "median"]

# Rows of the joint sample that the median is taken of: half a million pairs.
_MEDIAN_ROWS: Final = 1024

# Of kernels as narrow as samples without spread make them: finite, so that a distance of zero gives 1.
_MAX_RATE: Final = 2.0**100


@torch.no_grad()
def bandwidth_heuristic(
    x: Tensor, y: Tensor | None = None, *, statistic: Statistic = "mean", seed: int = 0
) -> Tensor:
    """``mean_{i != j} |z_i - z_j|^2 = 2 sum_i |z_i - mean z|^2 / (N - 1)`` of the joint sample z = (x, y).

    The yardstick for squared bandwidths. The mean takes one pass over the samples, not a matrix of pairs.

    Parameters
    ----------
    x, y
        The samples, ``[n, G]`` and ``[m, G]``, or one of them; of two rows at least.
    statistic
        ``"mean"``, or ``"median"``: of the pairs of at most 1,024 rows drawn without replacement.
    seed
        Of the rows that are drawn for the median; the same rows on every device.

    Returns
    -------
    Tensor
        A scalar on the device of `x`, in float32 (float64 for float64), without gradient. At least the
        smallest positive number, so that constant samples can be divided by it.

    Raises
    ------
    TypeError, ValueError
        A sample is no floating-point tensor or does not fit, or `statistic` is unknown.

    Examples
    --------
    >>> unit = scdd.kernels.bandwidth_heuristic(real, statistic="median")
    """
    require_choice("statistic", statistic, get_args(Statistic))
    require_whole("seed", seed)
    samples = [("x", x)] if y is None else [("x", x), ("y", y)]
    for name, sample in samples:
        require_float(name, sample)
        require_dims(name, sample, (2,), "[n, G]")
        require_dtype_of(name, sample, "x", x)
        require_device_of(name, sample, "x", x)
    if y is not None and x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} features and y has {y.shape[1]}; give both the same number")
    rows = sum(len(sample) for _, sample in samples)
    if rows < 2:
        raise ValueError(f"there are {rows} rows in all and no pair; give two rows at least")
    found = _mean(x, y, rows) if statistic == "mean" else _median(x, y, rows, seed)
    return found.to(reference.wide_dtype(x)).clamp_min(torch.finfo(reference.wide_dtype(x)).tiny)


def _mean(x: Tensor, y: Tensor | None, rows: int) -> Tensor:
    """Twice the sum of the unbiased variances of all features, in float64."""
    centre = reference.joint_mean(x, x if y is None else y)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    moment = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for sample in (x,) if y is None else (x, y):
        # the centre is rounded, so the mean of what is left is not quite zero
        for part in sample.split(max(1, 2**22 // max(1, x.shape[1]))):
            centred = reference.wide(part) - reference.wide(centre)
            total = total + centred.square().sum(1).sum(dtype=torch.float64)
            moment = moment + centred.sum(0).double()
    return 2 * (total - moment.square().sum() / rows) / (rows - 1)


def _median(x: Tensor, y: Tensor | None, rows: int, seed: int) -> Tensor:
    drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:_MEDIAN_ROWS]
    here = drawn[drawn < len(x)].to(x.device)
    z = x[here] if y is None else torch.cat((x[here], y[drawn[drawn >= len(x)].to(x.device) - len(x)]))
    z = reference.wide(z)
    z = z - z.mean(0)
    i, j = torch.triu_indices(len(z), len(z), 1, device=x.device)
    return reference.squared_distances(z, z)[i, j].median().double()


def exponents(
    bandwidths: Sequence[float] | Tensor, unit: Tensor | float | None, x: Tensor, y: Tensor
) -> tuple[Tensor, str, list[int] | None]:
    """The rates of ``2^(-rate d^2)``, [K], their form, and where each bandwidth went, if they moved."""
    scale = _unit(unit, x, y)
    if isinstance(bandwidths, Tensor):
        require_float("bandwidths", bandwidths)
        require_dims("bandwidths", bandwidths, (1,), "[K]")
        require_device_of("bandwidths", bandwidths, "x", x)
        _require_number_of_bandwidths(len(bandwidths))
        rates = (0.5 / math.log(2)) / (bandwidths.detach().to(scale.dtype) * scale)
        return rates.clamp_max(_MAX_RATE), "gaussian", None
    if isinstance(bandwidths, str) or not hasattr(bandwidths, "__iter__"):
        raise TypeError(f"bandwidths is a {type(bandwidths).__name__}; pass numbers, or a tensor [K]")
    numbers = list(bandwidths)
    _require_number_of_bandwidths(len(numbers))
    for value in numbers:
        require_number("each of bandwidths", value)
        if not 0 < value < math.inf:
            raise ValueError(f"bandwidths hold {value}; each is a squared width, positive and finite")
    order = None
    if _halving(numbers[::-1]):
        numbers.reverse()
        order = list(range(len(numbers)))[::-1]
    # divided one by one on the device: to make a tensor of numbers there would wait for the GPU
    rates = torch.stack([(0.5 / math.log(2) / value) / scale for value in numbers])
    return rates.clamp_max(_MAX_RATE), "doubling" if _halving(numbers) else "gaussian", order


def _halving(numbers: list[float]) -> bool:
    """Whether each bandwidth is half the one before, so that each kernel is the square of the one before."""
    return len(numbers) > 1 and all(a == 2 * b for a, b in itertools.pairwise(numbers))


def _require_number_of_bandwidths(number: int) -> None:
    if not 1 <= number <= MAX_BANDWIDTHS:
        raise ValueError(f"there are {number} bandwidths; give 1 to {MAX_BANDWIDTHS}")


def _unit(unit: Tensor | float | None, x: Tensor, y: Tensor) -> Tensor:
    dtype = reference.wide_dtype(x)
    if unit is None:
        return bandwidth_heuristic(x, y)
    if isinstance(unit, Tensor):
        require_float("unit", unit)
        require_dims("unit", unit, (0,), "a scalar, []")
        require_device_of("unit", unit, "x", x)
        return unit.detach().to(dtype)
    require_number("unit", unit)
    if not 0 < unit < math.inf:
        raise ValueError(f"unit is {unit}; it is a squared width, positive and finite")
    return torch.full((), unit, dtype=dtype, device=x.device)
