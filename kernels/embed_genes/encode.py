"""What a value becomes before it meets a table: soft bins or hidden units, and their gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton import dot, load_wide, store_narrow
from . import reference

SOFT_BINS = tl.constexpr(reference.SOFT_BINS)
MIXED_BINS = tl.constexpr(reference.MIXED_BINS)
SILU_MLP = tl.constexpr(reference.SILU_MLP)
GELU_MLP = tl.constexpr(reference.GELU_MLP)
LEAK = tl.constexpr(reference.LEAK)
GELU_SCALE = tl.constexpr(2 * reference.GELU_SCALE)
GELU_CUBIC = tl.constexpr(reference.GELU_CUBIC)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_tokens(
    genes, values, streams, o_t, m_t, VALUE_STREAM: tl.constexpr, MODE: tl.constexpr, STREAMED: tl.constexpr
):
    """Gene, value (0 where there is none), whether there is one, and stream of a tile of tokens, [BT] each."""
    # a token outside the batch has a gene that no table holds
    b_g = tl.load(genes + o_t, mask=m_t, other=-2147483648).to(tl.int64)
    b_s = tl.zeros_like(b_g)
    if STREAMED:
        b_s = tl.load(streams + o_t, mask=m_t, other=-1).to(tl.int64)
    m_v = m_t & (b_g >= 0)
    if VALUE_STREAM >= 0:
        m_v = m_v & (b_s == VALUE_STREAM)
    b_x = m_v.to(tl.float32)
    if MODE != 0:
        b_x = load_wide(values + o_t, m_v)
    return b_g, b_x, m_v, b_s


@triton.jit
def soft_bins(b_scores, o_k, K: tl.constexpr):
    """Softmax over the first `K` columns."""
    b_scores = tl.where((o_k < K)[None, :], b_scores, -float("inf"))
    b_p = tl.exp2((b_scores - tl.max(b_scores, 1)[:, None]) * LOG2E)
    return b_p / tl.sum(b_p, 1)[:, None]


@triton.jit
def hidden_units(b_x, weight, bias, o_m, M: tl.constexpr):
    """``weight * x + bias``, zero in the columns beyond `M`."""
    m_m = o_m < M
    return b_x[:, None] * load_wide(weight + o_m, m_m)[None, :] + load_wide(bias + o_m, m_m)[None, :]


@triton.jit
def activations(
    b_x, weight, bias, mixing,
    K: tl.constexpr, M: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Soft bins or hidden units [BT, BE] of values [BT], zero in the columns beyond `K`."""
    o_k = tl.arange(0, BE)
    if MODE == MIXED_BINS:
        o_m = tl.arange(0, BM)
        b_hidden = hidden_units(b_x, weight, bias, o_m, M)
        b_hidden = tl.where(b_hidden > 0, b_hidden, b_hidden * LEAK)
        # [BM, BE]
        m = (o_m < M)[:, None] & (o_k < K)[None, :]
        b_mixing = tl.load(mixing + o_k[None, :] * M + o_m[:, None], mask=m, other=0.0)
        b_scores = dot(b_hidden.to(mixing.dtype.element_ty), b_mixing, None)
        b_a = soft_bins(b_scores, o_k, K)
    else:
        b_hidden = hidden_units(b_x, weight, bias, o_k, K)
        if MODE == SOFT_BINS:
            b_a = soft_bins(b_hidden, o_k, K)
        elif MODE == SILU_MLP:
            b_a = b_hidden * tl.sigmoid(b_hidden)
        else:
            b_a = b_hidden * tl.sigmoid(b_hidden * GELU_SCALE * (1 + b_hidden * b_hidden * GELU_CUBIC))
    return b_a


@triton.jit
def table_weights(
    b_x, m_v, b_s, m_t, weight, bias, mixing,
    K: tl.constexpr, M: tl.constexpr, E0: tl.constexpr, E: tl.constexpr,
    BE: tl.constexpr, BM: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """What each token takes of each row of the table, [BT, BE]: activations, offset, stream."""
    o_e = tl.arange(0, BE)
    # the column of a token's stream; -1 for a stream that the table lacks
    b_e = tl.where(m_t & (b_s >= 0) & (E0 + b_s < E), E0 + b_s, -1)
    b_w = (o_e[None, :] == b_e[:, None]).to(tl.float32)
    if MODE != 0:
        b_a = activations(b_x, weight, bias, mixing, K, M, BE, BM, MODE)
        b_w += tl.where(m_v[:, None] & (o_e < K)[None, :], b_a, 0.0)
        # the offset of an MLP, where it has one
        b_w += tl.where(m_v[:, None] & ((o_e >= K) & (o_e < E0))[None, :], 1.0, 0.0)
    return b_w


@triton.jit
def _slope(b_hidden, MODE: tl.constexpr):
    """Derivative of the activation of an MLP."""
    if MODE == SILU_MLP:
        b_gate = tl.sigmoid(b_hidden)
        return b_gate * (1 + b_hidden * (1 - b_gate))
    b_square = b_hidden * b_hidden
    b_gate = tl.sigmoid(b_hidden * GELU_SCALE * (1 + b_square * GELU_CUBIC))
    return b_gate + b_hidden * b_gate * (1 - b_gate) * GELU_SCALE * (1 + b_square * 3 * GELU_CUBIC)


@triton.jit
def values_bwd_kernel(
    dweights, genes, values, streams, weight, bias, mixing, dvalues, dweight, dbias, dmixing, T, steps,
    K: tl.constexpr, M: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr,
    MODE: tl.constexpr, VALUE_STREAM: tl.constexpr, STREAMED: tl.constexpr,
):  # fmt: skip
    """Gradient of the values, and sums over `steps` tiles of tokens for those of the layers that score them.

    `dweights` [T, BE] is the gradient of the activations. `dweight` and `dbias` are [programs, BM], `dmixing`
    [programs, BE, BM], all float32.
    """
    i_p = tl.program_id(0).to(tl.int64)
    # [BE], [BM]
    o_e = tl.arange(0, BE)
    o_m = tl.arange(0, BM)
    b_weight = load_wide(weight + o_m, o_m < M)
    b_dweight = tl.zeros([BM], tl.float32)
    b_dbias = tl.zeros([BM], tl.float32)
    if MODE == MIXED_BINS:
        b_dmixing = tl.zeros([BE, BM], tl.float32)
    for i_t in range(i_p * steps, tl.minimum((i_p + 1) * steps, tl.cdiv(T, BT))):
        o_t = i_t * BT + tl.arange(0, BT)
        m_t = o_t < T
        _, b_x, m_v, _ = load_tokens(genes, values, streams, o_t, m_t, VALUE_STREAM, MODE, STREAMED)
        # [BT, BE]
        m = m_v[:, None] & (o_e < K)[None, :]
        b_d = load_wide(dweights + o_t[:, None] * BE + o_e[None, :], m)
        # [BT, BM]
        b_hidden = hidden_units(b_x, weight, bias, o_m, M)
        if MODE == SILU_MLP or MODE == GELU_MLP:
            b_d = b_d * _slope(b_hidden, MODE)
        else:
            b_a = activations(b_x, weight, bias, mixing, K, M, BE, BM, MODE)
            b_d = b_a * (b_d - tl.sum(b_a * b_d, 1)[:, None])
            if MODE == MIXED_BINS:
                b_leaky = tl.where(b_hidden > 0, b_hidden, b_hidden * LEAK)
                b_d = b_d.to(mixing.dtype.element_ty)
                b_dmixing = dot(tl.trans(b_d), b_leaky.to(mixing.dtype.element_ty), b_dmixing)
                m_mixing = (o_e < K)[:, None] & (o_m < M)[None, :]
                b_mixing = tl.load(mixing + o_e[:, None] * M + o_m[None, :], mask=m_mixing, other=0.0)
                b_d = dot(b_d, b_mixing, None) * tl.where(b_hidden > 0, 1.0, LEAK)
        b_dx = tl.sum(b_d * b_weight[None, :], 1)
        store_narrow(dvalues + o_t, tl.where(m_v, b_dx, 0.0), m_t)
        b_dweight += tl.sum(b_d * b_x[:, None], 0)
        b_dbias += tl.sum(b_d, 0)
    store_narrow(dweight + i_p * BM + o_m, b_dweight, o_m < BM)
    store_narrow(dbias + i_p * BM + o_m, b_dbias, o_m < BM)
    if MODE == MIXED_BINS:
        p = (i_p * BE + o_e[:, None]) * BM + o_m[None, :]
        tl.store(dmixing + p, b_dmixing)
