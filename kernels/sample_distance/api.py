"""The public functions: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from .._check import (
    require_choice,
    require_device_of,
    require_dims,
    require_dtype_of,
    require_flag,
    require_float,
    require_shape,
)
from .._dispatch import is_fused
from . import ops, reference
from .bandwidth import exponents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._dispatch import Implementation

Reduction = Literal["sum", "mean", "none"]


def maximum_mean_discrepancy(
    x: Tensor,
    y: Tensor,
    *,
    bandwidths: Sequence[float] | Tensor = (0.125, 0.25, 0.5, 1.0, 2.0),
    unit: Tensor | float | None = None,
    unbiased: bool = True,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    reduction: Reduction = "sum",
    implementation: Implementation = "auto",
) -> Tensor:
    """``MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)``, ``k(a, b) = sum_k exp(-|a - b|^2 / (2 s_k))``.

    The squared maximum mean discrepancy [1]_ of two samples under one or several Gaussian kernels of squared
    bandwidths ``s_k = bandwidths[k] * unit``. The matrix of pairs is formed tile by tile and never kept.
    Distances are taken in the Gram form after the joint mean was taken away, sums of tiles are in float32 and
    all else in float64. Bandwidths given as numbers, each twice or half the one before, cost one exponential
    a pair.

    Parameters
    ----------
    x, y
        The samples, ``[n, G]`` and ``[m, G]``; float32, bfloat16, float16 or float64. Centred values are
        rounded to this dtype. Copied if not contiguous.
    bandwidths
        Squared bandwidths in units of `unit`, 1 to 16 of them: numbers, or a tensor ``[K]`` on the device of
        `x`. The default with the biased form is what scGAN-like and scRDiT scorers publish: kernels
        ``exp(-|a - b|^2 / b_k)``, ``b_k = mean / 4 * (1, 2, 4, 8, 16)``.
    unit
        What a bandwidth of 1 stands for; a constant for the gradient. None takes
        :func:`bandwidth_heuristic` of both samples. When a distance is *minimised* over x, take it of y
        alone, or the yardstick moves with what it measures.
    unbiased
        Leave pairs of a row with itself out (needs two rows a sample; the result may be negative), or keep
        them.
    weights_x, weights_y
        Weights of the rows, ``[n]`` and ``[m]``, divided by their sum. The unbiased form divides what is left
        of ``sum_{i != j} w_i w_j`` by ``1 - sum_i w_i^2``; it is unbiased for weights that do not depend on
        the sample. Weights that sum to zero, or of which but one is not zero, give infinity or NaN.
    reduction
        ``"sum"`` or ``"mean"`` over the kernels, or ``"none"``: one result for each, in the order given.
    implementation
        * ``"auto"``: the Triton kernels on CUDA; blocks of at most 16 MB on a CPU.
        * ``"reference"``: the definition in plain PyTorch, which forms whole matrices of pairs and can be
          differentiated any number of times.
        * ``"triton"``: the kernels, or an error where they can not run.

    Returns
    -------
    Tensor
        A scalar, or ``[K]`` where `reduction` is ``"none"``; float32 (float64 for float64). Differentiable
        once in the samples and in the weights; the gradients are deterministic.

    Raises
    ------
    TypeError
        An argument is not a tensor, or its dtype is not supported or differs from that of `x`.
    ValueError
        A shape, device or size does not fit, a number is not positive, or an option is unknown or can not be
        had.

    References
    ----------
    .. [1] A. Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012.

    Examples
    --------
    >>> unit = scdd.kernels.bandwidth_heuristic(real)
    >>> loss = scdd.kernels.maximum_mean_discrepancy(synthetic, real, unit=unit, unbiased=False)
    """
    check_samples(x, y, unbiased=unbiased)
    require_choice("reduction", reduction, get_args(Reduction))
    rates, form, order = exponents(bandwidths, unit, x, y)
    a, b = _normalised(x, y, weights_x, weights_y)
    sums = _pair_sums(x, y, a, b, rates, form, implementation)
    found = _difference(sums, x, y, a, b, unbiased=unbiased, at_zero=1.0)
    if reduction != "none":
        found = found.sum() if reduction == "sum" else found.mean()
    elif order is not None:
        found = torch.stack([found[place] for place in order])
    return found.to(reference.wide_dtype(x))


def energy_distance(
    x: Tensor,
    y: Tensor,
    *,
    unbiased: bool = True,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """``2 E|x - y| - E|x - x'| - E|y - y'|``, with Euclidean distances.

    The energy distance [1]_ of two samples, in their units; streamed as :func:`maximum_mean_discrepancy` is.
    For one feature the biased form is the square of :func:`scipy.stats.energy_distance`. A distance below the
    rounding of its Gram form (a thousandth of the length of the centred rows in float32) counts as zero, and
    the gradient at distance zero is zero.

    Parameters
    ----------
    x, y, weights_x, weights_y, implementation
        As in :func:`maximum_mean_discrepancy`.
    unbiased
        Take the mean of ``|x - x'|`` over pairs of different rows (the result may be negative), or over all.

    Returns
    -------
    Tensor
        A scalar in float32 (float64 for float64), differentiable once in the samples and in the weights; the
        gradients are deterministic.

    Raises
    ------
    TypeError, ValueError
        As in :func:`maximum_mean_discrepancy`.

    References
    ----------
    .. [1] G. J. Székely and M. L. Rizzo, "Energy statistics: a class of statistics based on distances",
       Journal of Statistical Planning and Inference 143, 2013.

    Examples
    --------
    >>> scdd.kernels.energy_distance(generated, held_out)
    """
    check_samples(x, y, unbiased=unbiased)
    a, b = _normalised(x, y, weights_x, weights_y)
    rates = x.new_ones(1, dtype=reference.wide_dtype(x))
    sums = _pair_sums(x, y, a, b, rates, "distance", implementation)
    found = -_difference(sums, x, y, a, b, unbiased=unbiased, at_zero=0.0)
    return found.sum().to(reference.wide_dtype(x))


def check_samples(x: Tensor, y: Tensor, *, unbiased: bool) -> None:
    """Refuse samples that no implementation can take."""
    require_flag("unbiased", unbiased)
    require_float("x", x)
    require_dtype_of("y", y, "x", x)
    require_device_of("y", y, "x", x)
    for name, sample, least in (("x", x, "[n, G]"), ("y", y, "[m, G]")):
        require_dims(name, sample, (2,), least)
        if len(sample) < 1 + unbiased:
            remedy = "give it two, or take unbiased=False" if len(sample) else "give it some"
            raise ValueError(f"{name} has {len(sample)} rows, too few for a mean over pairs; {remedy}")
    if x.shape[1] != y.shape[1] or x.shape[1] == 0:
        raise ValueError(
            f"x has {x.shape[1]} features and y has {y.shape[1]}; give both the same number, at least one"
        )


def _normalised(
    x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Both weights with a sum of one, or neither."""
    if weights_x is None and weights_y is None:
        return None, None
    found = []
    for name, weights, rows, meaning in (
        ("weights_x", weights_x, x, "[n]"),
        ("weights_y", weights_y, y, "[m]"),
    ):
        if weights is None:
            found.append(rows.new_full((len(rows),), 1 / len(rows), dtype=reference.wide_dtype(x)))
            continue
        require_float(name, weights)
        require_shape(name, weights, (len(rows),), f"{meaning}, one for each row")
        require_device_of(name, weights, "x", x)
        broad = weights.double()
        found.append((broad / broad.sum()).to(reference.wide_dtype(x)))
    return found[0], found[1]


def _pair_sums(
    x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, rates: Tensor, form: str,
    implementation: Implementation,
) -> Tensor:  # fmt: skip
    if is_fused(implementation, x):
        return ops.PairSums.apply(x, y, a, b, rates, form)
    return reference.pair_sums(x, y, a, b, rates, form)


def _difference(
    sums: Tensor, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, *, unbiased: bool, at_zero: float
) -> Tensor:
    """``E k(x, x') + E k(y, y') - 2 E k(x, y)`` of each kernel, [K] in float64, from the sums over pairs.

    `at_zero` is what a kernel is between a row and itself, which the biased form counts.
    """
    within = []
    for total, sample, weights in ((sums[0], x, a), (sums[2], y, b)):
        rows = len(sample)
        alike = 1 / rows if weights is None else weights.double().square().sum()
        scale = 1.0 if weights is not None else 1 / rows**2
        if unbiased:
            within.append(2 * total * scale / (1 - alike))
        else:
            within.append(2 * total * scale + at_zero * alike)
    between = sums[1] if a is not None else sums[1] / (len(x) * len(y))
    return within[0] + within[1] - 2 * between
