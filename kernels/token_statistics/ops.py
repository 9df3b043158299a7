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


def _launch_forward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import forward

    return forward(*args)


def _launch_backward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import backward

    return backward(*args)


def _fake_forward(w: Tensor, temperature: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, ...]:
    segments = w.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dtype = torch.float64 if w.dtype == torch.float64 else torch.float32
    square, moment = (w.new_empty((segments, *w.shape[-2:]), dtype=dtype) for _ in range(2))
    return w.new_empty(w.shape), square, moment, w.new_empty((segments, w.shape[-2]), dtype=dtype)


def _fake_backward(dout: Tensor, w: Tensor, temperature: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    return w.new_empty(w.shape), temperature.new_empty(temperature.shape)


_forward = _dispatch.define(
    "token_statistics_attention_forward(Tensor w, Tensor temperature, Tensor? cu_seqlens)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.forward,
    kernel=_launch_forward,
    fake=_fake_forward,
)
_backward = _dispatch.define(
    "token_statistics_attention_backward(Tensor dout, Tensor w, Tensor temperature, Tensor? cu_seqlens,"
    " Tensor square, Tensor moment, Tensor mass) -> (Tensor, Tensor)",
    reference=reference.backward,
    kernel=_launch_backward,
    fake=_fake_backward,
)


class TokenStatisticsAttention(torch.autograd.Function):
    """``token_statistics_attention`` with its gradient.

    Saves `w`, `temperature`, `cu_seqlens` and three statistics of each segment (``H (2 P + 1)`` float32
    numbers): nothing else that grows with the tokens. Memberships are computed again from the statistics.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, temperature: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """Run the operator and keep what its gradient needs."""
        w, temperature = w.contiguous(), temperature.contiguous()
        cu_seqlens = None if cu_seqlens is None else cu_seqlens.contiguous()
        out, *statistics = _forward(w, temperature, cu_seqlens)
        ctx.save_for_backward(w, temperature, cu_seqlens, *statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        dw, dtemperature = _backward(dout.contiguous(), *ctx.saved_tensors)
        return dw, dtemperature, None
