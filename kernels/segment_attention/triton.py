"""The kernels.

A program holds some rows of one tile of the schedule, for one head, and steps over the rows that they meet:
`forward` and `queries_bwd` hold queries and step over keys, `keys_bwd` holds keys and steps over queries. So
each gradient is summed by one program: no atomics, the same result every time, at the price of computing the
scores twice in the backward.

Each kernel has two loops, of which one runs. Where the tile is of one segment nothing is masked but the last,
partial step. Where segments share the tile, rows are told apart by segment; and since a weight of zero does
not silence a NaN, what goes into a product of matrices across segments is made finite first.

Where the registers do not take the rows of a head (BD < D), a program writes BD columns of its result: it
adds up the scores by BD columns at a time, loaded anew for each step. That repeats the scores D / BD times.

Scores are in units of log 2: ``exp2`` is the instruction, and its factor goes into the scale and the biases.
So is `lse`, which meets the same scores again in the backward: another unit would round it once more.
The naming system is described in `scdd.kernels._triton`; here ``m`` counts queries and ``n`` keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton import dot, store_narrow

_LOG2E = tl.constexpr(1.4426950408889634)
_COLUMNS = tl.constexpr(6)


@triton.jit
def open_tile(tiles, H: tl.constexpr, B: tl.constexpr, SPLIT: tl.constexpr):
    """Head, first and end row of this program, whether segments share its tile, and the rows that they meet.

    Heads are the fastest: so the programs with most to do come first, whatever the head.
    """
    i_p = tl.program_id(0)
    i_h, i_b = i_p % H, i_p // H
    p = tiles + (i_b // SPLIT).to(tl.int64) * _COLUMNS
    first = tl.load(p) + (i_b % SPLIT) * B
    end = tl.load(p + 1)
    shared = tl.load(p + 2) != tl.load(p + 3)
    other, other_end = tl.load(p + 4), tl.load(p + 5)
    return i_h, first, end, shared, other, other_end


@triton.jit
def first_column(D: tl.constexpr, BD: tl.constexpr):
    """The first of the columns of the result that this program writes."""
    if BD >= D:
        return 0
    return tl.program_id(1) * BD


@triton.jit
def load_rows(x, first, end, stride, i_h, i_d, D: tl.constexpr, BD: tl.constexpr, B: tl.constexpr):
    """[B, BD] of one head from row `first` and column `i_d`, zero from row `end` and where a head ends."""
    o_r, o_d = tl.arange(0, B), tl.arange(0, BD)
    m = (o_r < (end - first))[:, None]
    if D % BD != 0:
        m = m & (o_d < D)[None, :]
    p = x + tl.cast(first, tl.int64) * stride + i_h * D + i_d
    return tl.load(p + o_r[:, None] * stride + o_d[None, :], mask=m, other=0.0)


@triton.jit
def store_rows(
    x, block, first, end, i_h, i_d, H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, B: tl.constexpr
):
    """Store [B, BD] to the rows of a contiguous [T, H, D] that lie before `end`, from column `i_d`."""
    o_r, o_d = tl.arange(0, B), tl.arange(0, BD)
    m = (o_r < (end - first))[:, None]
    if D % BD != 0:
        m = m & (o_d < D)[None, :]
    p = x + (tl.cast(first, tl.int64) * H + i_h) * D + i_d
    store_narrow(p + o_r[:, None] * (H * D) + o_d[None, :], block, m)


@triton.jit
def load_each(x, first, end, B: tl.constexpr, other):
    """[B] of a vector from `first`, `other` from `end` on."""
    o_r = tl.arange(0, B)
    return tl.load(x + first + o_r, mask=o_r < (end - first), other=other)


@triton.jit
def load_key_bias(key_value, weight, first, end, B: tl.constexpr):
    """[B]; minus infinity from `end` on, so that no mask is needed beside it."""
    b_value = load_each(key_value, first, end, B, 0.0)
    return tl.where(tl.arange(0, B) < (end - first), weight * tl.log2(1.0 + b_value), float("-inf"))


@triton.jit
def biased(b_s, scale, b_bias, slope, b_distance, KEY_BIAS: tl.constexpr, SLOPE: tl.constexpr):
    """Scores in units of log 2 from the products `b_s`; the other arguments fit its shape."""
    b_s = b_s * scale
    if KEY_BIAS:
        b_s += b_bias
    if SLOPE:
        b_s -= slope * b_distance
    return b_s


@triton.jit
def weight_of(b_excess):
    """Weight of a score by how far it lies above the logarithm of the sum of its row.

    That is never, but for the rounding of two large numbers, which must not become a factor. A NaN stays.
    """
    return tl.exp2(tl.minimum(b_excess, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def finite(block):
    """`block` with zeros for what is not finite, and for each row 0, or NaN where there was such."""
    b_wide = block.to(tl.float32)
    b_clean = tl.where(tl.abs(b_wide) < float("inf"), b_wide, 0.0)
    return b_clean.to(block.dtype), tl.sum(b_wide * 0.0, 1)


@triton.jit
def products(
    b_held, held, first, end_held, stride_held, b_other, other, i_o, end, stride_other, i_h,
    D: tl.constexpr, BD: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """[BH, BO] of the held rows with those from `i_o`; if not whole, by `BD` columns at a time."""
    b_s = tl.zeros([b_held.shape[0], BO], tl.float32)
    if BD >= D:
        b_s = dot(b_held, tl.trans(b_other), b_s)
    else:
        # not unrolled: then the compiler would keep the addresses of all pieces, and spill
        for i_d in tl.range(0, D, BD):
            b_x = load_rows(held, first, end_held, stride_held, i_h, i_d, D, BD, b_held.shape[0])
            b_y = load_rows(other, i_o, end, stride_other, i_h, i_d, D, BD, BO)
            b_s = dot(b_x, tl.trans(b_y), b_s)
    return b_s


@triton.jit
def forward_step(
    b_q, b_acc, b_max, b_sum, q, k, v, key_value, coordinate, segments, b_at, b_segment, first, end_query,
    i_n, end, stride_q, stride_k, stride_v, scale, weight, slope, i_h, i_d,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
    KEY_BIAS: tl.constexpr, SLOPE: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Attend to keys `i_n` to ``i_n + BN``; [BM, BD], [BM] and [BM] of the running softmax."""
    # [BN, BD], [BM, BN]
    b_k = load_rows(k, i_n, end, stride_k, i_h, i_d, D, BD, BN)
    b_s = products(b_q, q, first, end_query, stride_q, b_k, k, i_n, end, stride_k, i_h, D, BD, BN)
    b_v = load_rows(v, i_n, end, stride_v, i_h, i_d, D, BD, BN)
    b_bias, b_distance = 0.0, 0.0
    if KEY_BIAS:
        b_bias = load_key_bias(key_value, weight, i_n, end, BN)[None, :]
    if SLOPE:
        b_distance = tl.abs(b_at[:, None] - load_each(coordinate, i_n, end, BN, 0.0)[None, :])
    b_s = biased(b_s, scale, b_bias, slope, b_distance, KEY_BIAS, SLOPE)
    if SHARED:
        b_other = load_each(segments, i_n, end, BN, -2)
        b_v, b_nan = finite(b_v)
        b_s = tl.where(b_segment[:, None] == b_other[None, :], b_s + b_nan[None, :], float("-inf"))
    elif not KEY_BIAS:  # noqa: SIM102, this is decided when compiling, the next when running
        if end - i_n < BN:
            b_s = tl.where((tl.arange(0, BN) < (end - i_n))[None, :], b_s, float("-inf"))
    # [BM]
    b_next = tl.maximum(b_max, tl.max(b_s, 1))
    b_level = b_next
    if SHARED:
        # a row that has met no key of its segment yet
        b_level = tl.where(b_next == float("-inf"), 0.0, b_next)
    b_p = tl.exp2(b_s - b_level[:, None])
    b_shrink = tl.exp2(b_max - b_level)
    b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
    b_acc = dot(b_p.to(b_v.dtype), b_v, b_acc * b_shrink[:, None])
    return b_acc, b_next, b_sum


@triton.jit
def segment_attention_fwd_kernel(
    q, k, v, out, lse, tiles, segments, key_weight, key_value, slope, coordinate,
    T, stride_q, stride_k, stride_v, scale,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BS: tl.constexpr, SPLIT: tl.constexpr, KEY_BIAS: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """`out` and `lse` of some queries."""
    i_h, first, end, shared, i_n, end_key = open_tile(tiles, H, BM, SPLIT)
    i_d = first_column(D, BD)
    if first >= end:
        return
    # [BM, BD]
    b_q = load_rows(q, first, end, stride_q, i_h, i_d, D, BD, BM)
    b_acc = tl.zeros([BM, BD], tl.float32)
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    weight, incline, b_at = 0.0, 0.0, 0.0
    if KEY_BIAS:
        weight = tl.load(key_weight + i_h)
    if SLOPE:
        incline = tl.load(slope + i_h) * _LOG2E
        b_at = load_each(coordinate, first, end, BM, 0.0)
    alone = tl.where(shared, i_n, end_key)
    for i in tl.range(i_n, alone, BN):
        b_acc, b_max, b_sum = forward_step(
            b_q, b_acc, b_max, b_sum, q, k, v, key_value, coordinate, segments, b_at, 0, first, end,
            i, end_key, stride_q, stride_k, stride_v, scale * _LOG2E, weight, incline, i_h, i_d,
            D, BD, BN, KEY_BIAS, SLOPE, False,
        )  # fmt: skip
    b_segment = load_each(segments, first, end, BM, -1)
    for i in tl.range(alone, tl.where(shared, end_key, alone), BS, num_stages=1):
        b_acc, b_max, b_sum = forward_step(
            b_q, b_acc, b_max, b_sum, q, k, v, key_value, coordinate, segments, b_at, b_segment, first, end,
            i, end_key, stride_q, stride_k, stride_v, scale * _LOG2E, weight, incline, i_h, i_d,
            D, BD, BS, KEY_BIAS, SLOPE, True,
        )  # fmt: skip
    # rows past the end of a shared tile meet no key
    b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)
    store_rows(out, b_acc / b_sum[:, None], first, end, i_h, i_d, H, D, BD, BM)
    o_m = tl.arange(0, BM)
    p_lse = lse + i_h.to(tl.int64) * T + first + o_m
    tl.store(p_lse, b_max + tl.log2(b_sum), mask=(o_m < (end - first)) & (i_d == 0))


@triton.jit
def queries_step(
    b_q, b_do, b_acc, b_rest, b_lse, b_delta, q, dout, k, v, key_value, coordinate, segments, b_at, b_segment,
    first, end_query, i_n, end, stride_q, stride_k, stride_v, scale, weight, slope, i_h, i_d,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
    KEY_BIAS: tl.constexpr, SLOPE: tl.constexpr, EXACT: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Add what keys `i_n` to ``i_n + BN`` contribute: [BM, BD], and [BM] of the sums of `b_ds`."""
    # [BN, BD], [BM, BN]
    b_k = load_rows(k, i_n, end, stride_k, i_h, i_d, D, BD, BN)
    b_s = products(b_q, q, first, end_query, stride_q, b_k, k, i_n, end, stride_k, i_h, D, BD, BN)
    b_v = load_rows(v, i_n, end, stride_v, i_h, i_d, D, BD, BN)
    b_dp = products(b_do, dout, first, end_query, H * D, b_v, v, i_n, end, stride_v, i_h, D, BD, BN)
    b_bias, b_distance = 0.0, 0.0
    if KEY_BIAS:
        b_bias = load_key_bias(key_value, weight, i_n, end, BN)[None, :]
    if SLOPE:
        b_distance = tl.abs(b_at[:, None] - load_each(coordinate, i_n, end, BN, 0.0)[None, :])
    b_s = biased(b_s, scale, b_bias, slope, b_distance, KEY_BIAS, SLOPE)
    b_p = weight_of(b_s - b_lse[:, None])
    b_ds = b_p * (b_dp - b_delta[:, None])
    if SHARED:
        b_other = load_each(segments, i_n, end, BN, -2)
        b_ds = tl.where(b_segment[:, None] == b_other[None, :], b_ds, 0.0)
        b_k, _ = finite(b_k)
    elif not KEY_BIAS:  # noqa: SIM102, this is decided when compiling, the next when running
        if end - i_n < BN:
            b_ds = tl.where((tl.arange(0, BN) < (end - i_n))[None, :], b_ds, 0.0)
    if EXACT:
        b_rest += tl.sum(b_ds, 1)
    return dot(b_ds.to(b_k.dtype), b_k, b_acc), b_rest


@triton.jit
def queries_bwd_kernel(
    q, k, v, out, dout, dq, lse, delta, tiles, segments, key_weight, key_value, slope, coordinate,
    T, stride_q, stride_k, stride_v, scale,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BS: tl.constexpr, SPLIT: tl.constexpr, KEY_BIAS: tl.constexpr, SLOPE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """`dq` of some queries, and their `delta` = sum(out * dout) for the kernel over keys.

    The gradients of a row of scores add up to zero but for the rounding of `out`. Those of the biases are
    sums over rows, where that would pile up: if they are wanted (EXACT), `delta` takes up what is left over.
    """
    i_h, first, end, shared, i_n, end_key = open_tile(tiles, H, BM, SPLIT)
    i_d = first_column(D, BD)
    if first >= end:
        return
    # [BM, BD]
    b_do = load_rows(dout, first, end, H * D, i_h, i_d, D, BD, BM)
    # [BM]; exp2 of a score less infinity is the zero that rows past the end must be
    b_delta = tl.zeros([BM], tl.float32)
    for i in tl.static_range(0, D, BD):
        b_part = load_rows(dout, first, end, H * D, i_h, i, D, BD, BM).to(tl.float32)
        b_delta += tl.sum(b_part * load_rows(out, first, end, H * D, i_h, i, D, BD, BM).to(tl.float32), 1)
    p = i_h.to(tl.int64) * T
    b_lse = load_each(lse + p, first, end, BM, float("inf"))
    b_q = load_rows(q, first, end, stride_q, i_h, i_d, D, BD, BM)
    b_acc = tl.zeros([BM, BD], tl.float32)
    b_rest = tl.zeros([BM], tl.float32)
    weight, incline, b_at = 0.0, 0.0, 0.0
    if KEY_BIAS:
        weight = tl.load(key_weight + i_h)
    if SLOPE:
        incline = tl.load(slope + i_h) * _LOG2E
        b_at = load_each(coordinate, first, end, BM, 0.0)
    alone = tl.where(shared, i_n, end_key)
    for i in tl.range(i_n, alone, BN):
        b_acc, b_rest = queries_step(
            b_q, b_do, b_acc, b_rest, b_lse, b_delta, q, dout, k, v, key_value, coordinate, segments,
            b_at, 0, first, end, i, end_key, stride_q, stride_k, stride_v, scale * _LOG2E, weight, incline,
            i_h, i_d, H, D, BD, BN, KEY_BIAS, SLOPE, EXACT, False,
        )  # fmt: skip
    b_segment = load_each(segments, first, end, BM, -1)
    for i in tl.range(alone, tl.where(shared, end_key, alone), BS, num_stages=1):
        b_acc, b_rest = queries_step(
            b_q, b_do, b_acc, b_rest, b_lse, b_delta, q, dout, k, v, key_value, coordinate, segments,
            b_at, b_segment, first, end, i, end_key, stride_q, stride_k, stride_v, scale * _LOG2E, weight,
            incline, i_h, i_d, H, D, BD, BS, KEY_BIAS, SLOPE, EXACT, True,
        )  # fmt: skip
    store_rows(dq, b_acc * scale, first, end, i_h, i_d, H, D, BD, BM)
    o_m = tl.arange(0, BM)
    tl.store(delta + p + first + o_m, b_delta + b_rest, mask=(o_m < (end - first)) & (i_d == 0))


@triton.jit
def keys_step(
    b_k, b_v, b_dk, b_dv, b_db, b_dslope, q, k, v, dout, lse, delta, coordinate, segments, b_bias, b_at,
    b_segment, first, end_key, i_m, end, stride_q, stride_k, stride_v, scale, slope, i_h, i_d,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, KEY_BIAS: tl.constexpr,
    SLOPE: tl.constexpr, KEY_GRADIENT: tl.constexpr, SLOPE_GRADIENT: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Add what queries `i_m` to ``i_m + BM`` contribute: [BN, BD] twice and [BN] twice."""
    # [BM, BD], [BN, BM]
    b_q = load_rows(q, i_m, end, stride_q, i_h, i_d, D, BD, BM)
    b_s = products(b_k, k, first, end_key, stride_k, b_q, q, i_m, end, stride_q, i_h, D, BD, BM)
    b_do = load_rows(dout, i_m, end, H * D, i_h, i_d, D, BD, BM)
    b_dp = products(b_v, v, first, end_key, stride_v, b_do, dout, i_m, end, H * D, i_h, D, BD, BM)
    # [BM]; exp2 of a score less infinity is the zero that queries past the end must be
    b_lse = load_each(lse, i_m, end, BM, float("inf"))
    b_delta = load_each(delta, i_m, end, BM, 0.0)
    b_distance = 0.0
    if SLOPE:
        b_distance = tl.abs(b_at[:, None] - load_each(coordinate, i_m, end, BM, 0.0)[None, :])
    b_s = biased(b_s, scale, b_bias, slope, b_distance, KEY_BIAS, SLOPE)
    b_p = weight_of(b_s - b_lse[None, :])
    b_ds = b_p * (b_dp - b_delta[None, :])
    if SHARED:
        b_same = b_segment[:, None] == load_each(segments, i_m, end, BM, -2)[None, :]
        b_do, b_nan = finite(b_do)
        b_p = tl.where(b_same, b_p + b_nan[None, :], 0.0)
        b_ds = tl.where(b_same, b_ds, 0.0)
    b_dv = dot(b_p.to(b_do.dtype), b_do, b_dv)
    if KEY_GRADIENT:
        b_db += tl.sum(b_ds, 1)
    if SLOPE_GRADIENT:
        b_dslope += tl.sum(b_ds * b_distance, 1)
    if SHARED:
        b_q, _ = finite(b_q)
    b_dk = dot(b_ds.to(b_q.dtype), b_q, b_dk)
    return b_dk, b_dv, b_db, b_dslope


@triton.jit
def keys_bwd_kernel(
    q, k, v, dout, dk, dv, dbias, dslope, lse, delta, tiles, segments,
    key_weight, key_value, slope, coordinate, T, stride_q, stride_k, stride_v, scale,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BS: tl.constexpr, SPLIT: tl.constexpr, KEY_BIAS: tl.constexpr, SLOPE: tl.constexpr,
    KEY_GRADIENT: tl.constexpr, SLOPE_GRADIENT: tl.constexpr,
):  # fmt: skip
    """`dk`, `dv` and `dbias` [H, T] of some keys, and their part of `dslope` [programs]."""
    i_h, first, end, shared, i_m, end_query = open_tile(tiles, H, BN, SPLIT)
    i_d = first_column(D, BD)
    if first >= end:
        if SLOPE_GRADIENT:
            tl.store(dslope + tl.program_id(0), 0.0)
        return
    # [BN, BD]
    b_k = load_rows(k, first, end, stride_k, i_h, i_d, D, BD, BN)
    b_v = load_rows(v, first, end, stride_v, i_h, i_d, D, BD, BN)
    b_dk = tl.zeros([BN, BD], tl.float32)
    b_dv = tl.zeros([BN, BD], tl.float32)
    b_db = tl.zeros([BN], tl.float32)
    b_dslope = tl.zeros([BN], tl.float32)
    b_bias, incline, b_at = 0.0, 0.0, 0.0
    if KEY_BIAS:
        b_bias = load_key_bias(key_value, tl.load(key_weight + i_h), first, end, BN)[:, None]
    if SLOPE:
        incline = tl.load(slope + i_h) * _LOG2E
        b_at = load_each(coordinate, first, end, BN, 0.0)
    p = i_h.to(tl.int64) * T
    alone = tl.where(shared, i_m, end_query)
    for i in tl.range(i_m, alone, BM):
        b_dk, b_dv, b_db, b_dslope = keys_step(
            b_k, b_v, b_dk, b_dv, b_db, b_dslope, q, k, v, dout, lse + p, delta + p, coordinate, segments,
            b_bias, b_at, 0, first, end, i, end_query, stride_q, stride_k, stride_v, scale * _LOG2E, incline,
            i_h, i_d, H, D, BD, BM, KEY_BIAS, SLOPE, KEY_GRADIENT, SLOPE_GRADIENT, False,
        )  # fmt: skip
    b_segment = load_each(segments, first, end, BN, -1)
    for i in tl.range(alone, tl.where(shared, end_query, alone), BS, num_stages=1):
        b_dk, b_dv, b_db, b_dslope = keys_step(
            b_k, b_v, b_dk, b_dv, b_db, b_dslope, q, k, v, dout, lse + p, delta + p, coordinate, segments,
            b_bias, b_at, b_segment, first, end, i, end_query, stride_q, stride_k, stride_v, scale * _LOG2E,
            incline, i_h, i_d, H, D, BD, BS, KEY_BIAS, SLOPE, KEY_GRADIENT, SLOPE_GRADIENT, True,
        )  # fmt: skip
    store_rows(dk, b_dk * scale, first, end, i_h, i_d, H, D, BD, BN)
    store_rows(dv, b_dv, first, end, i_h, i_d, H, D, BD, BN)
    o_n = tl.arange(0, BN)
    if KEY_GRADIENT:
        tl.store(dbias + p + first + o_n, b_db, mask=(o_n < (end - first)) & (i_d == 0))
    if SLOPE_GRADIENT:
        # keys past the end met real queries
        b_dslope = tl.where(o_n < (end - first), b_dslope, 0.0)
        tl.store(dslope + tl.program_id(0), tl.sum(b_dslope, 0), mask=i_d == 0)
