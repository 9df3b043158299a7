"""The operators as PyTorch knows them: schema, fake, device dispatch and gradient.

Imports torch only. The kernels are imported inside the functions that launch them, so this works where Triton
is absent. `lse` is [H, T] in here, as that is how a kernel reads it without a gap;
the kernels leave it in units of log 2, the reference in its own.
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


def _launch_forward(*args: Any) -> tuple[Tensor, ...]:
    from .launch import segment_attention_forward

    return segment_attention_forward(*args)


def _launch_backward(*args: Any) -> tuple[Tensor, ...]:
    from .launch import segment_attention_backward

    return segment_attention_backward(*args)


def _fake_forward(q: Tensor, *_: Any) -> tuple[Tensor, ...]:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=dtype)


def _fake_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor,
    tiles: Tensor | None, segments: Tensor | None, key_weight: Tensor | None, key_value: Tensor | None,
    slope: Tensor | None, coordinate: Tensor | None, scale: float, tile_rows: int,
    key_gradient: bool, slope_gradient: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    rows, heads = q.shape[:2]
    sizes = (heads if key_gradient else 0, rows if key_gradient else 0, heads if slope_gradient else 0)
    return *(t.new_empty(t.shape) for t in (q, k, v)), *(lse.new_empty(size) for size in sizes)


_BIASES = "Tensor? key_weight, Tensor? key_value, Tensor? slope, Tensor? coordinate"
_LENGTHS = "Tensor cu_seqlens, Tensor? tiles, Tensor? segments"

_forward = _dispatch.define(
    f"segment_attention_forward(Tensor q, Tensor k, Tensor v, {_LENGTHS}, {_BIASES}, float scale,"
    " int tile_rows) -> (Tensor, Tensor)",
    reference=reference.segment_attention_forward,
    kernel=_launch_forward,
    fake=_fake_forward,
)
_backward = _dispatch.define(
    "segment_attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,"
    f" {_LENGTHS}, {_BIASES}, float scale, int tile_rows, bool key_gradient, bool slope_gradient)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.segment_attention_backward,
    kernel=_launch_backward,
    fake=_fake_backward,
)


class SegmentAttention(torch.autograd.Function):
    """``segment_attention`` with its gradient.

    Beside the inputs it keeps `out` and `lse`, one float32 a row and head: no score is kept.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, tiles: Tensor | None,
        segments: Tensor | None, key_weight: Tensor | None, key_value: Tensor | None, slope: Tensor | None,
        coordinate: Tensor | None, scale: float, tile_rows: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Run the operator and keep what its gradient needs."""
        tensors = (*map(_unit_stride, (q, k, v)), cu_seqlens, tiles, segments)
        biases = tuple(
            None if t is None else t.contiguous() for t in (key_weight, key_value, slope, coordinate)
        )
        out, lse = _forward(*tensors, *biases, scale, tile_rows)
        saved: tuple[Any, ...] = (*tensors[:3], out, lse, *tensors[3:], *biases)
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(lse)
        ctx.settings = scale, tile_rows  # type: ignore[attr-defined]
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        key_weight, key_value, slope = ctx.needs_input_grad[6:9]
        dq, dk, dv, dweight, dvalue, dslope = _backward(
            dout.contiguous(), *ctx.saved_tensors, *ctx.settings, key_weight or key_value, slope
        )
        given = (dweight if key_weight else None, dvalue if key_value else None, dslope if slope else None)
        return dq, dk, dv, None, None, None, *given, None, None, None


def _unit_stride(rows: Tensor) -> Tensor:
    """`rows` with the heads of a row side by side: a piece of a larger projection is read in place."""
    _, heads, width = rows.shape
    in_place = rows.stride(2) == 1 and rows.stride(1) == width and rows.stride(0) >= heads * width
    return rows if in_place else rows.contiguous()
