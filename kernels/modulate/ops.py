"""The operators as PyTorch knows them: schema, fake, device dispatch and gradient.

Imports torch only. The kernels are imported inside the functions that launch them, so this works where Triton
is absent.

For a 2-D `x` the gradient of `shift` is `dy` itself. The backward operators then return an empty tensor in
its place, as writing that copy would cost a sixth of their memory traffic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _dispatch
from . import reference

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx


def _launch_modulate_forward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import modulate_forward

    return modulate_forward(*args)


def _launch_modulate_backward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import modulate_backward

    return modulate_backward(*args)


def _launch_gated_forward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import gated_residual_modulate_forward

    return gated_residual_modulate_forward(*args)


def _launch_gated_backward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import gated_residual_modulate_backward

    return gated_residual_modulate_backward(*args)


def _fake_modulate_forward(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), _fake_statistic(x), _fake_statistic(x)


def _fake_modulate_backward(
    dy: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), _fake_dshift(x, scale), scale.new_empty(scale.shape)


def _fake_gated_forward(
    x: Tensor, residual: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), x.new_empty(x.shape), _fake_statistic(x), _fake_statistic(x)


def _fake_gated_backward(
    dy: Tensor, dh: Tensor, x: Tensor, h: Tensor, gate: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, ...]:
    dx, dresidual = x.new_empty(x.shape), x.new_empty(x.shape)
    return dx, dresidual, gate.new_empty(gate.shape), _fake_dshift(x, scale), scale.new_empty(scale.shape)


def _fake_statistic(x: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((*x.shape[:-1], 1), dtype=dtype)


def _fake_dshift(x: Tensor, scale: Tensor) -> Tensor:
    return scale.new_empty(scale.shape if x.ndim == 3 else 0)


_modulate_forward = _dispatch.define(
    "modulate_forward(Tensor x, Tensor shift, Tensor scale, float eps) -> (Tensor, Tensor, Tensor)",
    reference=reference.modulate_forward,
    kernel=_launch_modulate_forward,
    fake=_fake_modulate_forward,
)
_modulate_backward = _dispatch.define(
    "modulate_backward(Tensor dy, Tensor x, Tensor scale, Tensor mean, Tensor rstd)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.modulate_backward,
    kernel=_launch_modulate_backward,
    fake=_fake_modulate_backward,
)
_gated_forward = _dispatch.define(
    "gated_residual_modulate_forward(Tensor x, Tensor residual, Tensor gate, Tensor shift, Tensor scale,"
    " float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.gated_residual_modulate_forward,
    kernel=_launch_gated_forward,
    fake=_fake_gated_forward,
)
_gated_backward = _dispatch.define(
    "gated_residual_modulate_backward(Tensor dy, Tensor dh, Tensor x, Tensor h, Tensor gate, Tensor scale,"
    " Tensor mean, Tensor rstd) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.gated_residual_modulate_backward,
    kernel=_launch_gated_backward,
    fake=_fake_gated_backward,
)


class Modulate(torch.autograd.Function):
    """``modulate`` with its gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        """Run the operator and keep what its gradient needs."""
        x, shift, scale = x.contiguous(), _unit_stride(shift), _unit_stride(scale)
        y, mean, rstd = _modulate_forward(x, shift, scale, eps)
        ctx.save_for_backward(x, scale, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        dx, dshift, dscale = _modulate_backward(dy.contiguous(), *ctx.saved_tensors)
        return dx, dshift if dy.ndim == 3 else dy, dscale, None


class GatedResidualModulate(torch.autograd.Function):
    """``gated_residual_modulate`` with its gradient."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, residual: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Run the operator and keep what its gradient needs."""
        x, residual = x.contiguous(), residual.contiguous()
        gate, shift, scale = _unit_stride(gate), _unit_stride(shift), _unit_stride(scale)
        y, h, mean, rstd = _gated_forward(x, residual, gate, shift, scale, eps)
        ctx.save_for_backward(x, h, gate, scale, mean, rstd)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        dx, dresidual, dgate, dshift, dscale = _gated_backward(
            dy.contiguous(), dh.contiguous(), *ctx.saved_tensors
        )
        return dx, dresidual, dgate, dshift if dy.ndim == 3 else dy, dscale, None


def _unit_stride(per_condition: Tensor) -> Tensor:
    """`per_condition` with its last dimension contiguous: the kernels step over conditions, not elements."""
    return per_condition if per_condition.stride(-1) == 1 else per_condition.contiguous()
