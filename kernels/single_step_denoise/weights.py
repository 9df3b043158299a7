"""The frozen weights of a denoiser, packed as the kernels read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

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

    Raises
    ------
    ValueError
        There is no branch, a layer has no bias, or the sizes of two layers do not fit.
    """
    layers = [enter, *(layer for pair in branches for layer in pair), leave]
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
