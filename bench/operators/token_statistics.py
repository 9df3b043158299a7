"""Token statistics attention."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scdd.kernels.token_statistics import token_statistics_attention

from .case import Case, Operator, Work, normal

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def _ours(w: Tensor, temperature: Tensor) -> tuple[Tensor, ...]:
    return (token_statistics_attention(w, temperature),)


def _eager(w: Tensor, temperature: Tensor) -> tuple[Tensor, ...]:
    """As ToST's code has it, over [B, H, N, P]."""
    w = w.transpose(1, 2)
    normed = F.normalize(w, dim=-2) ** 2
    membership = torch.softmax(torch.sum(normed, dim=-1) * temperature.unsqueeze(-1), dim=1)
    share = (membership / (membership.sum(dim=-1, keepdim=True) + 1e-8)).unsqueeze(-2)
    attention = 1.0 / (1 + torch.matmul(share, w**2))
    return (-torch.mul(w.mul(membership.unsqueeze(-1)), attention).transpose(1, 2),)


def _attention(inputs: dict[str, object]) -> Callable[..., tuple[Tensor, ...]]:
    """Softmax attention over the same tokens, which it replaces: another function, for the cost alone."""

    def run(w: Tensor, temperature: Tensor) -> tuple[Tensor, ...]:
        heads = (w * temperature.unsqueeze(-1)).transpose(1, 2)
        return (F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2),)

    return run


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    return {
        "w": normal(shape, dtype, device, seed=0),
        "temperature": normal(shape[2:3], dtype, device, seed=1),
    }


def _work(shape: tuple[int, ...], size: int) -> Work:
    batch, tokens, heads, channels = shape
    w = batch * tokens * heads * channels
    # norm, alignment, moment and output; the least that any implementation moves is w in and out once
    return Work(size * 2 * w, size * 3 * w, 10 * w, 24 * w)


# the published width at a small and at a full batch, kernel-friendly heads, and one token a gene
_SHAPES = (
    (16, 200, 8, 96),
    (256, 200, 8, 96),
    (1024, 200, 8, 96),
    (256, 256, 12, 64),
    (32, 2000, 12, 64),
    (4, 64, 4, 32),
)


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
        name="token_statistics_attention",
        ours=_ours,
        eager=_eager,
        cases=tuple(_case(shape) for shape in _SHAPES),
    ),
)
