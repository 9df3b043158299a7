"""What the step computes, in plain PyTorch.

`ista_operator` and `ista_step` are the definition, written for reading. `ista_forward` and `ista_backward`
are the same mathematics with its gradient written out and its elementwise part done in place; they are what a
CPU runs.

Shapes: `y`, `residual`, `h`, `out` and their gradients are [C, R, N] or [C, N]; `gate` is [C, N], `operator`
[N, N] and `level`, the step size times the threshold, [N]. Without a `level` it is the float `offset`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._dispatch import outside_autocast
from .._in_cells import in_cells


@outside_autocast
def ista_operator(dictionary: Tensor, step_size: float | Tensor) -> Tensor:
    """``step_size * (D^T - D^T D)``."""
    d = wide(dictionary)
    return (step_size * (d.mT - d.mT @ d)).to(dictionary.dtype)


@outside_autocast
def ista_step(
    y: Tensor, operator: Tensor, level: Tensor | None, offset: float,
    residual: Tensor | None, gate: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``h = relu(y + y operator^T - level)`` as ``residual + gate * h``, and the number of zeros of h."""
    h = torch.relu(wide(y) + wide(y) @ wide(operator).mT - (offset if level is None else level))
    return gated(h, residual, gate).to(y.dtype), count_zeros(h, y.dtype)


def ista_forward(
    y: Tensor, operator: Tensor, level: Tensor | None, offset: float,
    residual: Tensor | None, gate: Tensor | None, keep: bool, count: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`out`, `h` (empty where it is `out` or not to be kept) and the number of its zeros (or empty)."""
    if has_units_for(y):
        flat = y.flatten(0, -2)
        h = torch.mm(flat, operator.mT).add_(flat).sub_(offset if level is None else level).relu_()
        return _finish(y, h.view(y.shape), residual, gate, keep, count)
    rows = wide(y).flatten(0, -2)
    # the sum starts from y - level, so that the product is added to it with no pass of its own
    h = (rows - (offset if level is None else level)).addmm_(rows, wide(operator).mT).relu_().view(y.shape)
    return _finish(y, h, residual, gate, keep, count)


def has_units_for(y: Tensor) -> bool:
    """Whether this CPU multiplies matrices of the dtype of `y`, 16 bits wide, much faster than of float32."""
    return y.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _finish(
    y: Tensor, h: Tensor, residual: Tensor | None, gate: Tensor | None, keep: bool, count: bool
) -> tuple[Tensor, Tensor, Tensor]:
    zeros = count_zeros(h, y.dtype) if count else none(y, torch.int64)
    if residual is None and gate is None:
        return h.to(y.dtype), none(y), zeros
    out = gated(h, residual, gate).to(y.dtype)
    return out, h.to(y.dtype) if keep else none(y), zeros


def ista_backward(
    dout: Tensor, h: Tensor, y: Tensor, operator: Tensor, gate: Tensor | None,
    need_y: bool, need_operator: bool, need_level: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`dy`, `doperator`, `dlevel` and `dgate`, each empty where it is not needed."""
    narrow = has_units_for(y)

    def through_gate(dout: Tensor, h: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of ``y + y operator^T - level``, that of the gate, and the former summed over rows."""
        g, dgate = torch.ops.aten.threshold_backward(wide(dout), wide(h), 0), none(y)
        if gate is not None:
            dgate = sum_rows(g * wide(h)).to(y.dtype)
            g = g.mul_(per_row(gate, h))
        return g.to(y.dtype) if narrow else g, dgate, sum_rows(g) if need_level else none(g)

    g, dgate, total = in_cells(through_gate, dout, h, gate)
    rows = g.flatten(0, -2)
    dy = torch.addmm(rows, rows, operator.to(rows.dtype)).to(y.dtype).view(y.shape) if need_y else none(y)
    doperator = (rows.mT @ y.to(rows.dtype).flatten(0, -2)).to(y.dtype) if need_operator else none(y)
    return dy, doperator, -total.sum(0) if need_level else total, dgate


def gated(h: Tensor, residual: Tensor | None, gate: Tensor | None) -> Tensor:
    """``residual + gate * h``, without what is absent."""
    if gate is None:
        return h if residual is None else wide(residual) + h
    if residual is None:
        return per_row(gate, h) * h
    if residual.dtype == h.dtype == gate.dtype:
        # PyTorch itself computes that in float32 and rounds once
        return torch.addcmul(residual, gate.unsqueeze(1) if h.ndim == 3 else gate, h)
    return torch.addcmul(wide(residual), per_row(gate, h), h)


def count_zeros(h: Tensor, dtype: torch.dtype) -> Tensor:
    """How many elements of `h` are zero in `dtype`, an int64 scalar."""
    return h.numel() - torch.count_nonzero(h.detach().to(dtype))


def wide(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype that it is computed in: float64 as it is, all else in float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def per_row(gate: Tensor, x: Tensor) -> Tensor:
    """[C, N] made wide and broadcastable against `x`."""
    return wide(gate).unsqueeze(1) if x.ndim == 3 else wide(gate)


def sum_rows(tensor: Tensor) -> Tensor:
    """Sum over the rows of each cell: [C, R, N] to [C, N]."""
    return tensor.sum(1) if tensor.ndim == 3 else tensor


def none(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Stand in for a result that was not asked for."""
    return like.new_empty(0, dtype=dtype)
