"""What the operator computes, in plain PyTorch.

`multihead_subspace_attention` is the definition, written for reading. The `*_forward` and `*_backward` pair
below is the same mathematics with its gradient written out; it is what a CPU runs. `w`, `out`, `dout` and
`dw` are [B, N, H, P], or [T, H, P] in segments; `lse` is [H, B, N] or [H, T].

The gradient. With ``s_ij = scale * w_i . w_j`` and ``p_ij = exp(s_ij - lse_i)``, a token takes part in three
roles, and its gradient is their sum::

    as query  scale * sum_j p_ij (dout_i . w_j - delta_i) w_j     delta_i = dout_i . out_i
    as key    scale * sum_j p_ji (dout_j . w_i - delta_j) w_j
    as value          sum_j p_ji dout_j

Scores are symmetric, so ``p_ji = exp(s_ij - lse_j)``: one row of scores is enough for all three.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from .._dispatch import outside_autocast
from .._segments import checked_starts

if TYPE_CHECKING:
    from collections.abc import Iterator

# Up to here the scores of all heads of a segment stay in the cache of a CPU, and transposing them is cheaper
# than a fifth product.
_WHOLE_ROWS: Final = 512
_BLOCK_ROWS: Final = 128


@outside_autocast
def multihead_subspace_attention(w: Tensor, scale: float, cu_seqlens: Tensor | None = None) -> Tensor:
    """``softmax(scale * w w^T) w`` of each head."""
    if cu_seqlens is not None:
        starts = checked_starts(cu_seqlens, w.shape[0]).tolist()
        return torch.cat(
            [w[:0]] + [multihead_subspace_attention(w[None, i:j], scale)[0] for i, j in pairwise(starts)]
        )
    heads = _wide(w).transpose(1, 2)
    with torch.autocast(w.device.type, enabled=False):
        weights = (scale * heads @ heads.mT).softmax(-1)
        return (weights @ heads).transpose(1, 2).to(w.dtype)


def subspace_attention_forward(
    w: Tensor, scale: float, cu_seqlens: Tensor | None, *_: object
) -> tuple[Tensor, Tensor]:
    """`out` and the log-sum-exp of the scores of each row, in float32 (float64 for float64)."""
    if cu_seqlens is None and w.numel():
        heads = w.transpose(1, 2)
        found, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            heads, heads, heads, scale=scale
        )
        # PyTorch lays its result out as ours is, so that neither is copied
        return found.transpose(1, 2).contiguous(), sums.transpose(0, 1).contiguous()
    out = torch.empty_like(w)
    lse = w.new_empty((w.shape[-2], *w.shape[:-2]), dtype=torch.promote_types(w.dtype, torch.float32))
    for rows in _batches(w, cu_seqlens):
        # [B, H, N, P]
        heads = _batched(w, rows).transpose(1, 2)
        found, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            heads, heads, heads, scale=scale
        )
        _batched(out, rows).copy_(found.transpose(1, 2))
        lse[:, rows].copy_(sums.transpose(0, 1).reshape(lse[:, rows].shape))
    return out, lse


def subspace_attention_backward(
    dout: Tensor, w: Tensor, out: Tensor, lse: Tensor, scale: float, cu_seqlens: Tensor | None, *_: object
) -> Tensor:
    """`dw`, the sum over the three roles."""
    dw = torch.empty_like(w)
    for rows in _batches(w, cu_seqlens):
        pieces = (_batched(t, rows) for t in (dout, w, out, dw))
        for b, (g, x, o, d) in enumerate(zip(*pieces, strict=True)):
            level = lse[:, rows] if cu_seqlens is not None else lse[:, rows.start + b]
            # [H, N, P]
            with torch.autocast("cpu", enabled=False):
                wide_g, wide_x, wide_o = (_wide(t).transpose(0, 1) for t in (g, x, o))
                found = _gradient(wide_g, wide_x, wide_o, level, scale)
            d.copy_(found.transpose(0, 1))
    return dw


def _gradient(dout: Tensor, w: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    """`dw` of one segment, all [H, N, P]; `lse` [H, N]."""
    delta = (dout * out).sum(-1)
    n = w.shape[1]
    if n <= _WHOLE_ROWS:
        p = torch.baddbmm(lse[..., None], w, w.mT, beta=-1, alpha=scale).exp_()
        ds = torch.bmm(dout, w.mT).sub_(delta[..., None]).mul_(p)
        return torch.bmm(p.mT, dout).baddbmm_(ds + ds.mT, w, alpha=scale)
    blocks = (slice(i, i + _BLOCK_ROWS) for i in range(0, n, _BLOCK_ROWS))
    return torch.cat([_gradient_of(i, dout, w, delta, lse, scale) for i in blocks], 1)


def _gradient_of(i: slice, dout: Tensor, w: Tensor, delta: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Rows `i` of `dw`, without the scores of the others."""
    s = torch.bmm(w[:, i], w.mT).mul_(scale)
    # what rows `i` give to all others and get from them; both are scores over one log-sum-exp or the other
    given = (s - lse[:, None]).exp_()
    taken = s.sub_(lse[:, i, None]).exp_()
    ds = torch.bmm(dout[:, i], w.mT).sub_(delta[:, i, None]).mul_(taken)
    ds.add_(torch.bmm(w[:, i], dout.mT).sub_(delta[:, None]).mul_(given))
    return torch.bmm(given, dout).baddbmm_(ds, w, alpha=scale)


def _batches(w: Tensor, cu_seqlens: Tensor | None) -> Iterator[slice]:
    """Slices of the first dimension, none of them empty: of each segment, or of all of a fixed length."""
    if cu_seqlens is None:
        if w.numel():
            yield slice(0, w.shape[0])
        return
    starts = checked_starts(cu_seqlens, w.shape[0]).tolist()
    for first, end in pairwise(starts):
        if end > first and w.numel():
            yield slice(first, end)


def _batched(tensor: Tensor, rows: slice) -> Tensor:
    """[B, N, H, P] of those rows."""
    return tensor[rows] if tensor.ndim == 4 else tensor[None, rows]


def _wide(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype that it is computed in: float64 as it is, all else in float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
