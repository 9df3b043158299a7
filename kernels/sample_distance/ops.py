"""The operators as PyTorch knows them: schema, fake, device dispatch and gradient.

Imports torch only. The kernels are imported inside the functions that launch them, so this works where Triton
is absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _dispatch
from . import blocks

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx


def _launch_forward(*args: Any) -> Tensor:
    from .triton import forward

    return forward(*args)


def _launch_backward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import backward

    return backward(*args)


def _launch_products(*args: Any) -> tuple[Tensor, Tensor]:
    from .triton import products

    return products(*args)


def _fake_forward(
    x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None, rates: Tensor, form: str
) -> Tensor:
    return x.new_empty((3, rates.shape[0]), dtype=torch.float64)


def _fake_backward(
    dsums: Tensor, x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None,
    rates: Tensor, form: str, need_x: bool, need_y: bool, need_weights: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    none = x.new_empty(0)
    dweights = (none, none)
    if need_weights and weights_x is not None and weights_y is not None:
        dweights = (weights_x.new_empty(weights_x.shape), weights_y.new_empty(weights_y.shape))
    dx = x.new_empty(x.shape) if need_x else x.new_empty(0)
    return dx, y.new_empty(y.shape) if need_y else x.new_empty(0), *(d.clone() for d in dweights)


def _fake_products(x: Tensor, y: Tensor, rates: Tensor, form: str, labels: Tensor) -> tuple[Tensor, Tensor]:
    return labels.new_empty(labels.shape), labels.new_empty(labels.shape[:1])


_forward = _dispatch.define(
    "sample_distance_forward(Tensor x, Tensor y, Tensor? weights_x, Tensor? weights_y, Tensor rates,"
    " str form) -> Tensor",
    reference=blocks.forward,
    kernel=_launch_forward,
    fake=_fake_forward,
)
_backward = _dispatch.define(
    "sample_distance_backward(Tensor dsums, Tensor x, Tensor y, Tensor? weights_x, Tensor? weights_y,"
    " Tensor rates, str form, bool need_x, bool need_y, bool need_weights)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference=blocks.backward,
    kernel=_launch_backward,
    fake=_fake_backward,
)
products = _dispatch.define(
    "sample_distance_products(Tensor x, Tensor y, Tensor rates, str form, Tensor labels) -> (Tensor, Tensor)",
    reference=blocks.products,
    kernel=_launch_products,
    fake=_fake_products,
)


class PairSums(torch.autograd.Function):
    """``pair_sums`` with its gradient in the samples and in their weights.

    Saved for the backward are the arguments alone; it forms the distances again.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None,
        rates: Tensor, form: str,
    ) -> Tensor:  # fmt: skip
        """Run the operator and keep what its gradient needs."""
        x, y = x.contiguous(), y.contiguous()
        ctx.save_for_backward(x, y, weights_x, weights_y, rates)  # type: ignore[arg-type]
        ctx.form = form  # type: ignore[attr-defined]
        return _forward(x, y, weights_x, weights_y, rates, form)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dsums: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        x, y, weights_x, weights_y, rates = ctx.saved_tensors
        need_x, need_y, need_weights_x, need_weights_y = ctx.needs_input_grad[:4]
        dx, dy, dweights_x, dweights_y = _backward(
            dsums.contiguous(), x, y, weights_x, weights_y, rates, ctx.form,
            need_x, need_y, need_weights_x or need_weights_y,
        )  # fmt: skip
        return (
            dx if need_x else None,
            dy if need_y else None,
            dweights_x if need_weights_x else None,
            dweights_y if need_weights_y else None,
            None,
            None,
        )
