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
from . import reference

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx


def _launch_forward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import denoise_loss_forward

    return denoise_loss_forward(*args)


def _launch_backward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import denoise_loss_backward

    return denoise_loss_backward(*args)


def _fake_forward(
    h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor,
    x0: Tensor, signal: Tensor, noise: Tensor, cell_weight: Tensor | None,
    seed: Tensor | None, eps: Tensor | None, prediction: str, norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    wide = torch.promote_types(h.dtype, torch.float32)
    cells, patches, _ = h.shape
    residual = h.new_empty((cells, patches, weight.shape[0]))
    statistics = h.new_empty((4, cells, patches), dtype=wide)
    return h.new_empty((), dtype=wide), h.new_empty(cells, dtype=wide), residual, statistics


def _fake_backward(
    dloss: Tensor, h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, residual: Tensor,
    statistics: Tensor, genes: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    dshift, dscale = shift.new_empty(shift.shape), scale.new_empty(scale.shape)
    return h.new_empty(h.shape), dshift, dscale, weight.new_empty(weight.shape), h.new_empty(weight.shape[0])


_forward = _dispatch.define(
    "denoise_loss_forward(Tensor h, Tensor shift, Tensor scale, Tensor weight, Tensor bias, Tensor x0,"
    " Tensor signal, Tensor noise, Tensor? cell_weight, Tensor? seed, Tensor? eps, str prediction,"
    " float norm_eps) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.denoise_loss_forward,
    kernel=_launch_forward,
    fake=_fake_forward,
)
_backward = _dispatch.define(
    "denoise_loss_backward(Tensor dloss, Tensor h, Tensor shift, Tensor scale, Tensor weight,"
    " Tensor residual, Tensor statistics, SymInt genes) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=reference.denoise_loss_backward,
    kernel=_launch_backward,
    fake=_fake_backward,
)


class DenoiseLossFunction(torch.autograd.Function):
    """``denoise_loss`` with its gradient.

    Saved for it, besides the inputs: the residual of each gene (P numbers for the D of a row) and four
    statistics of a row. The gradient of `h` is not computed beforehand, though that would save a reading of
    `h`: it would have to be kept, and scaled by the gradient of the loss in another pass.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor,
        x0: Tensor, signal: Tensor, noise: Tensor, cell_weight: Tensor | None,
        seed: Tensor | None, eps: Tensor | None, prediction: str, norm_eps: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Run the operator and keep what its gradient needs."""
        h, shift, scale, weight, bias = (t.contiguous() for t in (h, shift, scale, weight, bias))
        rest = (t if t is None else t.contiguous() for t in (x0, signal, noise, cell_weight, seed, eps))
        loss, cells, residual, statistics = _forward(
            h, shift, scale, weight, bias, *rest, prediction, norm_eps
        )
        ctx.save_for_backward(h, shift, scale, weight, residual, statistics, cells)
        ctx.genes = x0.shape[1]  # type: ignore[attr-defined]
        ctx.weight_dtype = None if cell_weight is None else cell_weight.dtype  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(cells)  # type: ignore[attr-defined]
        return loss, cells

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        *saved, cells = ctx.saved_tensors
        gradients = _backward(dloss.contiguous(), *saved, ctx.genes)
        dcell_weight = None
        if ctx.needs_input_grad[8]:
            dcell_weight = (dloss * cells / max(1, len(cells))).to(ctx.weight_dtype)
        return *gradients, None, None, None, dcell_weight, None, None, None, None
