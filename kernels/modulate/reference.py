"""What the operator computes, in plain PyTorch.

`modulate` and `gated_residual_modulate` are the definition, written for reading. The `*_forward` and
`*_backward` pairs below are the same mathematics with its gradient written out, on PyTorch's own fused layer
norm; they are what a CPU runs, where each extra operation on a small batch costs as much as the arithmetic.
Large conditions go one by one: scale and shift of one are weights to PyTorch's layer norm, which takes them
along.

Shapes, in all of them: `x`, `residual`, `y`, `h` and their gradients are [C, R, N] or [C, N]; `shift`,
`scale` and `gate` are [C, N]; `mean` and `rstd` are [C, R, 1] or [C, 1].
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .._in_cells import in_cells


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """``layer_norm(x) * (1 + scale) + shift``."""
    wide = _wide(x)
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (normed * (1 + _rows(scale, x)) + _rows(shift, x)).to(x.dtype)


def gated_residual_modulate(
    x: Tensor, residual: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``h = residual + gate * x`` and ``y = layer_norm(h) * (1 + scale) + shift``."""
    h = (_wide(residual) + _rows(gate, x) * _wide(x)).to(x.dtype)
    return modulate(h, shift, scale, eps), h


def modulate_forward(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, ...]:
    """`y`, and the `mean` and `rstd` that the gradient needs."""
    if len(scale) and not scale.stride(0) and not shift.stride(0):
        return _forward(x, shift[:1], scale[:1], eps)  # one row for all, as a sampler has
    return in_cells(partial(_forward, eps=eps), x, shift, scale)


def modulate_backward(dy: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, ...]:
    """`dx`, `dshift` (empty for a 2-D `x`, where it is `dy`) and `dscale`."""
    return in_cells(_backward, dy, x, scale, mean, rstd)


def gated_residual_modulate_forward(
    x: Tensor, residual: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`y`, `h`, and the `mean` and `rstd` that the gradient needs."""
    # of 16 bits as well PyTorch computes this in float32 and rounds once
    h = torch.addcmul(residual, x, gate.unsqueeze(1) if x.ndim == 3 else gate)
    y, mean, rstd = modulate_forward(h, shift, scale, eps)
    return y, h, mean, rstd


def gated_residual_modulate_backward(
    dy: Tensor, dh: Tensor, x: Tensor, h: Tensor, gate: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, ...]:
    """`dx`, `dresidual`, `dgate`, `dshift` (empty for a 2-D `x`, where it is `dy`) and `dscale`."""
    return in_cells(_gated_backward, dy, dh, x, h, gate, scale, mean, rstd)


def _forward(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if len(scale) == 1:
        weight, bias = 1 + _wide(scale[0]), _wide(shift[0])
        kept = x if x.dtype == torch.bfloat16 else _wide(x)
        y, mean, rstd = torch.native_layer_norm(kept, x.shape[-1:], weight, bias, eps)
        return y.to(x.dtype), mean, rstd
    normed, mean, rstd = torch.native_layer_norm(_wide(x), x.shape[-1:], None, None, eps)
    y = normed.addcmul_(normed, _rows(scale, x)).add_(_rows(shift, x))
    return y.to(x.dtype), mean, rstd


def _backward(
    dy: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dshift, dscale = _norm_backward(_wide(dy), _wide(x), _wide(scale), mean, rstd)
    return dx.to(x.dtype), dshift.to(x.dtype), dscale.to(x.dtype)


def _gated_backward(
    dy: Tensor, dh: Tensor, x: Tensor, h: Tensor, gate: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, ...]:
    dresidual, dshift, dscale = _norm_backward(_wide(dy), _wide(h), _wide(scale), mean, rstd)
    dresidual = dresidual.add_(_wide(dh))
    dgate = _sum_rows(dresidual * _wide(x))
    dx = dresidual * _rows(gate, x)
    return tuple(grad.to(x.dtype) for grad in (dx, dresidual, dgate, dshift, dscale))


def _norm_backward(
    dy: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the modulated layer norm, in the dtype of `dy`."""
    if x.ndim == 3 and len(scale) == 1:
        weight = 1 + scale[0]
        # a bias is asked for where its gradient is, and its values are not looked at
        dx, dscale, dshift = torch.ops.aten.native_layer_norm_backward(
            dy, x, x.shape[-1:], mean, rstd, weight, weight, [True, True, True]
        )
        return dx, dshift[None], dscale[None]
    # the gradient of the normed rows is not named, so that its memory is free again for the next temporary
    dx, _, _ = torch.ops.aten.native_layer_norm_backward(
        torch.addcmul(dy, dy, _rows(scale, x)), x, x.shape[-1:], mean, rstd, None, None, [True, False, False]
    )
    dscale = _sum_rows((x - mean).mul_(rstd).mul_(dy))
    dshift = dy.sum(1) if dy.ndim == 3 else dy.new_empty(0)
    return dx, dshift, dscale


def _wide(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype that it is computed in: float64 as it is, all else in float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _rows(per_condition: Tensor, x: Tensor) -> Tensor:
    """[C, N] made wide and broadcastable against `x`."""
    wide = _wide(per_condition)
    return wide.unsqueeze(1) if x.ndim == 3 else wide


def _sum_rows(tensor: Tensor) -> Tensor:
    """Sum over the rows of each condition: [C, R, N] to [C, N]."""
    return tensor.sum(1) if tensor.ndim == 3 else tensor
