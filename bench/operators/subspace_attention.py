"""Attention whose queries, keys and values are one tensor, at a fixed length and in segments."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scdd.kernels._segments import segment_schedule
from scdd.kernels.subspace_attention import multihead_subspace_attention

from .case import Case, Operator, Unavailable, Work, normal

if TYPE_CHECKING:
    from torch import Tensor


def _ours(w: Tensor, **segments: object) -> tuple[Tensor, ...]:
    return (multihead_subspace_attention(w, **segments),)


def _published(w: Tensor) -> tuple[Tensor, ...]:
    """As CRATE and White-Box DiT write it: every score in memory, twice."""
    heads = w.transpose(1, 2)
    weights = torch.softmax(torch.matmul(heads, heads.transpose(-1, -2)) * w.shape[-1] ** -0.5, dim=-1)
    return (torch.matmul(weights, heads).transpose(1, 2),)


def _thrice(w: Tensor) -> tuple[Tensor, ...]:
    heads = w.transpose(1, 2)
    return (F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2),)


def _sdpa(inputs: dict[str, object]) -> object:
    return _thrice


def _of_each(w: Tensor, cu_seqlens: Tensor, **_: object) -> tuple[Tensor, ...]:
    """One call of PyTorch's attention a segment."""
    starts = cu_seqlens.tolist()
    return (torch.cat([_thrice(w[None, i:j])[0][0] for i, j in pairwise(starts) if j > i]),)


def _varlen(inputs: dict[str, object]) -> object:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise Unavailable("this PyTorch has no torch.nn.attention.varlen") from error
    w, starts = inputs["w"], inputs["cu_seqlens"]
    if not w.is_cuda or w.dtype == torch.float32:
        raise Unavailable("varlen_attn takes 16-bit tensors on a GPU")
    longest = max(j - i for i, j in pairwise(starts.tolist()))

    def call(w: Tensor, cu_seqlens: Tensor, **_: object) -> tuple[Tensor, ...]:
        return (varlen_attn(w, w, w, cu_seqlens, cu_seqlens, longest, longest),)

    return call


def _work(tokens: int, pairs: int, heads: int, width: int, size: int) -> Work:
    """Bytes and flops that no implementation can avoid; `pairs` of tokens attend to one another in a head."""
    w, rows = size * tokens * heads * width, 4 * tokens * heads
    flops = 2 * pairs * heads * width
    # backward: w, out, dout and the log-sum-exp in, dw out; five products
    return Work(2 * w + rows, 4 * w + rows, 2 * flops, 5 * flops)


def _fixed_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    return {"w": normal(shape, dtype, device, seed=0)}


def _fixed(b: int, n: int, h: int, p: int) -> Case:
    return Case(
        label=f"B={b} N={n} H={h} P={p}",
        inputs=partial(_fixed_inputs, (b, n, h, p)),
        work=partial(_work, b * n, b * n * n, h, p),
        small=b * n * n * h * p < 2**30,
        unit="cells",
        units=b,
    )


def _lengths(segments: int, least: int, most: int) -> list[int]:
    drawn = torch.randint(least, most + 1, (segments,), generator=torch.Generator().manual_seed(0))
    return drawn.tolist()


def _segment_inputs(
    lengths: list[int], heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> dict[str, object]:
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    schedule = segment_schedule(starts, sum(lengths), tile_rows=64)
    return {
        "w": normal((sum(lengths), heads, width), dtype, device, seed=0),
        "cu_seqlens": starts.to(device),
        "schedule": schedule._replace(tiles=schedule.tiles.to(device), segments=schedule.segments.to(device)),
    }


def _segments(cells: int, least: int, most: int, h: int, p: int) -> Case:
    lengths = _lengths(cells, least, most)
    return Case(
        label=f"S={cells} N={least}..{most} H={h} P={p}",
        inputs=partial(_segment_inputs, lengths, h, p),
        work=partial(_work, sum(lengths), sum(n * n for n in lengths), h, p),
        small=cells * most < 2**11,
        unit="cells",
        units=cells,
    )


OPERATORS = (
    Operator(
        name="multihead_subspace_attention",
        ours=_ours,
        eager=_published,
        cases=(
            _fixed(16, 200, 8, 96),
            _fixed(512, 200, 8, 96),
            _fixed(512, 256, 12, 64),
            _fixed(16, 2048, 12, 64),
        ),
        baselines={"sdpa, w thrice": _sdpa},
    ),
    Operator(
        name="multihead_subspace_attention, segments",
        ours=_ours,
        eager=_of_each,
        cases=(_segments(4, 100, 400, 8, 64), _segments(64, 500, 3000, 8, 64)),
        baselines={"varlen_attn, w thrice": _varlen},
    ),
)
