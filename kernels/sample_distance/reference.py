"""What the operators compute, in plain PyTorch.

Every distance between two samples is made of three sums over pairs, for each of K functions k of a squared
distance. In the joint sample z = (x, y) of N = n + m rows with weights w,

    sums[0] = sum_{i < j}  w_i w_j k(|x_i - x_j|^2)
    sums[1] = sum_{i, j}   w_i w_j k(|x_i - y_j|^2)
    sums[2] = sum_{i < j}  w_i w_j k(|y_i - y_j|^2)

`form` names the functions: "gaussian" is ``2^(-rates[k] d^2)``, "doubling" the same where each rate is twice
the one before (one exponential and K - 1 squares), "distance" is d itself, with K = 1.

Squared distances come from the Gram form ``|a|^2 + |b|^2 - 2 a.b``. It cancels where rows are far from the
origin and near one another, so the joint mean is taken away first (distances do not see it), and what is left
below the rounding of the form counts as zero: equal rows are at distance zero, with gradient zero.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from .._dispatch import outside_autocast

# A squared distance below this part of |a|^2 + |b|^2 is rounding.
ROUNDING: Final = 2.0**-20
_ROUNDING_FLOAT64: Final = 2.0**-46


@outside_autocast
def pair_sums(
    x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None, rates: Tensor, form: str
) -> Tensor:
    """The three sums over pairs, [3, K] in float64; the definition, with whole matrices of pairs."""
    centre = joint_mean(x, y)
    x, y = wide(x) - wide(centre), wide(y) - wide(centre)
    a = x.new_ones(len(x)) if weights_x is None else weights_x
    b = y.new_ones(len(y)) if weights_y is None else weights_y
    sides = (
        (squared_distances(x, x), torch.outer(a, a).triu(1)),
        (squared_distances(x, y), torch.outer(a, b)),
        (squared_distances(y, y), torch.outer(b, b).triu(1)),
    )
    return torch.stack(
        [torch.stack([(w * k).sum(dtype=torch.float64) for k in kernels(d2, rates, form)]) for d2, w in sides]
    )


@outside_autocast
def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """``|a_i - b_j|^2``, [n, m], by the Gram form; rounding counts as zero."""
    lengths = a.square().sum(1)[:, None] + b.square().sum(1)
    d2 = lengths - 2 * a @ b.T
    return torch.where(d2 <= rounding(d2) * lengths, 0.0, d2)


def kernels(d2: Tensor, rates: Tensor, form: str) -> list[Tensor]:
    """The K functions of the squared distances."""
    if form == "distance":
        apart = d2 > 0
        return [torch.where(apart, torch.where(apart, d2, 1.0).sqrt(), d2)]
    return [torch.exp2(-rate * d2) for rate in rates]


@outside_autocast
def products(x: Tensor, y: Tensor, rates: Tensor, form: str, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``M @ labels`` and the column sums of M, the matrix of all pairs with a diagonal of zero.

    M is [N, N], the sum of the K functions; `labels` and the product are [N, Q].
    """
    z = wide(torch.cat((x, y))) - wide(joint_mean(x, y))
    matrix = torch.stack(kernels(squared_distances(z, z), rates, form)).sum(0)
    matrix = matrix.fill_diagonal_(0).to(labels.dtype)
    return matrix @ labels, matrix.sum(0)


def joint_mean(x: Tensor, y: Tensor) -> Tensor:
    """The mean of both samples, [G], a constant.

    In the dtype of the samples: where it is large against the spread, its difference to a row is then exact.
    """
    with torch.no_grad():
        total = x.sum(0, dtype=wide_dtype(x)) + y.sum(0, dtype=wide_dtype(x))
        return (total / (len(x) + len(y))).to(x.dtype)


def rounding(tensor: Tensor) -> float:
    """The part of |a|^2 + |b|^2 below which a squared distance is rounding."""
    return _ROUNDING_FLOAT64 if tensor.dtype == torch.float64 else ROUNDING


def derivative_factors(dsums: Tensor, rates: Tensor, form: str) -> Tensor:
    """What the functions `slopes` are multiplied with in the gradient of a row, [3, K].

    The gradient of z_i is ``sum_j w_i w_j c_ij (z_i - z_j)``, where c is twice the derivative of the sums in
    the squared distance: ``-2 ln 2 rate k`` for a Gaussian and ``1 / d`` for the distance.
    """
    return dsums if form == "distance" else dsums * (-2 * math.log(2)) * rates


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that `tensor` is computed in: float64 as it is, all else in float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def wide(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype that it is computed in."""
    return tensor.to(wide_dtype(tensor))
