"""Softmax attention inside the segments of a packed batch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scdd.kernels._segments import SegmentSchedule, segment_schedule
from scdd.kernels.segment_attention import segment_attention, tiles

from .case import Case, Operator, Unavailable, Work, normal

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .case import Function


def _ours(**inputs: Tensor) -> tuple[Tensor, ...]:
    tiles_of, segments = inputs.pop("tiles"), inputs.pop("segments")
    schedule = SegmentSchedule(tiles_of, segments, tiles.TILE_ROWS)
    return (segment_attention(**inputs, schedule=schedule),)


def _truth(**inputs: Tensor) -> tuple[Tensor, ...]:
    """The definition, cell by cell: padded scores in float64 fit no GPU."""
    del inputs["tiles"], inputs["segments"]
    return (segment_attention(**inputs, implementation="reference"),)


def _unscheduled(inputs: dict[str, object]) -> Function:
    """The operator when nobody made a schedule beforehand."""

    def function(**inputs: Tensor) -> tuple[Tensor, ...]:
        del inputs["tiles"], inputs["segments"]
        return (segment_attention(**inputs),)

    return function


def _cells(cu_seqlens: Tensor) -> tuple[int, int]:
    """Number of segments and the longest; waits for a GPU, so it is called before the clock runs."""
    lengths = cu_seqlens.diff()
    return len(lengths), int(lengths.max())


def _pad(packed: Tensor, cells: int, longest: int, segment: Tensor, place: Tensor) -> Tensor:
    """[T, H, D] to [S, H, longest, D]."""
    padded = packed.new_zeros((cells, longest, *packed.shape[1:]))
    return padded.index_put((segment, place), packed).transpose(1, 2)


def _eager(**inputs: Tensor) -> tuple[Tensor, ...]:
    """Pad to the longest, mask, softmax: with the scores in memory."""
    q, k, v, cu_seqlens = (inputs[name] for name in ("q", "k", "v", "cu_seqlens"))
    cells, longest = _cells(cu_seqlens)
    segment, place = _places(inputs)
    query, key, value = (_pad(t, cells, longest, segment, place) for t in (q, k, v))
    scores = query @ key.mT * q.shape[-1] ** -0.5
    if "key_value" in inputs:
        bias = _pad(torch.log1p(inputs["key_value"])[:, None, None], cells, longest, segment, place)
        scores = scores + inputs["key_weight"][:, None, None] * bias.mT
    if "coordinate" in inputs:
        at = _pad(inputs["coordinate"][:, None, None], cells, longest, segment, place)
        scores = scores - inputs["slope"][:, None, None] * (at - at.mT).abs()
    real = torch.arange(longest, device=q.device) < cu_seqlens.diff()[:, None]
    weights = scores.masked_fill(~real[:, None, None], float("-inf")).softmax(-1)
    return ((weights.to(v.dtype) @ value).transpose(1, 2)[segment, place],)


def _places(inputs: dict[str, Tensor] | dict[str, object]) -> tuple[Tensor, Tensor]:
    """Segment of every row, and its place there."""
    segment, cu_seqlens = inputs["segments"], inputs["cu_seqlens"]
    assert isinstance(segment, torch.Tensor)
    assert isinstance(cu_seqlens, torch.Tensor)
    segment = segment.long()
    return segment, torch.arange(len(segment), device=segment.device) - cu_seqlens.long()[segment]


def _only_plain(inputs: dict[str, object]) -> tuple[Tensor, int, int]:
    if "key_value" in inputs or "coordinate" in inputs:
        raise Unavailable("takes no biases in the kernel")
    cu_seqlens = inputs["cu_seqlens"]
    assert isinstance(cu_seqlens, torch.Tensor)
    return cu_seqlens, *_cells(cu_seqlens)


def _padded_sdpa(inputs: dict[str, object]) -> Function:
    """PyTorch's fused attention on a padded batch, with padding and its undoing, as a packed loader needs."""
    cu_seqlens, cells, longest = _only_plain(inputs)
    segment, place = _places(inputs)
    mask = (torch.arange(longest, device=segment.device) < cu_seqlens.diff()[:, None])[:, None, None]

    def function(*, q: Tensor, k: Tensor, v: Tensor, **_: Tensor) -> tuple[Tensor, ...]:
        padded = (_pad(t, cells, longest, segment, place) for t in (q, k, v))
        return (F.scaled_dot_product_attention(*padded, attn_mask=mask).transpose(1, 2)[segment, place],)

    return function


def _varlen(inputs: dict[str, object]) -> Function:
    """PyTorch's own packed attention."""
    cu_seqlens, _, longest = _only_plain(inputs)
    if cu_seqlens.device.type != "cuda":
        raise Unavailable("varlen_attn runs on CUDA")
    if getattr(inputs["q"], "dtype", None) not in (torch.bfloat16, torch.float16):
        raise Unavailable("varlen_attn takes bfloat16 and float16")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise Unavailable(f"this PyTorch has no varlen_attn ({error})") from error

    def function(*, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, **_: Tensor) -> tuple[Tensor, ...]:
        return (varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest),)

    return function


def _flex(inputs: dict[str, object]) -> Function:
    """FlexAttention with a mask of documents; the mask is made in the call, as each batch needs its own."""
    cu_seqlens, _, _ = _only_plain(inputs)
    if cu_seqlens.device.type != "cuda":
        raise Unavailable("FlexAttention without a GPU makes all scores")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    attend = torch.compile(flex_attention, dynamic=False)
    make_mask = torch.compile(create_block_mask, dynamic=False)

    def function(*, q: Tensor, k: Tensor, v: Tensor, segments: Tensor, **_: Tensor) -> tuple[Tensor, ...]:
        def same(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return segments[i] == segments[j]

        rows = len(segments)
        mask = make_mask(same, None, None, rows, rows, device=segments.device)
        heads_first = (t.transpose(0, 1)[None] for t in (q, k, v))
        return (attend(*heads_first, block_mask=mask)[0].transpose(0, 1),)

    return function


def _lengths(cells: int, shortest: int, longest: int) -> list[int]:
    generator = torch.Generator().manual_seed(cells)
    return torch.randint(shortest, longest + 1, (cells,), generator=generator).tolist()


def _inputs(
    lengths: list[int], heads: int, width: int, biased: bool, dtype: torch.dtype, device: torch.device
) -> dict[str, object]:
    rows = sum(lengths)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    schedule = segment_schedule(cu_seqlens, rows, tile_rows=tiles.TILE_ROWS)
    wide = torch.promote_types(dtype, torch.float32)
    found: dict[str, object] = {
        name: normal((rows, heads, width), dtype, device, seed=seed) for seed, name in enumerate("qkv")
    }
    found["cu_seqlens"] = cu_seqlens.to(device)
    found |= {"tiles": schedule.tiles.to(device), "segments": schedule.segments.to(device)}
    if biased:
        found["key_weight"] = normal((heads,), wide, device, seed=3)
        found["key_value"] = normal((rows,), wide, device, seed=4, grad=False).abs().requires_grad_()
        found["slope"] = normal((heads,), wide, device, seed=5)
        found["coordinate"] = normal((rows,), wide, device, seed=6, grad=False)
    return found


def _work(lengths: list[int], heads: int, width: int, biased: bool, size: int) -> Work:
    rows, pairs = sum(lengths), sum(length * length for length in lengths)
    matrix, flops = size * rows * heads * width, 4 * width * heads * pairs
    statistic, bias = 4 * rows * heads, 8 * rows if biased else 0
    return Work(
        forward_bytes=4 * matrix + statistic + bias,
        # q, k, v, out and dout are read, three gradients written; lse is read, and dbias is a row a head
        backward_bytes=8 * matrix + statistic * (2 if biased else 1) + 2 * bias,
        forward_flops=flops,
        backward_flops=flops * 5 // 2,
    )


def _case(lengths: list[int], heads: int, width: int, *, biased: bool = False) -> Case:
    shortest, longest = min(lengths), max(lengths)
    size = (lengths, heads, width, biased)
    return Case(
        label=f"S={len(lengths)} L={shortest}-{longest} H={heads} D={width}{' biased' * biased}",
        inputs=partial(_inputs, *size),
        work=partial(_work, *size),
        small=sum(length * length for length in lengths) * heads * width < 2**28,
        unit="cells",
        units=len(lengths),
    )


_CELLS = _lengths(40, 500, 3000)

_BASELINES: dict[str, Callable[[dict[str, object]], Function]] = {
    "without a schedule": _unscheduled,
    "padded SDPA": _padded_sdpa,
    "varlen_attn": _varlen,
    "FlexAttention": _flex,
}

OPERATORS = (
    Operator(
        name="segment_attention",
        ours=_ours,
        eager=_eager,
        truth=_truth,
        # that one multiplies in float32, where the kernels, as any for 16 bits, round the weights
        peer=_eager,
        cases=(
            # a laptop's batch, packed against padded
            _case(_lengths(16, 20, 200), 4, 32),
            _case(_lengths(8, 50, 500), 4, 64),
            _case(_lengths(8, 50, 500), 4, 64, biased=True),
            _case(_CELLS, 12, 64),
            _case(_CELLS, 12, 64, biased=True),
            _case(_CELLS, 8, 128),
            _case(_CELLS, 8, 128, biased=True),
            # cells of few genes, which share tiles
            _case(_lengths(2000, 10, 60), 12, 64),
        ),
        baselines=_BASELINES,
    ),
)
