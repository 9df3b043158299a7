"""The operators as PyTorch knows them: schema, fake, device dispatch and gradient.

Imports torch only. The kernel is imported inside the function that launches it, so this works where Triton
is absent.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _dispatch
from . import chunks, reference

if TYPE_CHECKING:
    from collections.abc import Callable


def _kernel(*args: Any, **kwargs: Any) -> None:
    from .triton import softmax

    softmax(*args, **kwargs)


def _losses_of(
    softmax: Callable[..., None],
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int, rows: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Losses [T], and the sums of exponentials and positions of the gathered rows [rows]."""
    index = chunks.gather(target, ignore_index, rows)
    problem = chunks.Problem(hidden, weight, bias, target, ignore_index, softmax)
    losses, lse = chunks.forward(problem, index)
    return _spread(losses, index, target, ignore_index, rows), lse, index


def _gradients_of(
    softmax: Callable[..., None],
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int, rows: int,
    want_hidden: bool, want_weight: bool, want_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Losses [T], positions of the gathered rows [rows] and the gradients of the sum of all losses."""
    index = chunks.gather(target, ignore_index, rows)
    problem = chunks.Problem(hidden, weight, bias, target, ignore_index, softmax)
    losses, gradients = chunks.gradients(problem, index, (want_hidden, want_weight, want_bias))
    return _spread(losses, index, target, ignore_index, rows), index, *gradients


def _backward_of(
    softmax: Callable[..., None],
    dlosses: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, lse: Tensor,
    index: Tensor, ignore_index: int, want_hidden: bool, want_weight: bool, want_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the weighted sum of the losses, the logits being computed again."""
    problem = chunks.Problem(hidden, weight, bias, target, ignore_index, softmax)
    # a row beyond the last token is ignored, whatever its weight
    some = torch.cat((dlosses.to(lse.dtype), lse.new_zeros(1)))[index]
    return chunks.gradients(problem, index, (want_hidden, want_weight, want_bias), lse=lse, dlosses=some)[1]


def _spread(losses: Tensor, index: Tensor, target: Tensor, ignore_index: int, rows: int) -> Tensor:
    each = chunks.scatter(losses, index, target.shape[0])
    each = reference.refuse_surplus(each, target, ignore_index, rows if rows < target.shape[0] else None)
    # an operator may return no view of a larger tensor that nothing else holds
    return each.contiguous()


def _fake_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int, rows: int
) -> tuple[Tensor, ...]:
    each, lse = (_fake_floats(hidden, size) for size in (target.shape[0], rows))
    return each, lse, target.new_empty(rows, dtype=torch.int64)


def _fake_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int, rows: int,
    want_hidden: bool, want_weight: bool, want_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    index = target.new_empty(rows, dtype=torch.int64)
    wanted = (want_hidden, want_weight, want_bias)
    return _fake_floats(hidden, target.shape[0]), index, *_fake_wanted(hidden, weight, rows, *wanted)


def _fake_backward(
    dlosses: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, lse: Tensor,
    index: Tensor, ignore_index: int, want_hidden: bool, want_weight: bool, want_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _fake_wanted(hidden, weight, index.shape[0], want_hidden, want_weight, want_bias)


def _fake_floats(hidden: Tensor, size: int) -> Tensor:
    return hidden.new_empty(size, dtype=torch.float64 if hidden.dtype == torch.float64 else torch.float32)


def _fake_wanted(
    hidden: Tensor, weight: Tensor, rows: int, want_hidden: bool, want_weight: bool, want_bias: bool
) -> tuple[Tensor, ...]:
    return (
        hidden.new_empty((rows, hidden.shape[1]) if want_hidden else 0),
        weight.new_empty(weight.shape if want_weight else 0),
        weight.new_empty(weight.shape[0] if want_bias else 0),
    )


_losses = _dispatch.define(
    "linear_cross_entropy_losses(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, int ignore_index,"
    " SymInt rows) -> (Tensor, Tensor, Tensor)",
    reference=partial(_losses_of, reference.softmax),
    kernel=partial(_losses_of, _kernel),
    fake=_fake_losses,
)
_gradients = _dispatch.define(
    "linear_cross_entropy_gradients(Tensor hidden, Tensor weight, Tensor? bias, Tensor target,"
    " int ignore_index, SymInt rows, bool want_hidden, bool want_weight, bool want_bias)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=partial(_gradients_of, reference.softmax),
    kernel=partial(_gradients_of, _kernel),
    fake=_fake_gradients,
)
_backward = _dispatch.define(
    "linear_cross_entropy_backward(Tensor dlosses, Tensor hidden, Tensor weight, Tensor? bias, Tensor target,"
    " Tensor lse, Tensor index, int ignore_index, bool want_hidden, bool want_weight, bool want_bias)"
    " -> (Tensor, Tensor, Tensor)",
    reference=partial(_backward_of, reference.softmax),
    kernel=partial(_backward_of, _kernel),
    fake=_fake_backward,
)


def losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int, rows: int
) -> Tensor:
    """Loss of each token without a gradient."""
    return _losses(*_contiguous(hidden, weight, bias, target), ignore_index, rows)[0]


class LinearCrossEntropy(torch.autograd.Function):
    """Mean or sum of the losses with its gradient.

    Saves the gradients themselves, unscaled: [rows, D] and [V, D] (and [V]) in the dtype of the inputs, with
    the position of each row and the number of masked tokens.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int,
        rows: int, reduction: str,
    ) -> Tensor:  # fmt: skip
        """Run the operator and keep its gradients."""
        ctx.tokens = target.shape[0]
        each, index, *gradients = _gradients(
            *_contiguous(hidden, weight, bias, target), ignore_index, rows, *ctx.needs_input_grad[:3]
        )
        count = (target != ignore_index).sum() if reduction == "mean" else None
        ctx.save_for_backward(index, count, *gradients)
        return each.sum() if count is None else each.sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        index, count, *gradients = ctx.saved_tensors
        # where no token is masked the gradients are zero, though the mean is none
        scale = dloss if count is None else dloss / count.clamp_min(1)
        wanted = zip(ctx.needs_input_grad[:3], gradients, strict=True)
        drows, dweight, dbias = (_scaled(gradient, scale) if want else None for want, gradient in wanted)
        dhidden = None if drows is None else chunks.scatter(drows, index, ctx.tokens)
        return dhidden, dweight, dbias, None, None, None, None


class LinearCrossEntropies(torch.autograd.Function):
    """The loss of each token with its gradient.

    Saves the inputs, and of each gathered row its position and sum of exponentials. The logits are computed
    again in the backward, as their gradient depends on what the losses are used for.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor,
        ignore_index: int, rows: int,
    ) -> Tensor:  # fmt: skip
        """Run the operator and keep what its gradient needs."""
        inputs = _contiguous(hidden, weight, bias, target)
        each, lse, index = _losses(*inputs, ignore_index, rows)
        ctx.save_for_backward(*inputs, lse, index)
        ctx.ignore_index = ignore_index
        return each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlosses: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        wanted = ctx.needs_input_grad[:3]
        index = ctx.saved_tensors[-1]
        gradients = _backward(dlosses, *ctx.saved_tensors, ctx.ignore_index, *wanted)
        drows, dweight, dbias = (g if want else None for want, g in zip(wanted, gradients, strict=True))
        dhidden = None if drows is None else chunks.scatter(drows, index, dlosses.shape[0])
        return dhidden, dweight, dbias, None, None, None


def _scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """``gradient * scale`` in one pass, in the dtype of `gradient`."""
    # a scale of no dimension would be rounded to that dtype first
    return torch.mul(gradient, scale.reshape(1), out=torch.empty_like(gradient))


def _contiguous(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    bias = None if bias is None else bias.contiguous()
    return hidden.contiguous(), weight.contiguous(), bias, target.contiguous()
