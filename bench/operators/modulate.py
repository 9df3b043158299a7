"""Adaptive layer norm, alone and after a gated residual."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F

from scdd import kernels

from .case import Case, Operator, Work, normal

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    return (kernels.modulate(x, shift, scale),)


def _rows(per_condition: Tensor, x: Tensor) -> Tensor:
    return per_condition[:, None] if x.ndim == 3 else per_condition


def _eager_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    return (F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + _rows(scale, x)) + _rows(shift, x),)


def _gated(x: Tensor, shift: Tensor, scale: Tensor, residual: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
    return kernels.gated_residual_modulate(x, shift, scale, residual=residual, gate=gate)


def _eager_gated(
    x: Tensor, shift: Tensor, scale: Tensor, residual: Tensor, gate: Tensor
) -> tuple[Tensor, ...]:
    h = residual + _rows(gate, x) * x
    return *_eager_modulate(h, shift, scale), h


def _inputs(
    shape: tuple[int, ...], gated: bool, dtype: torch.dtype, device: torch.device
) -> dict[str, object]:
    row = (shape[0], shape[-1])
    shapes = {"x": shape, "shift": row, "scale": row}
    shapes |= {"residual": shape, "gate": row} if gated else {}
    return {name: normal(size, dtype, device, seed=i) for i, (name, size) in enumerate(shapes.items())}


def _work(shape: tuple[int, ...], gated: bool, size: int) -> Work:
    x, row = math.prod(shape), shape[0] * shape[-1]
    dshift = row if len(shape) == 3 else 0
    if gated:
        return Work(size * (4 * x + 3 * row), size * (6 * x + 4 * row + dshift))
    return Work(size * (2 * x + 2 * row), size * (3 * x + 2 * row + dshift))


# [C, N]: one condition a cell, from a laptop's batch to one that fills a GPU; [C, R, N]: tokens of a cell.
_SHAPES = ((512, 256), (4096, 512), (65_536, 1024), (32, 256, 768), (64, 2048, 1024))


def _case(shape: tuple[int, ...], gated: bool) -> Case:
    label = " ".join(
        f"{name}={size}" for name, size in zip("CRN" if len(shape) == 3 else "CN", shape, strict=True)
    )
    return Case(
        label=label,
        inputs=partial(_inputs, shape, gated),
        work=partial(_work, shape, gated),
        small=math.prod(shape) < 2**21,
    )


OPERATORS = (
    Operator(
        name="modulate",
        ours=_modulate,
        eager=_eager_modulate,
        cases=tuple(_case(shape, gated=False) for shape in _SHAPES),
    ),
    Operator(
        name="gated_residual_modulate",
        ours=_gated,
        eager=_eager_gated,
        cases=tuple(_case(shape, gated=True) for shape in _SHAPES),
    ),
)
