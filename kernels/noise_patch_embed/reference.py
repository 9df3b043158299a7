"""What the operator computes, in plain PyTorch.

`noise_patch_embed` is the definition, written for reading; the other functions are what a CPU runs, with the
gradient written out.

Shapes, in all of them: `x0`, `eps` and `noised` are [B, G]; `signal` and `noise` [B]; `weight` [D, P], `bias`
[D], `position` [N, D] with ``N = ceil(G / P)``; `tokens` [B, N, D].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _philox
from .._dispatch import outside_autocast


@outside_autocast
def noise_patch_embed(
    x0: Tensor, signal: Tensor, noise: Tensor, weight: Tensor, bias: Tensor, position: Tensor,
    seed: Tensor | None, eps: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``tokens = patches(noised) @ weight.T + bias + position`` of ``noised = signal x0 + noise eps``."""
    wide = _wide(weight)
    if eps is None:
        assert seed is not None
        eps = _philox.patch_noise(seed, x0.shape[0], x0.shape[1], weight.shape[1], wide)
    noised = signal.to(wide)[:, None] * x0.to(wide) + noise.to(wide)[:, None] * eps.to(wide)
    noised = noised.to(weight.dtype)
    tokens = patches(noised, weight).to(wide) @ weight.to(wide).mT + bias.to(wide) + position.to(wide)
    return tokens.to(weight.dtype), noised


def patches(cells: Tensor, weight: Tensor) -> Tensor:
    """Cut [B, G] into [B, N, P], the last patch filled up with zeros."""
    patch = weight.shape[1]
    missing = -cells.shape[1] % patch
    return F.pad(cells, (0, missing)).view(cells.shape[0], (cells.shape[1] + missing) // patch, patch)


def noise_patch_embed_forward(
    x0: Tensor, signal: Tensor, noise: Tensor, weight: Tensor, bias: Tensor, position: Tensor,
    seed: Tensor | None, eps: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`tokens` and `noised`."""
    wide = _wide(weight)
    if eps is None:
        assert seed is not None
        eps = _philox.patch_noise(seed, x0.shape[0], x0.shape[1], weight.shape[1], wide)
    noised = eps.to(wide) * noise.to(wide)[:, None]
    noised = noised.addcmul_(x0.to(wide), signal.to(wide)[:, None]).to(weight.dtype)
    tokens = F.linear(patches(noised, weight).to(wide), weight.to(wide))
    return tokens.add_(position.to(wide) + bias.to(wide)).to(weight.dtype), noised


def noise_patch_embed_backward(
    dtokens: Tensor, noised: Tensor, weight: Tensor, with_position: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`dweight`, `dbias` and `dposition`, which is empty unless asked for."""
    wide = _wide(weight)
    gradient = dtokens.to(wide)
    dweight = gradient.flatten(0, 1).mT @ patches(noised, weight).to(wide).flatten(0, 1)
    dposition = gradient.sum(0)
    dbias = dposition.sum(0).to(weight.dtype)
    dposition = dposition if with_position else dposition.new_empty(0)
    return dweight.to(weight.dtype), dbias, dposition.to(weight.dtype)


def noise_patch_embed_input_gradient(dtokens: Tensor, signal: Tensor, weight: Tensor, genes: int) -> Tensor:
    """`dx0`, float32 (float64 where the weight is)."""
    wide = _wide(weight)
    dpatches = dtokens.to(wide) @ weight.to(wide)
    return dpatches.flatten(1)[:, :genes] * signal.to(wide)[:, None]


def _wide(weight: Tensor) -> torch.dtype:
    """The dtype that is computed in."""
    return torch.promote_types(weight.dtype, torch.float32)
