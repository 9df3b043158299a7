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
    from .triton import noise_patch_embed_forward

    return noise_patch_embed_forward(*args)


def _launch_backward(*args: Any) -> tuple[Tensor, ...]:
    from .triton import noise_patch_embed_backward

    return noise_patch_embed_backward(*args)


def _launch_input_gradient(*args: Any) -> Tensor:
    from .triton import noise_patch_embed_input_gradient

    return noise_patch_embed_input_gradient(*args)


def _fake_forward(
    x0: Tensor, signal: Tensor, noise: Tensor, weight: Tensor, bias: Tensor, position: Tensor,
    seed: Tensor | None, eps: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return weight.new_empty((x0.shape[0], *position.shape)), weight.new_empty(x0.shape)


def _fake_backward(
    dtokens: Tensor, noised: Tensor, weight: Tensor, with_position: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dposition = weight.new_empty(dtokens.shape[1:] if with_position else 0)
    return weight.new_empty(weight.shape), weight.new_empty(weight.shape[0]), dposition


def _fake_input_gradient(dtokens: Tensor, signal: Tensor, weight: Tensor, genes: int) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.new_empty((dtokens.shape[0], genes), dtype=dtype)


_forward = _dispatch.define(
    "noise_patch_embed_forward(Tensor x0, Tensor signal, Tensor noise, Tensor weight, Tensor bias,"
    " Tensor position, Tensor? seed, Tensor? eps) -> (Tensor, Tensor)",
    reference=reference.noise_patch_embed_forward,
    kernel=_launch_forward,
    fake=_fake_forward,
)
_backward = _dispatch.define(
    "noise_patch_embed_backward(Tensor dtokens, Tensor noised, Tensor weight, bool with_position)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference.noise_patch_embed_backward,
    kernel=_launch_backward,
    fake=_fake_backward,
)
_input_gradient = _dispatch.define(
    "noise_patch_embed_input_gradient(Tensor dtokens, Tensor signal, Tensor weight, SymInt genes) -> Tensor",
    reference=reference.noise_patch_embed_input_gradient,
    kernel=_launch_input_gradient,
    fake=_fake_input_gradient,
)


class NoisePatchEmbed(torch.autograd.Function):
    """``noise_patch_embed`` with its gradient.

    Saved for it: the noised cells in the dtype of the weight, a small part of the tokens (P of D numbers).
    To draw the noise again instead would need `x0` kept, which is no smaller, and the noise drawn once for
    every slice of D that a program of the backward takes.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x0: Tensor, signal: Tensor, noise: Tensor, weight: Tensor, bias: Tensor, position: Tensor,
        seed: Tensor | None, eps: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Run the operator and keep what its gradient needs."""
        given = None if eps is None else eps.contiguous()
        tensors = (x0, signal, noise, weight, bias, position)
        tokens, noised = _forward(*(t.contiguous() for t in tensors), seed, given)
        ctx.save_for_backward(noised, weight, signal)
        ctx.set_materialize_grads(False)
        ctx.dtype = x0.dtype  # type: ignore[attr-defined]
        return tokens, noised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtokens: Tensor | None, dnoised: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return a gradient for every argument of `forward`."""
        noised, weight, signal = ctx.saved_tensors
        parameters: tuple[Tensor | None, ...] = (None, None, None)
        dx0 = None if dnoised is None else dnoised * signal[:, None]
        if dtokens is not None:
            dtokens = dtokens.contiguous()
            if any(ctx.needs_input_grad[3:6]):
                with_position = ctx.needs_input_grad[5]
                dweight, dbias, dposition = _backward(dtokens, noised, weight.contiguous(), with_position)
                parameters = (dweight, dbias, dposition if with_position else None)
            if ctx.needs_input_grad[0]:
                through = _input_gradient(dtokens, signal.contiguous(), weight.contiguous(), noised.shape[1])
                dx0 = through if dx0 is None else dx0 + through
        if dx0 is not None:
            dx0 = dx0.to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return dx0, None, None, *parameters, None, None
