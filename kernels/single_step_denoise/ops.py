"""The operator as PyTorch knows it: schema, fake, device dispatch and gradient.

Imports torch only. The kernels are imported inside the functions that launch them, so this works where Triton
is absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _dispatch
from . import reference
from .weights import DenoiserWeights

if TYPE_CHECKING:
    from collections.abc import Sequence

_WEIGHTS: Final = len(DenoiserWeights._fields)


def _launch_forward(*args: Any) -> tuple[Tensor, list[Tensor]]:
    from .triton import denoise_forward

    return denoise_forward(*args)


def _launch_backward(*args: Any) -> Tensor:
    from .triton import denoise_backward

    return denoise_backward(*args)


def _fake_forward(
    z: Tensor, eps: Tensor | None, seed: Tensor | None, condition: Tensor | None, modulation: Tensor,
    weights: Sequence[Tensor], signal_rows: Tensor | None, noise_rows: Tensor | None,
    signal: float, noise: float, mean: Tensor | None, std: Tensor | None, kind: str, norm_eps: float,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    codes, (depth, hidden, width), part = z.shape[0], weights[2].shape, weights[0]
    wide = torch.float64 if part.dtype == torch.float64 else torch.float32
    kept: list[Tensor] = []
    if keep and (z.device.type != "cpu" or _dispatch.INTERPRET):
        kept = [part.new_empty((depth + 1, codes, width))]
    elif keep:
        kept += [part.new_empty((codes, width)) for _ in range(depth + 1)]
        kept += [part.new_empty((codes, 1), dtype=wide) for _ in range(depth + 1)]
        kept += [part.new_empty((codes, hidden)) for _ in range(depth)]
    return z.new_empty(z.shape), kept


def _fake_backward(dout: Tensor, *rest: Any) -> Tensor:
    return dout.new_empty(dout.shape)


_forward = _dispatch.define(
    "single_step_denoise_forward(Tensor z, Tensor? eps, Tensor? seed, Tensor? condition, Tensor modulation,"
    " Tensor[] weights, Tensor? signal_rows, Tensor? noise_rows, float signal, float noise,"
    " Tensor? mean, Tensor? std, str kind, float norm_eps, bool keep) -> (Tensor, Tensor[])",
    reference=reference.denoise_forward,
    kernel=_launch_forward,
    fake=_fake_forward,
)
_backward = _dispatch.define(
    "single_step_denoise_backward(Tensor dout, Tensor? condition, Tensor modulation, Tensor[] weights,"
    " Tensor? signal_rows, Tensor? noise_rows, Tensor? std,"
    " float signal, float noise, str kind, float norm_eps, Tensor[] kept) -> Tensor",
    reference=reference.denoise_backward,
    kernel=_launch_backward,
    fake=_fake_backward,
)


class SingleStepDenoise(torch.autograd.Function):
    """``single_step_denoise`` with its gradient in the codes, and in nothing else.

    Saved for the backward: by the kernels the residual stream before each norm, ``[L + 1, B, W]`` in the
    dtype of the weights; on a CPU, where nothing is computed a second time, the normed rows instead, their
    deviations ``[B, 1]`` and the hidden layers ``[B, H]``. The codes themselves are not saved.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, eps: Tensor | None, seed: Tensor | None, condition: Tensor | None,
        modulation: Tensor, weights: tuple[Tensor, ...],
        levels: tuple[Tensor | None, Tensor | None, float, float],
        mean: Tensor | None, std: Tensor | None, kind: str, norm_eps: float,
    ) -> Tensor:  # fmt: skip
        """Run the operator and keep what its gradient needs."""
        signal_rows, noise_rows, *numbers = levels
        out, kept = _forward(
            z, eps, seed, condition, modulation, weights, *levels, mean, std, kind, norm_eps, z.requires_grad
        )
        ctx.save_for_backward(condition, modulation, signal_rows, noise_rows, std, *weights, *kept)
        ctx.settings = *numbers, kind, norm_eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the codes."""
        condition, modulation, signal_rows, noise_rows, std, *rest = ctx.saved_tensors
        weights, kept = rest[:_WEIGHTS], rest[_WEIGHTS:]
        rows = (signal_rows, noise_rows, std)
        dz = _backward(dout.contiguous(), condition, modulation, weights, *rows, *ctx.settings, kept)
        return dz, *(None,) * 10
