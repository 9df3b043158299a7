"""The overcomplete step as PyTorch knows it; see `ops` for how."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _dispatch
from . import overcomplete_reference as reference
from .ops import unit_stride, wide_dtype
from .reference import none


def _launch_forward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import overcomplete_forward

    return overcomplete_forward(*args)


def _launch_backward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import overcomplete_backward

    return overcomplete_backward(*args)


def _fake_forward(
    x: Tensor, dictionary: Tensor, readout: Tensor, level: Tensor | None, offset: float, step_size: float,
    residual: Tensor | None, gate: Tensor | None, keep: bool, count: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    code = (*x.shape[:-1], dictionary.shape[1])
    shapes = (code, x.shape, code, x.shape if gate is not None else (0,)) if keep else ((0,),) * 4
    zeros = x.new_empty(() if count else 0, dtype=torch.int64)
    return x.new_empty(x.shape), *(x.new_empty(shape) for shape in shapes), zeros


def _fake_backward(
    dout: Tensor, x: Tensor, dictionary: Tensor, readout: Tensor, z1: Tensor, missed: Tensor, z2: Tensor,
    v: Tensor, gate: Tensor | None, step_size: float,
    need_x: bool, need_dictionary: bool, need_readout: bool, need_level: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return (
        x.new_empty(x.shape) if need_x else none(x),
        x.new_empty(dictionary.shape) if need_dictionary else none(x),
        x.new_empty(readout.shape) if need_readout else none(x),
        x.new_empty(dictionary.shape[1] if need_level else 0, dtype=wide_dtype(x)),
        none(x) if gate is None else x.new_empty(gate.shape),
    )


_forward = _dispatch.define(
    "overcomplete_ista_forward(Tensor x, Tensor dictionary, Tensor readout, Tensor? level, float offset,"
    " float step_size, Tensor? residual, Tensor? gate, bool keep, bool count)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.forward,
    kernel=_launch_forward,
    fake=_fake_forward,
)
_backward = _dispatch.define(
    "overcomplete_ista_backward(Tensor dout, Tensor x, Tensor dictionary, Tensor readout, Tensor z1,"
    " Tensor missed, Tensor z2, Tensor v, Tensor? gate, float step_size, bool need_x, bool need_dictionary,"
    " bool need_readout, bool need_level) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.backward,
    kernel=_launch_backward,
    fake=_fake_backward,
)


class OvercompleteIstaStep(torch.autograd.Function):
    """``overcomplete_ista_step`` with its gradient.

    Saves `x`, both matrices, the gate, the codes `z1` and `z2`, ``missed = x - D z1``, and with a gate what
    was read out: 2 K + 2 N numbers a row, one N more with a gate.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dictionary: Tensor, readout: Tensor, level: Tensor | None,
        residual: Tensor | None, gate: Tensor | None,
        offset: float, step_size: float, keep: bool, count: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Run the operator and keep what its gradient needs."""
        x, dictionary, readout = x.contiguous(), dictionary.contiguous(), readout.contiguous()
        residual = None if residual is None else residual.contiguous()
        gate = None if gate is None else unit_stride(gate)
        out, *kept, zeros = _forward(
            x, dictionary, readout, level, offset, step_size, residual, gate, keep, count
        )
        ctx.mark_non_differentiable(zeros)
        ctx.save_for_backward(x, dictionary, readout, *kept, gate)
        ctx.step_size = step_size
        return out, zeros

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        dout = dout.contiguous()
        need = ctx.needs_input_grad
        dx, ddictionary, dreadout, dlevel, dgate = _backward(
            dout, *ctx.saved_tensors, ctx.step_size, *need[:4]
        )
        found = (dx, ddictionary, dreadout, dlevel, dout, dgate, None, None, None, None)
        return tuple(grad if needed else None for grad, needed in zip(found, need, strict=True))
