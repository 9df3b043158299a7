"""The operators as PyTorch knows them: schema, fake, device dispatch and gradient.

Imports torch only. The kernels are imported inside the functions that launch them, so this works where Triton
is absent. An operator returns no None: a gradient that is not asked for is an empty tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _dispatch
from . import reference

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

_OPERANDS: Final = (
    "Tensor genes, Tensor? values, Tensor? streams, Tensor gene_table, Tensor? prefix_table, Tensor? weight,"
    " Tensor? bias, Tensor? mixing, Tensor? table, Tensor? gain, Tensor? shift, int mode, int value_stream,"
    " int norm, float eps"
)

# Position of each operand that can have a gradient, in the order in which the backward returns them.
_DIFFERENTIABLE: Final = (1, 3, 4, 5, 6, 7, 8, 9, 10)
_TENSORS: Final = 11


def _launch_forward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import embed_forward

    return embed_forward(*args)


def _launch_backward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import embed_backward

    return embed_backward(*args)


def _fake_forward(*operands: Any) -> tuple[Tensor, ...]:
    x = reference.Operands(*operands)
    wide = torch.float64 if x.gene_table.dtype == torch.float64 else torch.float32
    rows, width = x.genes.shape[0], x.gene_table.shape[1]
    rstd = x.gene_table.new_empty(0 if x.norm == reference.NO_NORM else (rows, 1), dtype=wide)
    mean = x.gene_table.new_empty((rows, 1) if x.norm == reference.LAYER_NORM else 0, dtype=wide)
    return x.gene_table.new_empty((rows, width)), mean, rstd


def _fake_backward(
    dy: Tensor, mean: Tensor, rstd: Tensor, tables: bool, *operands: Any
) -> tuple[Tensor, ...]:
    x = reference.Operands(*operands)
    grads = []
    for position in _DIFFERENTIABLE:
        operand = operands[position]
        absent = operand is None or (position in (3, 4) and not tables)
        like = x.values if position == 1 and x.values is not None else x.gene_table
        grads.append(like.new_empty(0) if absent else operand.new_empty(operand.shape))
    return tuple(grads)


_forward = _dispatch.define(
    f"embed_genes_forward({_OPERANDS}) -> (Tensor, Tensor, Tensor)",
    reference=reference.embed_forward,
    kernel=_launch_forward,
    fake=_fake_forward,
)
_backward = _dispatch.define(
    f"embed_genes_backward(Tensor dy, Tensor mean, Tensor rstd, bool tables, {_OPERANDS}) -> ("
    + ", ".join(["Tensor"] * len(_DIFFERENTIABLE))
    + ")",
    reference=reference.embed_backward,
    kernel=_launch_backward,
    fake=_fake_backward,
)


class EmbedGenes(torch.autograd.Function):
    """``embed_genes`` with its gradient.

    Saved for the backward are the inputs, two numbers a token (the mean of layer norm, and the reciprocal
    deviation) and nothing as wide as a token: the backward gathers the rows of genes again.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, *operands: Any) -> Tensor:
        """Run the operator and keep what its gradient needs."""
        contiguous = [o.contiguous() if isinstance(o, Tensor) else o for o in operands]
        y, mean, rstd = _forward(*contiguous)
        ctx.save_for_backward(mean, rstd, *contiguous[:_TENSORS])
        ctx.settings = contiguous[_TENSORS:]  # type: ignore[attr-defined]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        mean, rstd, *tensors = ctx.saved_tensors
        tables = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
        grads = _backward(dy.contiguous(), mean, rstd, tables, *tensors, *ctx.settings)
        found: list[Tensor | None] = [None] * (_TENSORS + len(ctx.settings))
        for position, grad in zip(_DIFFERENTIABLE, grads, strict=True):
            if ctx.needs_input_grad[position]:
                found[position] = grad
        return tuple(found)
