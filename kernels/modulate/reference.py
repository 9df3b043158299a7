"""What the operator computes, in plain PyTorch.

`modulate` and `gated_residual_modulate` are the definition, written for reading. The `*_forward` and
`*_backward` pairs below are the same mathematics with its gradient written out, on PyTorch's own fused layer
norm; they are what a CPU runs, where each extra operation on a small batch costs as much as the arithmetic.

Shapes, in all of them: `x`, `residual`, `y`, `h` and their gradients are [C, R, N] or [C, N]; `shift`,
`scale` and `gate` are [C, N]; `mean` and `rstd` are [C, R, 1] or [C, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def modulate_forward(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`y`, and the `mean` and `rstd` that the gradient needs."""
    if len(scale) and not scale.stride(0) and not shift.stride(0):
        # one row for all, as a sampler has: PyTorch's layer norm takes it along, in one pass
        weight, bias = 1 + _wide(scale[0]), _wide(shift[0])
        kept = x if x.dtype == torch.bfloat16 else _wide(x)
        y, mean, rstd = torch.native_layer_norm(kept, x.shape[-1:], weight, bias, eps)
        return y.to(x.dtype), mean, rstd
    normed, mean, rstd = torch.native_layer_norm(_wide(x), x.shape[-1:], None, None, eps)
    y = normed.addcmul_(normed, _rows(scale, x)).add_(_rows(shift, x))
    return y.to(x.dtype), mean, rstd


def modulate_backward(
    dy: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`dx`, `dshift` (empty for a 2-D `x`, where it is `dy`) and `dscale`."""
    dx, dshift, dscale = _norm_backward(_wide(dy), _wide(x), _rows(scale, x), mean, rstd)
    return dx.to(x.dtype), dshift.to(x.dtype), dscale.to(x.dtype)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`dx`, `dresidual`, `dgate`, `dshift` (empty for a 2-D `x`, where it is `dy`) and `dscale`."""
    dresidual, dshift, dscale = _norm_backward(_wide(dy), _wide(h), _rows(scale, x), mean, rstd)
    dresidual = dresidual.add_(_wide(dh))
    dx = dresidual * _rows(gate, x)
    dgate = _sum_rows(dresidual * _wide(x))
    return tuple(grad.to(x.dtype) for grad in (dx, dresidual, dgate, dshift, dscale))  # type: ignore[return-value]


def _norm_backward(
    dy: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the modulated layer norm, in the dtype of `dy`."""
    # the gradient of the normed rows is not named, so that its memory is free again for the next temporary
    dx, _, _ = torch.ops.aten.native_layer_norm_backward(
        torch.addcmul(dy, dy, scale), x, x.shape[-1:], mean, rstd, None, None, [True, False, False]
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
