"""What the operator computes, in plain PyTorch.

`segment_attention` is the definition, written for reading. `segment_attention_forward` and `_backward` are
the same mathematics with its gradient written out; they are what a CPU runs. They take all segments of one
length together, and so many queries at a time that the scores stay in the cache; without biases a segment
goes to PyTorch's own fused attention for CPUs.

Shapes, in all of them: `q`, `k`, `v`, `out` and their gradients are [T, H, D], `cu_seqlens` [S + 1],
`key_weight` and `slope` [H], `key_value` and `coordinate` [T]; `lse` is [H, T].
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._biases import Biases
from .._dispatch import outside_autocast
from .._segments import checked_starts

if TYPE_CHECKING:
    from collections.abc import Iterator

# 8 MiB of float32: the scores of one step, which are read several times, should not leave the cache.
_MOST_SCORES: Final = 2**21

_FLASH_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@outside_autocast
def segment_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float, biases: Biases
) -> tuple[Tensor, Tensor]:
    """`out`, and `lse` [T, H] without a gradient."""
    starts = checked_starts(cu_seqlens, len(q)).tolist()
    outs, lses = [_wide(v[:0])], [_wide(v[:0, :, 0])]
    for start, end in pairwise(starts):
        if start < end:
            here = slice(start, end)
            # [H, L, D]
            some_q, some_k, some_v = (_wide(t[here]).transpose(0, 1) for t in (q, k, v))
            with torch.autocast(q.device.type, enabled=False):
                out, lse = _one_segment(some_q, some_k, some_v, scale, biases.of_rows(here))
            outs.append(out.transpose(0, 1))
            lses.append(lse.mT)
    return torch.cat(outs).to(q.dtype), torch.cat(lses)


def _one_segment(q: Tensor, k: Tensor, v: Tensor, scale: float, biases: Biases) -> tuple[Tensor, Tensor]:
    """`out` [H, L, D] and `lse` [H, L] of one segment."""
    # [H, L, L]
    scores = scale * q @ k.mT
    if biases.key_weight is not None and biases.key_value is not None:
        scores = scores + biases.key_weight[:, None, None] * torch.log1p(biases.key_value)
    if biases.slope is not None and biases.coordinate is not None:
        distance = (biases.coordinate[:, None] - biases.coordinate).abs()
        scores = scores - biases.slope[:, None, None] * distance
    return scores.softmax(-1) @ v, scores.detach().logsumexp(-1)


@torch.autocast("cpu", enabled=False)
def segment_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, tiles: Tensor | None, segments: Tensor | None,
    key_weight: Tensor | None, key_value: Tensor | None, slope: Tensor | None, coordinate: Tensor | None,
    scale: float, tile_rows: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`out`, and the `lse` that the gradient needs."""
    biases = Biases(key_weight, key_value, slope, coordinate)
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[1::-1], dtype=_wide(q[:0]).dtype)
    for bucket in _buckets(cu_seqlens, q):
        # [n, H, L, D]
        blocks = [bucket.take(t) for t in (q, k, v)]
        if _is_plain(biases):
            block_out, block_lse = _FLASH_FORWARD(*blocks, scale=scale)
        else:
            wide_q, wide_k, wide_v = map(_wide, blocks)
            scores_of = _Scores(bucket, biases, scale)
            block_out, block_lse = _attend(wide_q, wide_k, wide_v, scores_of, bucket.queries)
        bucket.put(out, block_out)
        bucket.put(lse.mT, block_lse)
    return out, lse


@torch.autocast("cpu", enabled=False)
def segment_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor,
    tiles: Tensor | None, segments: Tensor | None, key_weight: Tensor | None, key_value: Tensor | None,
    slope: Tensor | None, coordinate: Tensor | None, scale: float, tile_rows: int,
    key_gradient: bool, slope_gradient: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of `q`, `k`, `v`, `key_weight`, `key_value` and `slope`; empty where none is asked for."""
    biases = Biases(key_weight, key_value, slope, coordinate)
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype) for t in (q, k, v))
    dbias = lse.new_empty(q.shape[:2]) if key_gradient else None
    dslope = lse.new_zeros(q.shape[1]) if slope_gradient else lse.new_empty(0)
    for bucket in _buckets(cu_seqlens, q):
        blocks = [bucket.take(t) for t in (dout, q, k, v)]
        block_lse = bucket.take(lse.mT)
        if _is_plain(biases):
            found = _FLASH_BACKWARD(*blocks, bucket.take(out), block_lse, 0.0, False, scale=scale)
        else:
            wide_dout, wide_q, wide_k, wide_v = map(_wide, blocks)
            scores_of = _Scores(bucket, biases, scale)
            *found, block_dbias, block_dslope = _attend_backward(
                wide_dout, wide_q, wide_k, wide_v, block_lse, scores_of, bucket.queries
            )
            if dbias is not None:
                bucket.put(dbias, block_dbias)
            if slope_gradient:
                dslope -= block_dslope
        for whole, block in zip((dq, dk, dv), found, strict=True):
            bucket.put(whole, block)
    return dq, dk, dv, *key_gradients(dbias, key_weight, key_value, lse), dslope


def key_gradients(
    dbias: Tensor | None, key_weight: Tensor | None, key_value: Tensor | None, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `key_weight` and `key_value` from that of their term, [T, H]; where it is None, empty.

    They have the dtype and device of `like`.
    """
    if dbias is None or key_weight is None or key_value is None:
        return like.new_empty(0), like.new_empty(0)
    # sums, not products of matrices: their order is the same every time, and never in tf32
    dweight = (dbias * torch.log1p(key_value)[:, None]).sum(0)
    return dweight, (dbias * key_weight).sum(1) / (1 + key_value)


class _Bucket(NamedTuple):
    """Segments of one length."""

    rows: slice | Tensor
    """Their rows, one segment after the other."""
    number: int
    length: int
    queries: int
    """How many queries to take at a time."""

    def take(self, packed: Tensor) -> Tensor:
        """[T, H, ...] to [n, H, L, ...]."""
        return packed[self.rows].unflatten(0, (self.number, self.length)).transpose(1, 2)

    def put(self, packed: Tensor, block: Tensor) -> None:
        """Write [n, H, L, ...] to its rows of [T, H, ...]."""
        packed[self.rows] = block.transpose(1, 2).flatten(0, 1).to(packed.dtype)


def _buckets(cu_seqlens: Tensor, q: Tensor) -> Iterator[_Bucket]:
    """All segments that are not empty, those of one length together as far as their scores are few."""
    starts = checked_starts(cu_seqlens, len(q))
    lengths = np.diff(starts)
    for length in np.unique(lengths[lengths > 0]).tolist():
        begins = starts[:-1][lengths == length]
        row_of_scores = q.shape[1] * length
        most = max(1, _MOST_SCORES // (row_of_scores * length))
        queries = max(16, _MOST_SCORES // row_of_scores)
        for some in np.split(begins, range(most, len(begins), most)):
            if len(some) == 1:
                yield _Bucket(slice(some[0], some[0] + length), 1, length, queries)
            else:
                rows = torch.from_numpy((some[:, None] + np.arange(length)).ravel())
                yield _Bucket(rows, len(some), length, queries)


class _Scores:
    """Scores of some queries of a bucket with all its keys."""

    def __init__(self, bucket: _Bucket, biases: Biases, scale: float) -> None:
        shape = (bucket.number, 1, 1, bucket.length)
        self.scale, self.key_bias, self.slope, self.coordinate = scale, None, None, None
        if biases.key_weight is not None and biases.key_value is not None:
            value = torch.log1p(biases.key_value[bucket.rows]).view(shape)
            # [n, H, 1, L]
            self.key_bias = biases.key_weight[:, None, None] * value
        if biases.slope is not None and biases.coordinate is not None:
            self.slope = biases.slope[:, None, None]
            # [n, 1, 1, L]
            self.coordinate = biases.coordinate[bucket.rows].view(shape)

    def __call__(self, q: Tensor, k: Tensor, some: slice) -> tuple[Tensor, Tensor | None]:
        """[n, H, B, L] for `q` [n, H, B, D] at `some` of the queries, and their distances [n, 1, B, L]."""
        scores, distance = (q @ k.mT).mul_(self.scale), None
        if self.key_bias is not None:
            scores += self.key_bias
        if self.coordinate is not None and self.slope is not None:
            distance = (self.coordinate.mT[:, :, some] - self.coordinate).abs_()
            scores.addcmul_(distance, self.slope, value=-1)
        return scores, distance


def _attend(q: Tensor, k: Tensor, v: Tensor, scores_of: _Scores, queries: int) -> tuple[Tensor, Tensor]:
    """`out` [n, H, L, D] and `lse` [n, H, L] of a bucket."""
    out, lse = torch.empty_like(v), q.new_empty(q.shape[:-1])
    for some in _slices(q.shape[2], queries):
        scores, _ = scores_of(q[:, :, some], k, some)
        highest = scores.amax(-1, keepdim=True)
        weights = scores.sub_(highest).exp_()
        total = weights.sum(-1, keepdim=True)
        out[:, :, some] = (weights @ v).div_(total)
        lse[:, :, some] = total.log_().add_(highest).squeeze(-1)
    return out, lse


def _attend_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, scores_of: _Scores, queries: int
) -> tuple[Tensor, ...]:
    """Gradients of a bucket: of `q`, `k`, `v`, of the key term [n, H, L], and less that of the slope [H].

    The gradients of a row of scores add up to zero, and those of the biases are sums over rows: so the
    mean is taken of the weights at hand, and not from `out`, which is rounded.
    """
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    dbias, dslope = torch.zeros_like(lse), lse.new_zeros(lse.shape[1])
    for some in _slices(q.shape[2], queries):
        here = q[:, :, some]
        scores, distance = scores_of(here, k, some)
        weights = scores.sub_(lse[:, :, some, None]).exp_()
        dv += weights.mT @ dout[:, :, some]
        dscores = (dout[:, :, some] @ v.mT).mul_(weights)
        dscores.addcmul_(weights, dscores.sum(-1, keepdim=True), value=-1)
        dq[:, :, some] = dscores @ k
        dk += dscores.mT @ here
        dbias += dscores.sum(-2)
        if distance is not None:
            dslope += dscores.mul_(distance).sum((0, 2, 3))
    return dq.mul_(scores_of.scale), dk.mul_(scores_of.scale), dv, dbias, dslope


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


def _is_plain(biases: Biases) -> bool:
    return biases.key_value is None and biases.coordinate is None


def _wide(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype that it is computed in: float64 as it is, all else in float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
