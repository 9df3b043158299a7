"""A whole block of the white-box diffusion transformer: as published, and out of our operators.

``x1 = x + g1 * MSSA(modulate(x))``, ``out = x1 + g2 * ISTA(modulate(x1))``, with shifts, scales and gates by one
linear layer from the condition of the cell.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F
from scdd.kernels import gated_residual_modulate, ista_step, modulate, multihead_subspace_attention

from .case import Case, Operator, Work, normal
from .ista import STEP_SIZE, THRESHOLD

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

HEAD_WIDTH = 96


def _published(**inputs: Tensor) -> tuple[Tensor, ...]:
    """The formulas as they stand, with a map of attention for every head in memory."""

    def attend(w: Tensor) -> Tensor:
        return ((w @ w.transpose(-1, -2)) * HEAD_WIDTH**-0.5).softmax(dim=-1) @ w

    return _three_products(attend, **inputs)


def _without_map(**inputs: Tensor) -> tuple[Tensor, ...]:
    """The same on PyTorch's fused attention, whose backward computes weights again and so rounds as ours."""
    return _three_products(lambda w: F.scaled_dot_product_attention(w, w, w), **inputs)


def _three_products(
    attend: Callable[[Tensor], Tensor],
    *,
    x: Tensor,
    condition: Tensor,
    adaln: Tensor,
    subspace: Tensor,
    merge: Tensor,
    bias: Tensor,
    dictionary: Tensor,
) -> tuple[Tensor, ...]:
    shift1, scale1, gate1, shift2, scale2, gate2 = F.linear(F.silu(condition), adaln)[:, None].chunk(
        6, dim=-1
    )
    y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
    attended = attend(_heads(F.linear(y, subspace)))
    x = x + gate1 * F.linear(attended.transpose(1, 2).reshape(x.shape), merge, bias)
    y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
    again = F.linear(F.linear(y, dictionary), dictionary.t())
    step = STEP_SIZE * (F.linear(y, dictionary.t()) - again) - STEP_SIZE * THRESHOLD
    return (x + gate2 * F.relu(y + step),)


def _ours(
    x: Tensor,
    condition: Tensor,
    adaln: Tensor,
    subspace: Tensor,
    merge: Tensor,
    bias: Tensor,
    dictionary: Tensor,
) -> tuple[Tensor, ...]:
    shift1, scale1, gate1, shift2, scale2, gate2 = F.linear(F.silu(condition), adaln).chunk(6, dim=-1)
    attended = _attend(F.linear(modulate(x, shift1, scale1), subspace))
    branch = F.linear(attended, merge, bias)
    y, x = gated_residual_modulate(branch, shift2, scale2, residual=x, gate=gate1)
    out = ista_step(y, dictionary, step_size=STEP_SIZE, threshold=THRESHOLD, residual=x, gate=gate2)
    return (out,)


def _attend(w: Tensor) -> Tensor:
    """Attention of each token to those of its subspace: queries, keys and values are the same."""
    return multihead_subspace_attention(w.unflatten(-1, (-1, HEAD_WIDTH))).flatten(2)


def _heads(w: Tensor) -> Tensor:
    return w.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)


def _inputs(cells: int, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    shapes = {"adaln": (6 * width, width), "subspace": (width, width), "merge": (width, width)}
    shapes |= {"dictionary": (width, width)}

    def weight(shape: tuple[int, ...], seed: int) -> Tensor:
        drawn = normal(shape, dtype, device, seed=seed, grad=False)
        return (drawn * width**-0.5).requires_grad_()

    weights = {name: weight(shape, seed) for seed, (name, shape) in enumerate(shapes.items(), 3)}
    return {
        "x": normal((cells, rows, width), dtype, device, seed=0),
        "condition": normal((cells, width), dtype, device, seed=1),
        "bias": normal((width,), dtype, device, seed=2),
        **weights,
    }


def _work(cells: int, rows: int, width: int, size: int) -> Work:
    """Products with three matrices (the collapsed step is one) and attention; each activation once.

    Forward: x, w, what was attended, branch, h, x1, y of both branches (8 and the output); what the backward
    reads and writes is twice that.
    """
    tokens = cells * rows
    numbers = tokens * width
    gemm, attention = 6 * numbers * width, 4 * numbers * rows
    bytes_moved = size * (14 * numbers + 9 * width * width)
    flops = gemm + attention + 12 * cells * width * width
    return Work(
        bytes_moved, 2 * bytes_moved, flops, 2 * gemm + attention * 5 // 2 + 24 * cells * width * width
    )


def _case(cells: int, rows: int, width: int, *, small: bool) -> Case:
    return Case(
        label=f"B={cells} N={rows} D={width}",
        inputs=partial(_inputs, cells, rows, width),
        work=partial(_work, cells, rows, width),
        small=small,
        unit="cells",
        units=cells,
    )


OPERATORS = (
    Operator(
        name="white_box_block",
        ours=_ours,
        eager=_published,
        peer=_without_map,
        cases=(
            _case(2, 50, 192, small=True),
            _case(16, 200, 768, small=False),
            _case(512, 200, 768, small=False),
        ),
        dtypes=("bfloat16",),
    ),
)
