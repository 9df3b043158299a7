"""The step as PyTorch knows it: schema, fake, device dispatch and gradient.

Imports torch only. The kernels are imported inside the functions that launch them, so this works where Triton
is absent. A result that was not asked for is an empty tensor, as an operator returns a fixed number of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _dispatch
from . import reference
from .reference import none

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx


def _launch_forward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import ista_forward

    return ista_forward(*args)


def _launch_backward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import ista_backward

    return ista_backward(*args)


def _fake_forward(
    y: Tensor, operator: Tensor, level: Tensor | None, offset: float,
    residual: Tensor | None, gate: Tensor | None, keep: bool, count: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    separate = keep and (residual is not None or gate is not None)
    zeros = y.new_empty(() if count else 0, dtype=torch.int64)
    return y.new_empty(y.shape), y.new_empty(y.shape) if separate else none(y), zeros


def _fake_backward(
    dout: Tensor, h: Tensor, y: Tensor, operator: Tensor, gate: Tensor | None,
    need_y: bool, need_operator: bool, need_level: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return (
        y.new_empty(y.shape) if need_y else none(y),
        operator.new_empty(operator.shape) if need_operator else none(y),
        y.new_empty(y.shape[-1] if need_level else 0, dtype=wide_dtype(y)),
        none(y) if gate is None else gate.new_empty(gate.shape),
    )


_forward = _dispatch.define(
    "ista_forward(Tensor y, Tensor operator, Tensor? level, float offset, Tensor? residual, Tensor? gate,"
    " bool keep, bool count) -> (Tensor, Tensor, Tensor)",
    reference=reference.ista_forward,
    kernel=_launch_forward,
    fake=_fake_forward,
)
_backward = _dispatch.define(
    "ista_backward(Tensor dout, Tensor h, Tensor y, Tensor operator, Tensor? gate,"
    " bool need_y, bool need_operator, bool need_level) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.ista_backward,
    kernel=_launch_backward,
    fake=_fake_backward,
)


@_dispatch.outside_autocast
def _added(to: Tensor, a: Tensor, b: Tensor, step_size: float) -> Tensor:
    """``step_size * (to - a @ b)``, by one call."""
    return torch.addmm(to, a, b, beta=step_size, alpha=-step_size)


class IstaOperator(torch.autograd.Function):
    """``step_size * (D^T - D^T D)`` with its gradient: one matrix product each way.

    Saves the dictionary. The product and the difference are taken by one call that accumulates in float32
    and rounds once.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, dictionary: Tensor, step_size: float) -> Tensor:
        """Form the operator and keep the dictionary."""
        ctx.save_for_backward(dictionary)
        ctx.step_size = step_size  # type: ignore[attr-defined]
        return _added(dictionary.mT, dictionary.mT, dictionary, step_size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doperator: Tensor) -> tuple[Tensor, None]:
        """Return ``step_size * (G^T - D (G + G^T))`` for the gradient G of the operator."""
        (dictionary,) = ctx.saved_tensors
        transposed, step_size = doperator.mT, ctx.step_size
        return _added(transposed, dictionary, doperator + transposed, step_size), None


class IstaStep(torch.autograd.Function):
    """``ista_step`` with its gradient.

    Saves `y`, the operator, the gate, and `h` in the dtype of `y`: where there is neither gate nor residual
    that is `out` itself, else one more tensor, which the gradient of the gate needs in full.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, operator: Tensor, level: Tensor | None, residual: Tensor | None,
        gate: Tensor | None, offset: float, keep: bool, count: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Run the operator and keep what its gradient needs."""
        y, operator = y.contiguous(), operator.contiguous()
        residual = None if residual is None else residual.contiguous()
        gate = None if gate is None else unit_stride(gate)
        out, h, zeros = _forward(y, operator, level, offset, residual, gate, keep, count)
        is_out = residual is None and gate is None
        ctx.mark_non_differentiable(zeros)
        ctx.save_for_backward(out if is_out else h, y, operator, gate)
        return out, zeros

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        dout = dout.contiguous()
        need = ctx.needs_input_grad
        dy, doperator, dlevel, dgate = _backward(dout, *ctx.saved_tensors, *need[:3])
        found = (dy, doperator, dlevel, dout, dgate, None, None, None)
        return tuple(grad if needed else None for grad, needed in zip(found, need, strict=True))


def unit_stride(per_cell: Tensor) -> Tensor:
    """`per_cell` with its last dimension contiguous: the kernels step over cells, not elements."""
    return per_cell if per_cell.stride(-1) == 1 else per_cell.contiguous()


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that sums are taken in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
