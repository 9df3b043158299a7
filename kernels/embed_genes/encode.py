"""What a value becomes before it meets a table: soft bins or hidden units, and their gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import dot, load_wide, on_device_of, store_narrow
from . import reference, tiles

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
    """Value (0 where there is none), whether there is one, and stream of a tile of tokens, [BT] each."""
    b_g = tl.load(genes + o_t, mask=m_t, other=-1)
    b_s = tl.zeros_like(b_g).to(tl.int32)
    if STREAMED:
        b_s = tl.load(streams + o_t, mask=m_t, other=-1).to(tl.int32)
    m_v = m_t & (b_g >= 0)
    if VALUE_STREAM >= 0:
        m_v = m_v & (b_s == VALUE_STREAM)
    b_x = m_v.to(tl.float32)
    if MODE != 0:
        b_x = load_wide(values + o_t, m_v)
    return b_x, m_v, b_s


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
def leaky(b_hidden):
    """Leaky ReLU."""
    return tl.where(b_hidden > 0, b_hidden, b_hidden * LEAK)


@triton.jit
def activations(
    b_x, weight, bias, mixing,
    K: tl.constexpr, M: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Soft bins or hidden units [BT, BE] of values [BT], zero in the columns beyond `K`."""
    o_k = tl.arange(0, BE)
    if MODE == MIXED_BINS:
        # in steps, as the second layer whole would fill the registers
        STEP: tl.constexpr = 16 if BM < 32 or mixing.dtype.element_ty == tl.float32 else 32
        b_scores = tl.zeros([b_x.shape[0], BE], tl.float32)
        for i_m in range(0, BM, STEP):
            o_m = i_m + tl.arange(0, STEP)
            b_hidden = leaky(hidden_units(b_x, weight, bias, o_m, M)).to(mixing.dtype.element_ty)
            # [STEP, BE]
            m = (o_m < M)[:, None] & (o_k < K)[None, :]
            b_mixing = tl.load(mixing + o_k[None, :] * M + o_m[:, None], mask=m, other=0.0)
            b_scores = dot(b_hidden, b_mixing, b_scores)
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
def weights_kernel(
    genes, values, streams, weight, bias, mixing, weights, T,
    K: tl.constexpr, M: tl.constexpr, E0: tl.constexpr, E: tl.constexpr,
    BT: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr,
    MODE: tl.constexpr, VALUE_STREAM: tl.constexpr, STREAMED: tl.constexpr,
):  # fmt: skip
    """What each token takes of each row of the table, [T, BE]: activations, offset, stream, zeros."""
    o_t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    o_e = tl.arange(0, BE)
    m_t = o_t < T
    b_x, m_v, b_s = load_tokens(genes, values, streams, o_t, m_t, VALUE_STREAM, MODE, STREAMED)
    # the column of a token's stream; -1 for a stream that the table lacks
    b_e = tl.where((b_s >= 0) & (E0 + b_s < E), E0 + b_s, -1)
    # [BT, BE]
    b_w = (o_e[None, :] == b_e[:, None]).to(tl.float32)
    if MODE != 0:
        b_a = activations(b_x, weight, bias, mixing, K, M, BE, BM, MODE)
        b_w += tl.where(m_v[:, None] & (o_e < K)[None, :], b_a, 0.0)
        # the offset of an MLP, where it has one
        b_w += tl.where(m_v[:, None] & ((o_e >= K) & (o_e < E0))[None, :], 1.0, 0.0)
    store_narrow(weights + o_t[:, None] * BE + o_e[None, :], b_w, m_t[:, None])


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
def scores_bwd_kernel(
    dweights, genes, values, streams, weight, bias, mixing, dscores, hidden, T,
    K: tl.constexpr, M: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr,
    MODE: tl.constexpr, VALUE_STREAM: tl.constexpr, STREAMED: tl.constexpr,
):  # fmt: skip
    """Between the two layers that score bins: gradient of the scores [T, BE], hidden units [T, BM]."""
    o_t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    m_t = o_t < T
    b_x, m_v, _ = load_tokens(genes, values, streams, o_t, m_t, VALUE_STREAM, MODE, STREAMED)
    # [BT, BE]
    o_e = tl.arange(0, BE)
    p = o_t[:, None] * BE + o_e[None, :]
    b_a = activations(b_x, weight, bias, mixing, K, M, BE, BM, MODE)
    # loaded only now: beside the product it would not stay in registers
    b_d = load_wide(dweights + p, m_v[:, None] & (o_e < K)[None, :])
    b_d = b_a * (b_d - tl.sum(b_a * b_d, 1)[:, None])
    store_narrow(dscores + p, b_d, m_t[:, None])
    # [BT, STEP]
    STEP: tl.constexpr = 16
    for i_m in range(0, BM, STEP):
        o_m = i_m + tl.arange(0, STEP)
        b_hidden = leaky(hidden_units(b_x, weight, bias, o_m, M))
        store_narrow(hidden + o_t[:, None] * BM + o_m[None, :], b_hidden, m_t[:, None])


@triton.jit
def values_bwd_kernel(
    dhidden, genes, values, streams, weight, bias, dvalues, dweight, dbias, T, steps,
    M: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr,
    MODE: tl.constexpr, VALUE_STREAM: tl.constexpr, STREAMED: tl.constexpr,
):  # fmt: skip
    """Gradient of the values, and sums over `steps` tiles of tokens for those of the first layer.

    `dhidden` [T, BM] is the gradient of the activations of the first layer: soft bins, or hidden units.
    `dweight` and `dbias` are [programs, BM], float32.
    """
    i_p = tl.program_id(0).to(tl.int64)
    # [BM]
    o_m = tl.arange(0, BM)
    b_weight = load_wide(weight + o_m, o_m < M)
    b_dweight = tl.zeros([BM], tl.float32)
    b_dbias = tl.zeros([BM], tl.float32)
    for i_t in range(i_p * steps, tl.minimum((i_p + 1) * steps, tl.cdiv(T, BT))):
        o_t = i_t * BT + tl.arange(0, BT)
        m_t = o_t < T
        b_x, m_v, _ = load_tokens(genes, values, streams, o_t, m_t, VALUE_STREAM, MODE, STREAMED)
        # [BT, BM]
        b_d = load_wide(dhidden + o_t[:, None] * BM + o_m[None, :], m_v[:, None] & (o_m < M)[None, :])
        b_hidden = hidden_units(b_x, weight, bias, o_m, M)
        if MODE == SOFT_BINS:
            b_a = soft_bins(b_hidden, o_m, M)
            b_d = b_a * (b_d - tl.sum(b_a * b_d, 1)[:, None])
        elif MODE == MIXED_BINS:
            b_d = tl.where(b_hidden > 0, b_d, b_d * LEAK)
        else:
            b_d = b_d * _slope(b_hidden, MODE)
        b_dx = tl.sum(b_d * b_weight[None, :], 1)
        store_narrow(dvalues + o_t, tl.where(m_v, b_dx, 0.0), m_t)
        b_dweight += tl.sum(b_d * b_x[:, None], 0)
        b_dbias += tl.sum(b_d, 0)
    store_narrow(dweight + i_p * BM + o_m, b_dweight, o_m < BM)
    store_narrow(dbias + i_p * BM + o_m, b_dbias, o_m < BM)


def table_weights(x: reference.Operands) -> Tensor | None:
    """What each token takes of each row of the table, [T, padded E] in its dtype."""
    if x.table is None:
        return None
    tokens, tile, constants = x.genes.shape[0], *_constants(x)
    weights = torch.empty((tokens, constants["BE"]), dtype=x.table.dtype, device=x.table.device)
    layout = reference.columns(x)
    if tokens:
        with on_device_of(weights):
            weights_kernel[(triton.cdiv(tokens, tile.rows),)](
                x.genes, x.values, x.streams, x.weight, x.bias, x.mixing, weights, tokens,
                E0=layout.first_stream, E=x.table.shape[0], **constants,
            )  # fmt: skip
    return weights


def values_backward(x: reference.Operands, dweights: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of `values`, `weight`, `bias` and `mixing` from that of the weights."""
    dmixing = None
    if x.mixing is not None:
        dweights, dmixing = _mixing_backward(x, dweights)
    assert x.values is not None
    assert x.weight is not None
    tokens, tile, constants = x.genes.shape[0], *_constants(x)
    n_tiles = triton.cdiv(tokens, tile.rows)
    steps = max(1, triton.cdiv(n_tiles, tiles.PARTS))
    parts = triton.cdiv(n_tiles, steps)
    dvalues = torch.empty_like(x.values)
    dweight = torch.empty((parts, constants["BM"]), dtype=torch.float32, device=dweights.device)
    dbias = torch.empty_like(dweight)
    if tokens:
        del constants["K"], constants["BE"]
        with on_device_of(dweights):
            values_bwd_kernel[(parts,)](
                dweights, x.genes, x.values, x.streams, x.weight, x.bias, dvalues, dweight, dbias,
                tokens, steps, **constants,
            )  # fmt: skip
    units = x.weight.shape[0]
    return dvalues, *(part.sum(0)[:units].to(x.weight.dtype) for part in (dweight, dbias)), dmixing


def _mixing_backward(x: reference.Operands, dweights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the hidden units [T, padded M] and of `mixing`."""
    assert x.mixing is not None
    tokens, tile, constants = x.genes.shape[0], *_constants(x)
    bins, units = x.mixing.shape
    dscores = torch.empty_like(dweights)
    hidden = dweights.new_empty((tokens, constants["BM"]))
    if tokens:
        with on_device_of(dweights):
            scores_bwd_kernel[(triton.cdiv(tokens, tile.rows),)](
                dweights, x.genes, x.values, x.streams, x.weight, x.bias, x.mixing, dscores, hidden, tokens,
                **constants,
            )  # fmt: skip
    padded = x.mixing.new_zeros((dscores.shape[1], hidden.shape[1]))
    padded[:bins, :units] = x.mixing
    return dscores @ padded, (dscores.T @ hidden)[:bins, :units].contiguous()


def _constants(x: reference.Operands) -> tuple[tiles.Tile, dict[str, int]]:
    """The tile, and what is compiled in."""
    assert x.table is not None
    columns = tiles.padded(x.table.shape[0])
    hidden = 0 if x.weight is None else x.weight.shape[0]
    tile = tiles.choose_encoding(x.table.element_size(), mixed=x.mixing is not None)
    return tile, {
        "K": reference.columns(x).activations, "M": hidden, "BT": tile.rows, "BE": columns,
        # without a second layer a hidden unit is a column
        "BM": columns if x.mixing is None else tiles.padded(hidden),
        "MODE": x.mode, "VALUE_STREAM": x.value_stream, "STREAMED": x.streams is not None,
        "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    }  # fmt: skip
