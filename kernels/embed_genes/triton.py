"""The kernels that build tokens and take their gradient apart, and the functions that launch them.

All that is added to a gene's row is one matrix product, [64, E] @ [E, D], whose left side is made from the
value and the stream of each token by a kernel of its own (`encode`): in this one its softmax would cost the
registers that hide the latency of the gather, and the backward needs it in memory. The backward gathers the
rows again and leaves the gradient of the tokens before the norm, `dtoken`, in memory. From there the sums by
gene are taken over the tokens in the order of their genes (`scatter`), and what is left are two products with
[T, E] matrices, by cuBLAS.

No float atomics: the same result every time. The naming system is described in `scdd.kernels._triton`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import dot, load_wide, on_device_of, store_narrow
from . import reference, tiles
from .encode import table_weights, values_backward
from .scatter import sum_by_gene

NO_NORM = tl.constexpr(reference.NO_NORM)
LAYER_NORM = tl.constexpr(reference.LAYER_NORM)


@triton.jit
def _chunk(
    gene_table, prefix_table, weights, table, o_t, m_t, b_g, b_w, i_d, G, P,
    D: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One chunk of tokens before the norm, [BT, BD]; zero beyond `D`.

    The weights stay in `b_w` where they fit (BK = BE), and are read in steps where they do not: each float32
    product is three of tf32, with parts of its own.
    """
    # [BD], [BE]
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = (o_d < D)[None, :]
    b_h = load_wide(gene_table + b_g[:, None] * D + o_d[None, :], ((b_g >= 0) & (b_g < G))[:, None] & m_d)
    if P is not None:
        o_p = -1 - b_g
        b_h += load_wide(
            prefix_table + o_p[:, None] * D + o_d[None, :], ((o_p >= 0) & (o_p < P))[:, None] & m_d
        )
    if E > 0:
        if BK == BE:
            o_e = tl.arange(0, BE)
            m = (o_e < E)[:, None] & m_d
            b_h = dot(b_w, tl.load(table + o_e[:, None] * D + o_d[None, :], mask=m, other=0.0), b_h)
        else:
            for i_e in range(0, BE, BK):
                o_e = i_e + tl.arange(0, BK)
                m = (o_e < E)[:, None] & m_d
                b_step = tl.load(weights + o_t[:, None] * BE + o_e[None, :], mask=m_t[:, None], other=0.0)
                b_table = tl.load(table + o_e[:, None] * D + o_d[None, :], mask=m, other=0.0)
                b_h = dot(b_step, b_table, b_h)
    return b_h, o_d


@triton.jit
def _merge(b_mean, b_square, b_h, o_d, i_d, D: tl.constexpr, BD: tl.constexpr, NORM: tl.constexpr):
    """Mean and sum of squared deviations [BT] with one chunk more; of squares alone for the RMS."""
    if NORM != LAYER_NORM:
        return b_mean, b_square + tl.sum(b_h * b_h, 1)
    count = tl.minimum(D - i_d * BD, BD).to(tl.float32)
    b_level = tl.sum(b_h, 1) / count
    # the mean is corrected once: a rounding error in it would swamp rows that barely vary
    b_level += tl.sum(tl.where((o_d < D)[None, :], b_h - b_level[:, None], 0.0), 1) / count
    b_centred = tl.where((o_d < D)[None, :], b_h - b_level[:, None], 0.0)
    b_step = b_level - b_mean
    share = count / (i_d * BD + count)
    b_square += tl.sum(b_centred * b_centred, 1) + b_step * b_step * share * (i_d * BD)
    return b_mean + b_step * share, b_square


@triton.jit
def embed_fwd_kernel(
    genes, gene_table, prefix_table, weights, table, gain, shift, y, mean, rstd, T, G, P, eps,
    D: tl.constexpr, E: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
    BK: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Tokens and their statistics."""
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    o_t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    m_t = o_t < T
    # a token outside the batch has a gene that no table holds
    b_g = tl.load(genes + o_t, mask=m_t, other=-2147483648).to(tl.int64)
    b_w = None
    if E > 0 and BK == BE:
        p = o_t[:, None] * BE + tl.arange(0, BE)[None, :]
        b_w = tl.load(weights + p, mask=m_t[:, None], other=0.0)

    # [BT]: mean and sum of squared deviations so far, merged chunk by chunk
    b_mean = tl.zeros([BT], tl.float32)
    b_square = tl.zeros([BT], tl.float32)
    if CHUNKS == 1:
        b_h, o_d = _chunk(
            gene_table, prefix_table, weights, table, o_t, m_t, b_g, b_w, 0, G, P, D, E, BE, BK, BD
        )
    if NORM != NO_NORM:
        for i_d in range(CHUNKS):
            if CHUNKS > 1:
                b_h, o_d = _chunk(
                    gene_table, prefix_table, weights, table, o_t, m_t, b_g, b_w, i_d, G, P, D, E, BE, BK, BD
                )
            b_mean, b_square = _merge(b_mean, b_square, b_h, o_d, i_d, D, BD, NORM)
        b_rstd = tl.rsqrt(b_square / D + eps)
        tl.store(rstd + o_t, b_rstd, mask=m_t)
    if NORM == LAYER_NORM:
        tl.store(mean + o_t, b_mean, mask=m_t)

    for i_d in range(CHUNKS):
        if CHUNKS > 1:
            b_h, o_d = _chunk(
                gene_table, prefix_table, weights, table, o_t, m_t, b_g, b_w, i_d, G, P, D, E, BE, BK, BD
            )
        if NORM == LAYER_NORM:
            b_h -= b_mean[:, None]
        if NORM != NO_NORM:
            b_h *= b_rstd[:, None]
        if gain is not None:
            b_h *= load_wide(gain + o_d, o_d < D)[None, :]
        if shift is not None:
            b_h += load_wide(shift + o_d, o_d < D)[None, :]
        store_narrow(y + o_t[:, None] * D + o_d[None, :], b_h, m_t[:, None] & (o_d < D)[None, :])


@triton.jit
def embed_bwd_kernel(
    dy, mean, rstd, genes, gene_table, prefix_table, weights, table, gain, dtoken, dgain, dshift, T, G, P,
    D: tl.constexpr, E: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
    BK: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Gradient of the tokens before the norm, [T, D]; sums over the tile for `dgain`, `dshift` [tiles, D]."""
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    i_t = tl.program_id(0).to(tl.int64)
    o_t = i_t * BT + tl.arange(0, BT)
    m_t = o_t < T
    # a token outside the batch has a gene that no table holds
    b_g = tl.load(genes + o_t, mask=m_t, other=-2147483648).to(tl.int64)
    b_w = None
    if E > 0 and BK == BE:
        p = o_t[:, None] * BE + tl.arange(0, BE)[None, :]
        b_w = tl.load(weights + p, mask=m_t[:, None], other=0.0)

    # [BT]
    b_mean = tl.zeros([BT], tl.float32)
    b_rstd = b_mean + 1.0
    if NORM != NO_NORM:
        b_rstd = tl.load(rstd + o_t, mask=m_t, other=0.0)
    if NORM == LAYER_NORM:
        b_mean = tl.load(mean + o_t, mask=m_t, other=0.0)
    b_along = tl.zeros([BT], tl.float32)
    b_level = tl.zeros([BT], tl.float32)
    if NORM != NO_NORM:
        for i_d in range(CHUNKS):
            b_h, o_d = _chunk(
                gene_table, prefix_table, weights, table, o_t, m_t, b_g, b_w, i_d, G, P, D, E, BE, BK, BD
            )
            b_d = load_wide(dy + o_t[:, None] * D + o_d[None, :], m_t[:, None] & (o_d < D)[None, :])
            if gain is not None:
                b_d *= load_wide(gain + o_d, o_d < D)[None, :]
            b_along += tl.sum(b_d * (b_h - b_mean[:, None]), 1)
            if NORM == LAYER_NORM:
                b_level += tl.sum(b_d, 1)
        b_along *= b_rstd / D
        b_level /= D

    for i_d in range(CHUNKS):
        b_h, o_d = _chunk(
            gene_table, prefix_table, weights, table, o_t, m_t, b_g, b_w, i_d, G, P, D, E, BE, BK, BD
        )
        # [BT, BD]
        m = m_t[:, None] & (o_d < D)[None, :]
        b_d = load_wide(dy + o_t[:, None] * D + o_d[None, :], m)
        b_h = (b_h - b_mean[:, None]) * b_rstd[:, None]
        if dshift is not None:
            tl.store(dshift + i_t * D + o_d, tl.sum(b_d, 0), mask=o_d < D)
        if gain is not None:
            tl.store(dgain + i_t * D + o_d, tl.sum(b_d * b_h, 0), mask=o_d < D)
            b_d *= load_wide(gain + o_d, o_d < D)[None, :]
        if NORM != NO_NORM:
            b_d = (b_d - b_level[:, None] - b_h * b_along[:, None]) * b_rstd[:, None]
        store_narrow(dtoken + o_t[:, None] * D + o_d[None, :], b_d, m)


def embed_forward(*operands: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward kernels; see `reference.embed_forward`."""
    x = reference.Operands(*operands)
    tokens, width = x.genes.shape[0], x.gene_table.shape[1]
    y = torch.empty((tokens, width), dtype=x.gene_table.dtype, device=x.genes.device)
    mean, rstd = (
        torch.empty((tokens, 1) if kept else 0, dtype=torch.float32, device=x.genes.device)
        for kept in (x.norm == reference.LAYER_NORM, x.norm != reference.NO_NORM)
    )
    if tokens:
        weights = table_weights(x)
        tile, sizes, constants = _constants(x)
        with on_device_of(y):
            embed_fwd_kernel[(triton.cdiv(tokens, tile.rows),)](
                x.genes, x.gene_table, x.prefix_table, weights, x.table, x.gain, x.shift, y, mean, rstd,
                *sizes, x.eps, **constants,
            )  # fmt: skip
    return y, mean, rstd


def embed_backward(
    dy: Tensor, mean: Tensor, rstd: Tensor, tables: bool, *operands: Any
) -> tuple[Tensor, ...]:
    """Launch the backward kernels; see `reference.embed_backward`."""
    x = reference.Operands(*operands)
    weights = table_weights(x)
    dtoken, *ends = _tokens_backward(dy, mean, rstd, weights, x)
    empty = x.gene_table.new_empty(0)
    rows = sum_by_gene(x.genes, dtoken, x.gene_table, x.prefix_table) if tables else (None, None)
    dvalues, *layers = _encoding_backward(x, dtoken, weights)
    grads = (*rows, *layers, *ends)
    without = empty if x.values is None else x.values.new_empty(0)
    return (without if dvalues is None else dvalues, *(empty if grad is None else grad for grad in grads))


def _tokens_backward(
    dy: Tensor, mean: Tensor, rstd: Tensor, weights: Tensor | None, x: reference.Operands
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`dtoken`, and the gradients of `gain` and `shift`."""
    tokens, width = dy.shape
    tile, sizes, constants = _constants(x)
    n_tiles = triton.cdiv(tokens, tile.rows)
    dtoken = torch.empty_like(dy)
    dgain, dshift = (
        None if end is None else torch.empty((n_tiles, width), dtype=torch.float32, device=dy.device)
        for end in (x.gain, x.shift)
    )
    if tokens:
        with on_device_of(dy):
            embed_bwd_kernel[(n_tiles,)](
                dy, mean, rstd, x.genes, x.gene_table, x.prefix_table, weights, x.table, x.gain,
                dtoken, dgain, dshift, *sizes, **constants,
            )  # fmt: skip
    ends = (None if part is None else part.sum(0).to(dy.dtype) for part in (dgain, dshift))
    return dtoken, *ends  # type: ignore[return-value]


def _encoding_backward(
    x: reference.Operands, dtoken: Tensor, weights: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of `values`, `weight`, `bias`, `mixing` and `table`."""
    if x.table is None or weights is None:
        return (None,) * 5
    dtable = (weights.T @ dtoken)[: x.table.shape[0]].contiguous()
    if x.values is None:
        return None, None, None, None, dtable
    count = reference.columns(x).activations
    # padded to the width of the kernel's tile, for wide loads
    table = x.table.new_zeros((weights.shape[1], x.table.shape[1]))
    table[:count] = x.table[:count]
    return *values_backward(x, dtoken @ table.T), dtable


def _constants(x: reference.Operands) -> tuple[tiles.Tile, tuple[int, int, int | None], dict[str, int]]:
    """The tile, the sizes that may differ from call to call, and what is compiled in."""
    tile = tiles.choose(x.gene_table.shape[1], x.gene_table.element_size())
    rows = 0 if x.table is None else x.table.shape[0]
    prefix = None if x.prefix_table is None else x.prefix_table.shape[0]
    columns = tiles.padded(max(rows, 1))
    return tile, (x.genes.shape[0], x.gene_table.shape[0], prefix), {
        "D": x.gene_table.shape[1], "E": rows, "BT": tile.rows, "BD": tile.columns,
        "BE": columns, "BK": tiles.step(columns, x.gene_table.element_size()), "NORM": x.norm,
        "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    }  # fmt: skip
