"""The kernel between the two products, and the function that launches it.

A program has one row of the logits of a chunk. It reads the row once for the sum of its exponentials and once
more, from the cache, to put the gradient in its place. Rows that are ignored, also those that only fill a
chunk, are not read.

The naming system is described in `scdd.kernels._triton`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
import triton
import triton.language as tl

from .._triton import load_wide, on_device_of, store_narrow
from . import tiles

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def _logits(row, bias, i_v, V, stride, BV: tl.constexpr, BIASED: tl.constexpr):
    """Logits `i_v` and following of a row, [BV], minus infinity past its end; with their offsets and mask.

    Rows are padded to `stride`, which is a multiple of 16 as the vocabulary need not be. A mask that ends
    there leaves the loads wide.
    """
    o_v = i_v + tl.arange(0, BV)
    m_v = o_v < stride
    b_x = load_wide(row + o_v, m_v)
    if BIASED:
        b_x += load_wide(bias + o_v, m_v)
    return tl.where(o_v < V, b_x, -float("inf")), o_v, m_v


@triton.jit
def linear_cross_entropy_kernel(
    logits, bias, target, losses, lse, dlosses,
    V, stride, ignore_index,
    BV: tl.constexpr, BIASED: tl.constexpr, LSE_KNOWN: tl.constexpr, WEIGHTED: tl.constexpr,
    GRADIENT: tl.constexpr,
):  # fmt: skip
    """Loss and sum of exponentials of a row (unless known), then its gradient in place of the row."""
    i_r = tl.program_id(0).to(tl.int64)
    row = logits + i_r * stride
    i_target = tl.load(target + i_r).to(tl.int64)
    counted = i_target != ignore_index
    # the loop over the row of an ignored token has no turn
    end = tl.where(counted, V, 0)

    if LSE_KNOWN:
        b_lse = tl.load(lse + i_r)
    else:
        # read before the sums, whose barriers keep it ahead of the gradient that is written over it
        known = counted & (i_target >= 0) & (i_target < V)
        b_hit = tl.load(row + i_target, mask=known, other=float("nan")).to(tl.float32)
        if BIASED:
            b_hit += tl.load(bias + i_target, mask=known, other=0.0).to(tl.float32)
        b_max, b_sum = -float("inf"), 0.0
        for i_v in range(0, end, BV):
            b_x, _, _ = _logits(row, bias, i_v, V, stride, BV, BIASED)
            b_new = tl.maximum(b_max, tl.max(b_x, 0))
            # a bias may rule out whole blocks of genes
            b_level = tl.where(b_new == -float("inf"), 0.0, b_new)
            b_sum *= tl.exp2((b_max - b_level) * 1.4426950408889634)
            b_sum += tl.sum(tl.exp2((b_x - b_level) * 1.4426950408889634), 0)
            b_max = b_new
        b_lse = tl.where(counted, b_max + tl.log2(b_sum) * 0.6931471805599453, 0.0)
        tl.store(lse + i_r, b_lse)
        tl.store(losses + i_r, tl.where(counted, b_lse - b_hit, 0.0))

    if GRADIENT:
        for i_v in range(0, end, BV):
            b_x, o_v, m_v = _logits(row, bias, i_v, V, stride, BV, BIASED)
            b_d = tl.exp2((b_x - b_lse) * 1.4426950408889634) - tl.where(o_v == i_target, 1.0, 0.0)
            if WEIGHTED:
                b_d *= tl.load(dlosses + i_r)
            # zero past the end, also where a weight is not finite
            store_narrow(row + o_v, tl.where(o_v < V, b_d, 0.0), m_v)
        for i_v in range(end, V, BV):
            o_v = i_v + tl.arange(0, BV)
            store_narrow(row + o_v, tl.zeros([BV], tl.float32), o_v < stride)


def softmax(
    logits: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int,
    losses: Tensor, lse: Tensor, dlosses: Tensor | None, *, lse_known: bool, gradient: bool,
) -> None:  # fmt: skip
    """Launch the kernel; see `reference.softmax`."""
    rows, vocabulary = logits.shape
    tile = tiles.choose(logits.element_size())
    if bias is not None:
        bias = F.pad(bias, (0, logits.stride(0) - vocabulary))
    with on_device_of(logits):
        linear_cross_entropy_kernel[(rows,)](
            logits, bias, target, losses, lse, dlosses, vocabulary, logits.stride(0), ignore_index,
            BV=tile.width, BIASED=bias is not None, LSE_KNOWN=lse_known, WEIGHTED=dlosses is not None,
            GRADIENT=gradient, num_warps=tile.num_warps,
        )  # fmt: skip
