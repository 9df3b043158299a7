"""What the operators compute, in plain PyTorch; both the definition and what a CPU runs.

Segment by segment, and so many queries at a time that the scores stay in the cache. Nothing here has a
gradient.

Shapes: `q` and `k` [T, H, D], `lse` [T, H], `cu_seqlens` [S + 1], `key_weight` and `slope` [H], `key_value`
and `coordinate` [T], `genes` [T], `chosen` [R].
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from .._biases import Biases
from .._dispatch import outside_autocast
from .._segments import checked_starts

if TYPE_CHECKING:
    from collections.abc import Iterator

# 8 MiB of float32: the scores of one step, which are read several times, should not leave the cache.
_MOST_SCORES: Final = 2**21


@outside_autocast
def attention_mass(
    q: Tensor, k: Tensor, lse: Tensor, cu_seqlens: Tensor, tiles: Tensor | None, segments: Tensor | None,
    key_weight: Tensor | None, key_value: Tensor | None, slope: Tensor | None, coordinate: Tensor | None,
    scale: float, tile_rows: int,
) -> Tensor:  # fmt: skip
    """Sum of the attention that each key gets from the queries of its segment, [T, H]."""
    biases = Biases(key_weight, key_value, slope, coordinate)
    mass = torch.zeros(lse.shape, dtype=lse.dtype, device=lse.device)
    for start, end in _segments_of(cu_seqlens, len(q)):
        every = torch.arange(start, end, device=q.device)
        for some in _steps(every, q.shape[1] * (end - start)):
            mass[start:end] += _attention(q, k, lse, some, start, end, scale, biases).sum(1).mT
    return mass


@outside_autocast
def attention_rows(
    q: Tensor, k: Tensor, lse: Tensor, cu_seqlens: Tensor, genes: Tensor, chosen: Tensor,
    key_weight: Tensor | None, key_value: Tensor | None, slope: Tensor | None, coordinate: Tensor | None,
    n_genes: int, scale: float, per_head: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sums [R, n_genes] (or [R, H, n_genes]) of the attention of chosen genes, and counts [R, n_genes]."""
    biases = Biases(key_weight, key_value, slope, coordinate)
    row = _checked_rows(chosen, n_genes)
    known = (genes >= 0) & (genes < n_genes)
    of_token = torch.where(known, row[torch.where(known, genes, 0).long()], -1)
    heads = q.shape[1] if per_head else 1
    sums = lse.new_zeros((heads, len(chosen) * n_genes))
    counts = torch.zeros(len(chosen) * n_genes, dtype=torch.int32, device=q.device)
    for start, end in _segments_of(cu_seqlens, len(q)):
        queries = start + (of_token[start:end] >= 0).nonzero()[:, 0]
        keys = known[start:end].nonzero()[:, 0]
        for some in _steps(queries, q.shape[1] * (end - start)):
            attention = _attention(q, k, lse, some, start, end, scale, biases)[:, :, keys]
            attention = attention if per_head else attention.mean(0, keepdim=True)
            pairs = (of_token[some][:, None] * n_genes + genes[start + keys].long()).flatten()
            sums.index_add_(1, pairs, attention.flatten(1))
            counts.index_add_(0, pairs, torch.ones_like(pairs, dtype=torch.int32))
    shaped = sums.view(heads, len(chosen), n_genes).transpose(0, 1)
    shaped = shaped.contiguous() if per_head else shaped[:, 0].contiguous()
    return shaped, counts.view(len(chosen), n_genes)


def _attention(
    q: Tensor, k: Tensor, lse: Tensor, some: Tensor, start: int, end: int, scale: float, biases: Biases
) -> Tensor:
    """``exp(score - lse)`` of the queries `some` and all keys of their segment, [H, B, L]."""
    here = slice(start, end)
    scores = scale * (_wide(q[some]).transpose(0, 1) @ _wide(k[here]).permute(1, 2, 0))
    if biases.key_weight is not None and biases.key_value is not None:
        scores += biases.key_weight[:, None, None] * torch.log1p(biases.key_value[here])
    if biases.slope is not None and biases.coordinate is not None:
        distance = (biases.coordinate[some][:, None] - biases.coordinate[here]).abs()
        scores -= biases.slope[:, None, None] * distance
    return scores.sub_(lse[some].mT[:, :, None]).exp_()


def _checked_rows(chosen: Tensor, n_genes: int) -> Tensor:
    """The row of each gene among the chosen ones, int64 [n_genes], -1 for the others."""
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < n_genes:
        raise ValueError(f"chosen has ids outside 0 to {n_genes - 1}, the genes that n_genes names")
    row = torch.full((n_genes,), -1, dtype=torch.int64, device=chosen.device)
    row[chosen.long()] = torch.arange(len(chosen), device=chosen.device)
    if int((row >= 0).sum()) < len(chosen):
        raise ValueError("chosen names a gene twice; pass chosen.unique()")
    return row


def _segments_of(cu_seqlens: Tensor, total: int) -> Iterator[tuple[int, int]]:
    """Where each segment that is not empty starts and ends."""
    starts = checked_starts(cu_seqlens, total).tolist()
    return ((start, end) for start, end in itertools.pairwise(starts) if start < end)


def _steps(queries: Tensor, scores_a_query: int) -> tuple[Tensor, ...]:
    """`queries` in parts whose scores are few."""
    return queries.split(max(16, _MOST_SCORES // scores_a_query)) if len(queries) else ()


def _wide(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype that it is computed in: float64 as it is, all else in float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
