"""The coding rate of the subspaces."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scdd.kernels.coding_rate import subspace_coding_rate

from .case import Case, Operator, Work, normal

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def _ours(w: Tensor) -> tuple[Tensor, ...]:
    return (subspace_coding_rate(w, eps=0.1, normalise=True),)


def _on_side_of(w: Tensor, tokens: bool) -> tuple[Tensor, ...]:
    """In float32 at least, as no 16-bit dtype has a factorisation."""
    x = F.normalize(w.transpose(1, 2) if w.dtype == torch.float64 else w.transpose(1, 2).float(), dim=-1)
    gram = x @ x.mT if tokens else x.mT @ x
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    matrix = identity + x.shape[-1] / (x.shape[-2] * 0.01) * gram
    return (torch.linalg.cholesky_ex(matrix)[0].diagonal(dim1=-2, dim2=-1).log().sum((-1, -2)),)


def _eager(w: Tensor) -> tuple[Tensor, ...]:
    """On the smaller side already."""
    return _on_side_of(w, tokens=w.shape[1] < w.shape[3])


def _tokens(inputs: dict[str, object]) -> Callable[..., tuple[Tensor, ...]]:
    """N x N, as CRATE's code has it."""
    return partial(_on_side_of, tokens=True)


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    return {"w": normal(shape, dtype, device, seed=0)}


def _work(shape: tuple[int, ...], size: int) -> Work:
    batch, tokens, heads, channels = shape
    w, matrix = batch * tokens * heads * channels, batch * heads * channels**2
    gram, factor = 2 * w * channels, batch * heads * channels**3 // 3
    return Work(size * w + 8 * matrix, 2 * size * w + 8 * matrix, gram + factor, gram + 4 * factor)


_SHAPES = ((16, 200, 8, 96), (256, 200, 8, 96), (256, 256, 12, 64), (4, 64, 4, 32))


def _case(shape: tuple[int, ...]) -> Case:
    return Case(
        label=" ".join(f"{name}={size}" for name, size in zip("BNHP", shape, strict=True)),
        inputs=partial(_inputs, shape),
        work=partial(_work, shape),
        small=shape == _SHAPES[-1],
        unit="cells",
        units=shape[0],
    )


OPERATORS = (
    Operator(
        name="subspace_coding_rate",
        ours=_ours,
        eager=_eager,
        cases=tuple(_case(shape) for shape in _SHAPES),
        baselines={"side of the tokens": _tokens},
    ),
)
