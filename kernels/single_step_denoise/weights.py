"""The frozen weights of a denoiser, packed as the kernels read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from .._check import FLOATS
from .tiles import padded_latent

if TYPE_CHECKING:
    from collections.abc import Sequence


class DenoiserWeights(NamedTuple):
    """Weights of a residual MLP under adaptive layer norm, all of one dtype; made by :func:`pack_denoiser`.

    `E` is the length of a code rounded up to a power of two of at least 16, `W` the width, `H` the hidden
    width of a block and `L` the number of blocks. What lies beyond the length of a code is zero.
    """

    w_in: Tensor
    """[W, E], from a code to the residual stream."""
    b_in: Tensor
    """[W]"""
    w1: Tensor
    """[L, H, W], the first layer of every block."""
    b1: Tensor
    """[L, H]"""
    w2: Tensor
    """[L, W, H], the second."""
    b2: Tensor
    """[L, W]"""
    w_out: Tensor
    """[E, W], from the residual stream to a code."""
    b_out: Tensor
    """[E]"""


def pack_denoiser(
    enter: nn.Linear,
    branches: Sequence[tuple[nn.Linear, nn.Linear]],
    leave: nn.Linear,
    *,
    dtype: torch.dtype | None = None,
) -> DenoiserWeights:
    """Copy the layers of a denoiser into one contiguous pack; once, as its weights are frozen from here on.

    Parameters
    ----------
    enter, leave
        From a code [d] to the residual stream [W], and back.
    branches
        First and second layer of every block, [W] to [H] and back; at least one.
    dtype
        Of the pack: what the matrices are multiplied in; that of `enter` by default.

    Returns
    -------
    DenoiserWeights
        Copies without a gradient, on the device of the layers.

    Raises
    ------
    TypeError
        Something is not a `torch.nn.Linear`, or `dtype` is not supported.
    ValueError
        There is no branch, a layer has no bias, or the sizes of two layers do not fit.

    Examples
    --------
    >>> weights = scdd.kernels.pack_denoiser(net.enter, [(b[0], b[2]) for b in net.branches], net.leave)
    """
    branches = _checked_branches(branches)
    layers = [enter, *(layer for pair in branches for layer in pair), leave]
    for name, layer in (("enter", enter), ("leave", leave)):
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{name} is a {type(layer).__name__}; pass a torch.nn.Linear")
    if dtype is not None and dtype not in FLOATS:
        raise TypeError(f"dtype is {dtype}; choose torch.float32, bfloat16, float16 or float64")
    if not branches:
        raise ValueError("branches is empty; a denoiser has at least one block")
    if any(layer.bias is None for layer in layers):
        raise ValueError("a layer has no bias; give it one of zeros")
    width, hidden, latent = enter.out_features, branches[0][0].out_features, enter.in_features
    wanted = [(width, latent), *[(hidden, width), (width, hidden)] * len(branches), (latent, width)]
    found = [tuple(layer.weight.shape) for layer in layers]
    if found != wanted:
        raise ValueError(f"weights have shapes {found}; a denoiser of these sizes has {wanted}")
    more = padded_latent(latent) - latent
    first, second = zip(*branches, strict=True)
    pack = DenoiserWeights(
        w_in=nn.functional.pad(enter.weight, (0, more)),
        b_in=enter.bias,
        w1=torch.stack([layer.weight for layer in first]),
        b1=torch.stack([layer.bias for layer in first]),
        w2=torch.stack([layer.weight for layer in second]),
        b2=torch.stack([layer.bias for layer in second]),
        w_out=nn.functional.pad(leave.weight, (0, 0, 0, more)),
        b_out=nn.functional.pad(leave.bias, (0, more)),
    )
    dtype = dtype or enter.weight.dtype
    return DenoiserWeights(*(part.detach().to(dtype, copy=True).contiguous() for part in pack))


def _checked_branches(branches: object) -> list[tuple[nn.Linear, nn.Linear]]:
    """The branches as a list, once it is known that they are pairs of layers."""
    remedy = "pass pairs of torch.nn.Linear, the first and the second layer of each block"
    if isinstance(branches, str) or not hasattr(branches, "__iter__"):
        raise TypeError(f"branches is a {type(branches).__name__}; {remedy}")
    found = [tuple(pair) if isinstance(pair, (tuple, list, nn.ModuleList)) else () for pair in branches]
    if any(len(pair) != 2 or not all(isinstance(layer, nn.Linear) for layer in pair) for pair in found):
        raise TypeError(f"branches holds something else; {remedy}")
    return found  # type: ignore[return-value]
