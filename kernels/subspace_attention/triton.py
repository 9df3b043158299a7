"""The kernels.

Rows of all heads lie in one tensor [T, H, P]. Fixed-length input is the same with segments of `N` rows end to
end. A program owns some rows of one head and visits all keys of their segment: whole blocks of keys first,
which need no mask, then what is left. A tile that packs several whole segments has only the latter, masked by
segment.

As queries, keys and values are one tensor, so is what is loaded: a block of `w` serves the scores and, as it
lies in shared memory, the values. Scores are symmetric, so the backward kernel finds in one block of scores
both what its rows attend to and who attends to them: it writes their whole gradient, once, without atomics.

The naming system is described in `scdd.kernels._triton`. Widths `PA` and `PB` are the two pieces of a head,
`b_x0` and `b_x1`; where there is no second, `b_x1` is a stand-in that the compiler drops.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton import INTERPRETED, dot, store_narrow

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _place(i, H, P: tl.constexpr, PA: tl.constexpr, BP: tl.constexpr):
    """Tile, head and first column of the result of a program; neighbours share cache lines."""
    if BP:
        heads = H * (P // PA)
        return i // heads, i % heads // (P // PA), i % (P // PA) * PA
    else:
        return i // H, i % H, 0


@triton.jit
def _span(tiles, N, i_t, BM: tl.constexpr, BN: tl.constexpr, SEGMENTED: tl.constexpr):
    """First row, rows, first key and keys of a tile, and how many keys are visited without a mask."""
    if SEGMENTED:
        p = tiles + i_t.to(tl.int64) * 6
        first_row, first_key = tl.load(p), tl.load(p + 4)
        rows, keys = tl.load(p + 1) - first_row, tl.load(p + 5) - first_key
        whole = tl.where(tl.load(p + 2) == tl.load(p + 3), keys // BN * BN, 0)
        return first_row.to(tl.int64), rows, first_key.to(tl.int64), keys, whole
    else:
        tiles_each = tl.cdiv(N, BM)
        done = i_t % tiles_each * BM
        first_key = (i_t // tiles_each).to(tl.int64) * N
        return first_key + done, N - done, first_key, N, N // BN * BN


@triton.jit
def _attends(p_segments, b_of_row, m_k, BT: tl.constexpr, SEGMENTED: tl.constexpr):
    """Which keys of a block a row attends to, [BM, BT] or [1, BT]."""
    if SEGMENTED:
        return b_of_row[:, None] == tl.load(p_segments + tl.arange(0, BT), mask=m_k, other=-2)[None, :]
    else:
        return m_k[None, :]


@triton.jit
def _load(p_x, mask, stride, ROWS: tl.constexpr, PA: tl.constexpr, PB: tl.constexpr):
    """[ROWS, PA] and [ROWS, PB] of one head, as they are stored; zero where `mask` [ROWS] is false."""
    # int32 is enough within a tile: what is far lies in the scalar part of the pointer
    o_row = tl.arange(0, ROWS)[:, None] * stride
    m = None if mask is None else mask[:, None]
    other = None if mask is None else 0.0
    b_x0 = tl.load(p_x + o_row + tl.arange(0, PA)[None, :], mask=m, other=other)
    if PB:
        b_x1 = tl.load(p_x + o_row + (PA + tl.arange(0, PB))[None, :], mask=m, other=other)
    else:
        b_x1 = tl.zeros([ROWS, 16], b_x0.dtype)
    return b_x0, b_x1


@triton.jit
def _store(p_x, b_x0, b_x1, mask, stride, ROWS: tl.constexpr, PA: tl.constexpr, PB: tl.constexpr):
    """Store [ROWS, PA] and [ROWS, PB] where `mask` [ROWS] is true."""
    o_row = tl.arange(0, ROWS)[:, None] * stride
    store_narrow(p_x + o_row + tl.arange(0, PA)[None, :], b_x0, mask[:, None])
    if PB:
        store_narrow(p_x + o_row + (PA + tl.arange(0, PB))[None, :], b_x1, mask[:, None])


@triton.jit
def _products(
    p_a, m_a, b_a0, b_a1, p_b, m_b, b_b0, b_b1, stride, P: tl.constexpr, PB: tl.constexpr, BP: tl.constexpr
):
    """Product of every row of `a` with every row of `b`, in float32.

    Each is given twice, as a place in memory and as the blocks that were loaded from there. With `BP` the
    product is taken over `BP` columns at a time, loaded anew: in float32 the rows of a program, each as three
    numbers of tf32, would fill all registers.
    """
    b_ab = tl.zeros([b_a0.shape[0], b_b0.shape[0]], tl.float32)
    if BP:
        for i_p in tl.range(0, P, BP, num_stages=1):
            b_a, _ = _load(p_a + i_p, m_a, stride, b_a0.shape[0], BP, 0)
            b_b, _ = _load(p_b + i_p, m_b, stride, b_b0.shape[0], BP, 0)
            b_ab = dot(b_a, tl.trans(b_b), b_ab)
        return b_ab
    else:
        b_ab = dot(b_a0, tl.trans(b_b0), b_ab)
        if PB:
            b_ab = dot(b_a1, tl.trans(b_b1), b_ab)
        return b_ab


@triton.jit
def _finite(b_x):
    """`x` with zero in place of what is not finite: a weight of zero must silence a neighbour's NaN.

    A segment's own NaN is not lost, as it is in the scores, and so in the weights.
    """
    b_wide = b_x.to(tl.float32)
    return tl.where(tl.abs(b_wide) < float("inf"), b_wide, 0.0).to(b_x.dtype)


@triton.jit
def _add_rows(
    b_weight, p_x, m_x, b_x0, b_x1, stride, b_acc0, b_acc1,
    PA: tl.constexpr, PB: tl.constexpr, BP: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """``acc + weight @ x``, the weights rounded to the dtype of `x`; with `BP`, `x` is loaded anew."""
    if BP:
        b_x0, b_x1 = _load(p_x, m_x, stride, b_x0.shape[0], PA, PB)
    if PACKED:
        b_x0, b_x1 = _finite(b_x0), _finite(b_x1)
    # in the interpreter the cast would truncate to bfloat16, and `dot` undoes it
    b_weight = b_weight if INTERPRETED else b_weight.to(b_x0.dtype)
    b_acc0 = dot(b_weight, b_x0, b_acc0)
    if PB:
        b_acc1 = dot(b_weight, b_x1, b_acc1)
    return b_acc0, b_acc1


@triton.jit
def _attend(
    p_q, m_q, b_q0, b_q1, p_k, m_k, mask, b_max, b_sum, b_acc0, b_acc1, c, stride, o_p,
    BK: tl.constexpr, P: tl.constexpr, PA: tl.constexpr, PB: tl.constexpr, BP: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """One block of keys of the running softmax; `c` turns a product into the exponent of 2."""
    b_k0, b_k1 = _load(p_k, m_k, stride, BK, PA, PB)
    # [BM, BK]
    b_s = _products(p_q, m_q, b_q0, b_q1, p_k, m_k, b_k0, b_k1, stride, P, PB, BP)
    if mask is not None:
        b_s = tl.where(mask, b_s, float("-inf"))
    # [BM]
    b_new = tl.maximum(b_max, tl.max(b_s, 1))
    # rows that pad the tile, or whose keys are yet to come, have no score so far
    b_level = b_new if mask is None else tl.where(b_new == float("-inf"), 0.0, b_new)
    # the difference is taken before it is scaled: it is then never above zero, however large the scores
    b_p = tl.exp2((b_s - b_level[:, None]) * c)
    b_shrink = tl.exp2((b_max - b_level) * c)
    b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
    b_acc0 *= b_shrink[:, None]
    if PB:
        b_acc1 *= b_shrink[:, None]
    b_acc0, b_acc1 = _add_rows(b_p, p_k + o_p, m_k, b_k0, b_k1, stride, b_acc0, b_acc1, PA, PB, BP, PACKED)
    return b_new, b_sum, b_acc0, b_acc1


@triton.jit
def subspace_attention_fwd_kernel(
    w, out, lse, tiles, segments, T, N, H, scale,
    P: tl.constexpr, PA: tl.constexpr, PB: tl.constexpr, BP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, SEGMENTED: tl.constexpr,
):  # fmt: skip
    """``out = softmax(scale * w w^T) w`` for one tile of one head, and the log-sum-exp of its rows."""
    i_t, i_h, o_p = _place(tl.program_id(0), H, P, PA, BP)
    first_row, rows, first_key, keys, whole = _span(tiles, N, i_t, BM, BN, SEGMENTED)
    stride = H * P
    o_m, o_t = tl.arange(0, BM), tl.arange(0, 16 if BT == 0 else BT)
    m_m = o_m < rows
    o_head = first_row * stride + i_h * P
    # [BM, PA], [BM, PB]
    p_q = w + o_head
    b_q0, b_q1 = _load(p_q, m_m, stride, BM, PA, PB)
    b_acc0 = tl.zeros([BM, PA], tl.float32)
    b_acc1 = tl.zeros([BM, PB if PB else 16], tl.float32)
    # [BM]
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    c = scale * _LOG2_E

    p_k = w + first_key * stride + i_h * P
    if BP:
        whole *= 0
    else:
        for _ in range(0, whole, BN):
            b_max, b_sum, b_acc0, b_acc1 = _attend(
                p_q, m_m, b_q0, b_q1, p_k, None, None, b_max, b_sum, b_acc0, b_acc1, c, stride, o_p,
                BN, P, PA, PB, BP, False,
            )  # fmt: skip
            p_k += BN * stride
    if BP or SEGMENTED:
        b_of_row = tl.load(segments + first_row + o_m, mask=m_m, other=-1) if SEGMENTED else m_m
        for i_k in tl.range(whole, keys, BT, num_stages=1):
            m_k = o_t < keys - i_k
            m = _attends(segments + first_key + i_k if SEGMENTED else None, b_of_row, m_k, BT, SEGMENTED)
            b_max, b_sum, b_acc0, b_acc1 = _attend(
                p_q, m_m, b_q0, b_q1, p_k, m_k, m, b_max, b_sum, b_acc0, b_acc1, c, stride, o_p,
                BT, P, PA, PB, BP, SEGMENTED,
            )  # fmt: skip
            p_k += BT * stride
    elif BT:
        m_k = o_t < keys - whole
        b_max, b_sum, b_acc0, b_acc1 = _attend(
            p_q, m_m, b_q0, b_q1, p_k, m_k, m_k[None, :], b_max, b_sum, b_acc0, b_acc1, c, stride, o_p,
            BT, P, PA, PB, BP, False,
        )  # fmt: skip

    _store(out + o_head + o_p, b_acc0 / b_sum[:, None], b_acc1 / b_sum[:, None], m_m, stride, BM, PA, PB)
    # programs that share rows write the same number
    tl.store(lse + i_h.to(tl.int64) * T + first_row + o_m, b_max * scale + tl.log2(b_sum) / _LOG2_E, mask=m_m)


@triton.jit
def subspace_attention_delta_kernel(
    dout, out, delta, T, H,
    P: tl.constexpr, PA: tl.constexpr, PB: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """``delta = sum(dout * out)`` over each row of each head, [H, T]."""
    i_m, i_h = (tl.program_id(0) // H).to(tl.int64) * BM, tl.program_id(0) % H
    stride = H * P
    # [BM]
    o_m = i_m + tl.arange(0, BM)
    m_m = o_m < T
    o_head = i_m * stride + i_h * P
    # [BM, PA], [BM, PB]
    b_g0, b_g1 = _load(dout + o_head, m_m, stride, BM, PA, PB)
    b_o0, b_o1 = _load(out + o_head, m_m, stride, BM, PA, PB)
    b_delta = tl.sum(b_g0.to(tl.float32) * b_o0.to(tl.float32), 1)
    if PB:
        b_delta += tl.sum(b_g1.to(tl.float32) * b_o1.to(tl.float32), 1)
    tl.store(delta + i_h.to(tl.int64) * T + o_m, b_delta, mask=m_m)


@triton.jit
def _exchange(
    p_w, p_g, m_m, b_w0, b_w1, b_g0, b_g1, b_lse, b_delta,
    p_k, p_h, p_lse, p_delta, m_k, mask, b_acc0, b_acc1, scale, stride, o_p,
    BK: tl.constexpr, P: tl.constexpr, PA: tl.constexpr, PB: tl.constexpr, BP: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """What one block of keys adds to the gradient of the rows, as their keys and as their queries.

    With ``p`` the weight of the key for the row and ``p'`` that of the row for the key, both from one score::

        dw += scale * (p * (dout . w_key - delta) + p' * (dout_key . w - delta_key)) @ w_key + p' @ dout_key
    """
    b_k0, b_k1 = _load(p_k, m_k, stride, BK, PA, PB)
    b_h0, b_h1 = _load(p_h, m_k, stride, BK, PA, PB)
    o_k = tl.arange(0, BK)
    # [BK]; a key that is not there gets no weight
    b_lse_key = tl.load(p_lse + o_k, mask=m_k, other=None if m_k is None else float("inf")) * _LOG2_E
    b_delta_key = tl.load(p_delta + o_k, mask=m_k, other=None if m_k is None else 0.0)
    # [BM, BK]; rounding could put a large score above its own log-sum-exp
    b_s = _products(p_w, m_m, b_w0, b_w1, p_k, m_k, b_k0, b_k1, stride, P, PB, BP) * (scale * _LOG2_E)
    b_p = tl.exp2(tl.minimum(b_s - b_lse_key[None, :], 0.0))
    b_dp = _products(p_w, m_m, b_w0, b_w1, p_h, m_k, b_h0, b_h1, stride, P, PB, BP)
    b_ds = b_p * (b_dp - b_delta_key[None, :])
    if PACKED:
        b_p = tl.where(mask, b_p, 0.0)
    # the order keeps few blocks of scores alive at once
    b_acc0, b_acc1 = _add_rows(b_p, p_h + o_p, m_k, b_h0, b_h1, stride, b_acc0, b_acc1, PA, PB, BP, PACKED)
    b_p = tl.exp2(tl.minimum(b_s - b_lse[:, None], 0.0))
    b_dp = _products(p_g, m_m, b_g0, b_g1, p_k, m_k, b_k0, b_k1, stride, P, PB, BP)
    b_ds += b_p * (b_dp - b_delta[:, None])
    if PACKED:
        b_ds = tl.where(mask, b_ds, 0.0)
    return _add_rows(b_ds * scale, p_k + o_p, m_k, b_k0, b_k1, stride, b_acc0, b_acc1, PA, PB, BP, PACKED)


@triton.jit
def subspace_attention_bwd_kernel(
    dout, w, lse, delta, dw, tiles, segments, T, N, H, scale,
    P: tl.constexpr, PA: tl.constexpr, PB: tl.constexpr, BP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, SEGMENTED: tl.constexpr,
):  # fmt: skip
    """The gradient of one tile of one head: of its rows as queries, as keys and as values, in one sum."""
    i_t, i_h, o_p = _place(tl.program_id(0), H, P, PA, BP)
    first_row, rows, first_key, keys, whole = _span(tiles, N, i_t, BM, BN, SEGMENTED)
    stride = H * P
    o_m, o_t = tl.arange(0, BM), tl.arange(0, 16 if BT == 0 else BT)
    m_m = o_m < rows
    o_head = first_row * stride + i_h * P
    p_w, p_g = w + o_head, dout + o_head
    # [BM, PA], [BM, PB]
    b_w0, b_w1 = _load(p_w, m_m, stride, BM, PA, PB)
    b_g0, b_g1 = _load(p_g, m_m, stride, BM, PA, PB)
    b_acc0 = tl.zeros([BM, PA], tl.float32)
    b_acc1 = tl.zeros([BM, PB if PB else 16], tl.float32)
    # [BM]
    o_lse = i_h.to(tl.int64) * T
    b_lse = tl.load(lse + o_lse + first_row + o_m, mask=m_m, other=0.0) * _LOG2_E
    b_delta = tl.load(delta + o_lse + first_row + o_m, mask=m_m, other=0.0)

    o_key = first_key * stride + i_h * P
    p_k, p_h, p_lse, p_delta = w + o_key, dout + o_key, lse + o_lse + first_key, delta + o_lse + first_key
    if BP:
        whole *= 0
    else:
        for _ in range(0, whole, BN):
            b_acc0, b_acc1 = _exchange(
                p_w, p_g, m_m, b_w0, b_w1, b_g0, b_g1, b_lse, b_delta,
                p_k, p_h, p_lse, p_delta, None, None, b_acc0, b_acc1, scale, stride, o_p,
                BN, P, PA, PB, BP, False,
            )  # fmt: skip
            p_k, p_h, p_lse, p_delta = p_k + BN * stride, p_h + BN * stride, p_lse + BN, p_delta + BN
    if BP or SEGMENTED:
        b_of_row = tl.load(segments + first_row + o_m, mask=m_m, other=-1) if SEGMENTED else m_m
        for i_k in tl.range(whole, keys, BT, num_stages=1):
            m_k = o_t < keys - i_k
            m = _attends(segments + first_key + i_k if SEGMENTED else None, b_of_row, m_k, BT, SEGMENTED)
            b_acc0, b_acc1 = _exchange(
                p_w, p_g, m_m, b_w0, b_w1, b_g0, b_g1, b_lse, b_delta,
                p_k, p_h, p_lse, p_delta, m_k, m, b_acc0, b_acc1, scale, stride, o_p,
                BT, P, PA, PB, BP, SEGMENTED,
            )  # fmt: skip
            p_k, p_h, p_lse, p_delta = p_k + BT * stride, p_h + BT * stride, p_lse + BT, p_delta + BT
    elif BT:
        # nothing to mask: a key that is not there is a row of zeros without weight
        b_acc0, b_acc1 = _exchange(
            p_w, p_g, m_m, b_w0, b_w1, b_g0, b_g1, b_lse, b_delta,
            p_k, p_h, p_lse, p_delta, o_t < keys - whole, None, b_acc0, b_acc1, scale, stride, o_p,
            BT, P, PA, PB, BP, False,
        )  # fmt: skip
    _store(dw + o_head + o_p, b_acc0, b_acc1, m_m, stride, BM, PA, PB)
