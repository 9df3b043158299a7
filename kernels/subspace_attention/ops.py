"""The operators as PyTorch knows them: schema, fake, device dispatch and gradient.

Imports torch only. The kernels are imported inside the functions that launch them, so this works where Triton
is absent.

Fixed lengths have neither `cu_seqlens` nor a schedule. In segments the reference reads `cu_seqlens` and the
kernels `tiles` and `segments`, each cut to at most `tile_rows` rows.
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

    from .._segments import SegmentSchedule


def _launch_forward(*args: Any) -> tuple[Tensor, Tensor]:
    from .launch import subspace_attention_forward

    return subspace_attention_forward(*args)


def _launch_backward(*args: Any) -> Tensor:
    from .launch import subspace_attention_backward

    return subspace_attention_backward(*args)


def _fake_forward(w: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(w.dtype, torch.float32)
    return w.new_empty(w.shape), w.new_empty((w.shape[-2], *w.shape[:-2]), dtype=dtype)


def _fake_backward(dout: Tensor, w: Tensor, *_: object) -> Tensor:
    return w.new_empty(w.shape)


_SEGMENTS = "Tensor? cu_seqlens, Tensor? tiles, Tensor? segments, int tile_rows"
_forward = _dispatch.define(
    f"subspace_attention_forward(Tensor w, float scale, {_SEGMENTS}) -> (Tensor, Tensor)",
    reference=reference.subspace_attention_forward,
    kernel=_launch_forward,
    fake=_fake_forward,
)
_backward = _dispatch.define(
    "subspace_attention_backward(Tensor dout, Tensor w, Tensor out, Tensor lse, float scale,"
    f" {_SEGMENTS}) -> Tensor",
    reference=reference.subspace_attention_backward,
    kernel=_launch_backward,
    fake=_fake_backward,
)


class SubspaceAttention(torch.autograd.Function):
    """``multihead_subspace_attention`` with its gradient.

    Saves `w`, `out` and one float32 a row and head, the log-sum-exp of its scores; of segments also the
    tensors that describe them, which the caller holds anyway.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, w: Tensor, scale: float, cu_seqlens: Tensor | None, schedule: SegmentSchedule | None
    ) -> Tensor:
        """Run the operator and keep what its gradient needs."""
        w = w.contiguous()
        tiles, segments, tile_rows = schedule if schedule is not None else (None, None, 0)
        out, lse = _forward(w, scale, cu_seqlens, tiles, segments, tile_rows)
        ctx.save_for_backward(w, out, lse, cu_seqlens, tiles, segments)  # type: ignore[arg-type]
        ctx.scale, ctx.tile_rows = scale, tile_rows  # type: ignore[attr-defined]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        w, out, lse, *segments = ctx.saved_tensors
        dw = _backward(dout.contiguous(), w, out, lse, ctx.scale, *segments, ctx.tile_rows)
        return dw, None, None, None
