"""The operator as PyTorch knows it: schema, fake and device dispatch; it has no gradient.

Imports torch only. The kernel is imported inside the function that launches it, so this works where Triton is
absent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _dispatch
from . import reference

if TYPE_CHECKING:
    from torch import Tensor


def _launch(*args: Any) -> tuple[Tensor, Tensor]:
    from .triton import denoise_step

    return denoise_step(*args)


def _fake(
    x: Tensor, output: Tensor, coefficients: Tensor, unconditional: Tensor | None, previous: Tensor | None,
    seed: Tensor | None, guidance: float, lowest: float, highest: float, with_estimate: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape), x.new_empty(x.shape if with_estimate else 0)


denoise_step = _dispatch.define(
    "denoise_step(Tensor x, Tensor output, Tensor coefficients, Tensor? unconditional, Tensor? previous,"
    " Tensor? seed, float guidance, float lowest, float highest, bool with_estimate) -> (Tensor, Tensor)",
    reference=reference.denoise_step,
    kernel=_launch,
    fake=_fake,
)
