"""The operator as PyTorch knows it: schema, fake, device dispatch and gradient.

Imports torch only. The kernels are imported inside the functions that launch them, so this works where Triton
is absent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _dispatch
from . import reference


def _launch_forward(*args: Any) -> tuple[Tensor, Tensor]:
    from .triton import forward

    return forward(*args)


def _launch_backward(*args: Any) -> Tensor:
    from .triton import backward

    return backward(*args)


def _fake_forward(w: Tensor, cu_seqlens: Tensor | None, eps: float, normalise: bool) -> tuple[Tensor, Tensor]:
    segments = w.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    heads, channels = w.shape[-2:]
    dtype = torch.float64 if w.dtype == torch.float64 else torch.float32
    # as the factorisation leaves them, each matrix by columns
    factor = w.new_empty((segments, heads, channels, channels), dtype=dtype).mT
    return w.new_empty((segments, heads), dtype=dtype), factor


def _fake_backward(
    drate: Tensor, w: Tensor, cu_seqlens: Tensor | None, factor: Tensor, eps: float, normalise: bool
) -> Tensor:
    return w.new_empty(w.shape)


_forward = _dispatch.define(
    "subspace_coding_rate_forward(Tensor w, Tensor? cu_seqlens, float eps, bool normalise)"
    " -> (Tensor, Tensor)",
    reference=reference.forward,
    kernel=_launch_forward,
    fake=_fake_forward,
)
_backward = _dispatch.define(
    "subspace_coding_rate_backward(Tensor drate, Tensor w, Tensor? cu_seqlens, Tensor factor, float eps,"
    " bool normalise) -> Tensor",
    reference=reference.backward,
    kernel=_launch_backward,
    fake=_fake_backward,
)


class SubspaceCodingRate(torch.autograd.Function):
    """The rate of every head with its gradient.

    Saves `w`, `cu_seqlens` and the Cholesky factor of every head, P x P float32 numbers.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, cu_seqlens: Tensor | None, eps: float, normalise: bool) -> Tensor:
        """Run the operator and keep what its gradient needs."""
        w = w.contiguous()
        cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
        rate, factor = _forward(w, cu_seqlens, eps, normalise)
        ctx.save_for_backward(w, cu_seqlens, factor)
        ctx.settings = eps, normalise
        return rate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, drate: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        return _backward(drate.contiguous(), *ctx.saved_tensors, *ctx.settings), None, None, None
