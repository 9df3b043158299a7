"""The operators that can be benchmarked: their inputs, what they are compared with, what they must move."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from scdd import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    # any operator, its results always as a tuple
    Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator of `scdd.kernels`, with everything that the runner asks about it.

    Attributes
    ----------
    ours, eager
        The operator and the same formula in plain PyTorch. The latter is the baseline (also compiled) and, in
        float64, the truth that the gate compares with.
    input_shapes
        Shapes of all inputs, from one entry of `shapes`.
    elements
        Elements that any implementation must read and write, forward and backward, from the same entry.
    """

    name: str
    ours: Function
    eager: Function
    shapes: tuple[tuple[int, ...], ...]
    input_shapes: Callable[[tuple[int, ...]], list[tuple[int, ...]]]
    elements: Callable[[tuple[int, ...]], tuple[int, int]]

    def make_inputs(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Draw normal inputs that ask for gradients; zeros would flatter a GPU."""
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(size, generator=generator) for size in self.input_shapes(shape)]
        return [tensor.to(device, dtype).requires_grad_() for tensor in drawn]


def _rows(per_condition: Tensor, x: Tensor) -> Tensor:
    return per_condition[:, None] if x.ndim == 3 else per_condition


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    return (kernels.modulate(x, shift, scale),)


def _eager_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    return (F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + _rows(scale, x)) + _rows(shift, x),)


def _gated(x: Tensor, shift: Tensor, scale: Tensor, residual: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
    return kernels.gated_residual_modulate(x, shift, scale, residual=residual, gate=gate)


def _eager_gated(
    x: Tensor, shift: Tensor, scale: Tensor, residual: Tensor, gate: Tensor
) -> tuple[Tensor, ...]:
    h = residual + _rows(gate, x) * x
    return *_eager_modulate(h, shift, scale), h


def _sizes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Elements of x and of one modulation tensor."""
    return math.prod(shape), shape[0] * shape[-1]


def _modulate_elements(shape: tuple[int, ...]) -> tuple[int, int]:
    x, row = _sizes(shape)
    dshift = row if len(shape) == 3 else 0
    return 2 * x + 2 * row, 3 * x + 2 * row + dshift


def _gated_elements(shape: tuple[int, ...]) -> tuple[int, int]:
    x, row = _sizes(shape)
    dshift = row if len(shape) == 3 else 0
    return 4 * x + 3 * row, 6 * x + 4 * row + dshift


# [B, N]: one condition a cell, from a laptop's batch to one that fills a GPU; [B, T, N]: tokens of a cell.
_SHAPES = ((512, 256), (4096, 512), (65_536, 1024), (32, 256, 768), (64, 2048, 1024))

OPERATORS = (
    Operator(
        name="modulate",
        ours=_modulate,
        eager=_eager_modulate,
        shapes=_SHAPES,
        input_shapes=lambda shape: [shape, *2 * [(shape[0], shape[-1])]],
        elements=_modulate_elements,
    ),
    Operator(
        name="gated_residual_modulate",
        ours=_gated,
        eager=_eager_gated,
        shapes=_SHAPES,
        input_shapes=lambda shape: [shape, *2 * [(shape[0], shape[-1])], shape, (shape[0], shape[-1])],
        elements=_gated_elements,
    ),
)
