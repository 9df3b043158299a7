"""The kernels that build tokens and take their gradient apart, and the functions that launch them.

All that is added to a gene's row is one matrix product, [64, E] @ [E, D], whose left side is made in registers
from the value and the stream of each token; see `reference`. The backward gathers the rows again and leaves
the gradient of the tokens before the norm, `dtoken`, in memory. From there the sums by gene are taken over the
tokens in the order of their genes (`scatter`), and what is left are two products with [T, E] matrices, by cuBLAS.

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
from .encode import load_tokens, table_weights, values_bwd_kernel
from .scatter import sum_by_gene

NO_NORM = tl.constexpr(reference.NO_NORM)
LAYER_NORM = tl.constexpr(reference.LAYER_NORM)


@triton.jit
def _chunk(
    gene_table, prefix_table, table, b_g, b_w, i_d, G, P,
    D: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One chunk of tokens before the norm, [BT, BD]; zero beyond `D`."""
    # [BD], [BE]
    o_d = i_d * BD + tl.arange(0, BD)
    m_d = (o_d < D)[None, :]
    b_h = load_wide(gene_table + b_g[:, None] * D + o_d[None, :], ((b_g >= 0) & (b_g < G))[:, None] & m_d)
    if P is not None:
        o_p = -1 - b_g
        b_h += load_wide(prefix_table + o_p[:, None] * D + o_d[None, :], ((o_p >= 0) & (o_p < P))[:, None] & m_d)
    if E > 0:
        o_e = tl.arange(0, BE)
        b_table = tl.load(table + o_e[:, None] * D + o_d[None, :], mask=(o_e < E)[:, None] & m_d, other=0.0)
        b_h = dot(b_w, b_table, b_h)
    return b_h, o_d


@triton.jit
def embed_fwd_kernel(
    genes, values, streams, gene_table, prefix_table, weight, bias, mixing, table, gain, shift,
    y, mean, rstd, T, G, P, eps,
    D: tl.constexpr, K: tl.constexpr, M: tl.constexpr, E0: tl.constexpr, E: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr,
    MODE: tl.constexpr, VALUE_STREAM: tl.constexpr, STREAMED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Tokens and their statistics."""
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    o_t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    m_t = o_t < T
    b_g, b_x, m_v, b_s = load_tokens(genes, values, streams, o_t, m_t, VALUE_STREAM, MODE, STREAMED)
    b_w = None
    if E > 0:
        b_w = table_weights(b_x, m_v, b_s, m_t, weight, bias, mixing, K, M, E0, E, BE, BM, MODE)
        b_w = b_w.to(gene_table.dtype.element_ty)

    # [BT]: mean and sum of squared deviations so far, merged chunk by chunk
    b_mean = tl.zeros([BT], tl.float32)
    b_square = tl.zeros([BT], tl.float32)
    if CHUNKS == 1:
        b_h, o_d = _chunk(gene_table, prefix_table, table, b_g, b_w, 0, G, P, D, E, BE, BD)
    if NORM != NO_NORM:
        for i_d in range(CHUNKS):
            if CHUNKS > 1:
                b_h, o_d = _chunk(gene_table, prefix_table, table, b_g, b_w, i_d, G, P, D, E, BE, BD)
            if NORM == LAYER_NORM:
                count = tl.minimum(D - i_d * BD, BD).to(tl.float32)
                b_level = tl.sum(b_h, 1) / count
                # the mean is corrected once: a rounding error in it would swamp rows that barely vary
                b_level += tl.sum(tl.where((o_d < D)[None, :], b_h - b_level[:, None], 0.0), 1) / count
                b_centred = tl.where((o_d < D)[None, :], b_h - b_level[:, None], 0.0)
                b_step = b_level - b_mean
                share = count / (i_d * BD + count)
                b_mean += b_step * share
                b_square += tl.sum(b_centred * b_centred, 1) + b_step * b_step * share * (i_d * BD)
            else:
                b_square += tl.sum(b_h * b_h, 1)
        b_rstd = tl.rsqrt(b_square / D + eps)
        tl.store(rstd + o_t, b_rstd, mask=m_t)
    if NORM == LAYER_NORM:
        tl.store(mean + o_t, b_mean, mask=m_t)

    for i_d in range(CHUNKS):
        if CHUNKS > 1:
            b_h, o_d = _chunk(gene_table, prefix_table, table, b_g, b_w, i_d, G, P, D, E, BE, BD)
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
    dy, mean, rstd, genes, values, streams, gene_table, prefix_table, weight, bias, mixing, table, gain,
    dtoken, weights, dgain, dshift, T, G, P,
    D: tl.constexpr, K: tl.constexpr, M: tl.constexpr, E0: tl.constexpr, E: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr,
    MODE: tl.constexpr, VALUE_STREAM: tl.constexpr, STREAMED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Gradient of the tokens before the norm, [T, D]; sums over the tile for `dgain`, `dshift` [tiles, D].

    Also leaves `weights` [T, BE], of which the gradient of the table is a product.
    """
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    i_t = tl.program_id(0).to(tl.int64)
    o_t = i_t * BT + tl.arange(0, BT)
    m_t = o_t < T
    b_g, b_x, m_v, b_s = load_tokens(genes, values, streams, o_t, m_t, VALUE_STREAM, MODE, STREAMED)
    b_w = None
    if E > 0:
        b_w = table_weights(b_x, m_v, b_s, m_t, weight, bias, mixing, K, M, E0, E, BE, BM, MODE)
        b_w = b_w.to(gene_table.dtype.element_ty)
        tl.store(weights + o_t[:, None] * BE + tl.arange(0, BE)[None, :], b_w, mask=m_t[:, None])

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
            b_h, o_d = _chunk(gene_table, prefix_table, table, b_g, b_w, i_d, G, P, D, E, BE, BD)
            b_d = load_wide(dy + o_t[:, None] * D + o_d[None, :], m_t[:, None] & (o_d < D)[None, :])
            if gain is not None:
                b_d *= load_wide(gain + o_d, o_d < D)[None, :]
            b_along += tl.sum(b_d * (b_h - b_mean[:, None]), 1)
            if NORM == LAYER_NORM:
                b_level += tl.sum(b_d, 1)
        b_along *= b_rstd / D
        b_level /= D

    for i_d in range(CHUNKS):
        b_h, o_d = _chunk(gene_table, prefix_table, table, b_g, b_w, i_d, G, P, D, E, BE, BD)
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
    """Launch the forward kernel; see `reference.embed_forward`."""
    x = reference.Operands(*operands)
    tokens, width = x.genes.shape[0], x.gene_table.shape[1]
    y = torch.empty((tokens, width), dtype=x.gene_table.dtype, device=x.genes.device)
    mean, rstd = (
        torch.empty((tokens, 1) if kept else 0, dtype=torch.float32, device=x.genes.device)
        for kept in (x.norm == reference.LAYER_NORM, x.norm != reference.NO_NORM)
    )
    if tokens:
        sizes, constants = _constants(x)
        with on_device_of(y):
            embed_fwd_kernel[(triton.cdiv(tokens, constants["BT"]),)](
                *_pointers(x), x.gain, x.shift, y, mean, rstd, *sizes, x.eps, **constants
            )
    return y, mean, rstd


def embed_backward(
    dy: Tensor, mean: Tensor, rstd: Tensor, tables: bool, *operands: Any
) -> tuple[Tensor, ...]:
    """Launch the backward kernels; see `reference.embed_backward`."""
    x = reference.Operands(*operands)
    dtoken, weights, ends = _tokens_backward(dy, mean, rstd, x)
    empty = x.gene_table.new_empty(0)
    rows = sum_by_gene(x.genes, dtoken, x.gene_table, x.prefix_table) if tables else (empty, empty)
    dvalues, *layers = _encoding_backward(x, dtoken, weights)
    if dvalues is None and x.values is not None:
        dvalues = torch.zeros_like(x.values)
    grads = (dvalues, *rows, *layers, *ends)
    return tuple(empty if grad is None else grad for grad in grads)


def _tokens_backward(
    dy: Tensor, mean: Tensor, rstd: Tensor, x: reference.Operands
) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, Tensor | None]]:
    """`dtoken`, the weights [T, BE] of the table, and the gradients of `gain` and `shift`."""
    tokens, width = dy.shape
    sizes, constants = _constants(x)
    n_tiles = triton.cdiv(tokens, constants["BT"])
    dtoken = torch.empty_like(dy)
    weights = dy.new_empty((tokens, constants["BE"])) if x.table is not None else None
    dgain, dshift = (
        None if end is None else torch.empty((n_tiles, width), dtype=torch.float32, device=dy.device)
        for end in (x.gain, x.shift)
    )
    if tokens:
        with on_device_of(dy):
            embed_bwd_kernel[(n_tiles,)](
                dy, mean, rstd, *_pointers(x), x.gain, dtoken, weights, dgain, dshift, *sizes, **constants
            )
    ends = tuple(None if part is None else part.sum(0).to(dy.dtype) for part in (dgain, dshift))
    return dtoken, weights, ends  # type: ignore[return-value]


def _encoding_backward(
    x: reference.Operands, dtoken: Tensor, weights: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of `values`, `weight`, `bias`, `mixing` and `table`."""
    if x.table is None or weights is None:
        return (None,) * 5
    dtable = (weights.T @ dtoken)[: x.table.shape[0]].contiguous()
    if x.values is None:
        return None, None, None, None, dtable
    layout = reference.columns(x)
    # padded to the width of the kernel's tile, for wide loads
    table = x.table.new_zeros((weights.shape[1], x.table.shape[1]))
    table[: layout.activations] = x.table[: layout.activations]
    return *_values_backward(x, dtoken @ table.T), dtable


def _values_backward(x: reference.Operands, dweights: Tensor) -> tuple[Tensor | None, ...]:
    assert x.values is not None and x.weight is not None
    tokens = x.values.shape[0]
    _, constants = _constants(x)
    n_tiles = triton.cdiv(tokens, tiles.ROWS)
    steps = max(1, triton.cdiv(n_tiles, tiles.PARTS))
    parts = triton.cdiv(n_tiles, steps)
    hidden, columns = constants["BM"], constants["BE"]

    def partial(*shape: int) -> Tensor:
        return torch.empty((parts, *shape), dtype=torch.float32, device=dweights.device)

    dvalues = torch.empty_like(x.values)
    dweight, dbias = partial(hidden), partial(hidden)
    dmixing = partial(columns, hidden) if x.mixing is not None else None
    if tokens:
        with on_device_of(dweights):
            values_bwd_kernel[(parts,)](
                dweights, x.genes, x.values, x.streams, x.weight, x.bias, x.mixing,
                dvalues, dweight, dbias, dmixing, tokens, steps,
                K=constants["K"], M=constants["M"], BT=tiles.ROWS, BE=columns, BM=hidden, MODE=x.mode,
                VALUE_STREAM=constants["VALUE_STREAM"], STREAMED=constants["STREAMED"], num_warps=8,
            )  # fmt: skip
    units = x.weight.shape[0]
    if dmixing is not None:
        dmixing = dmixing.sum(0)[: constants["K"], :units].to(x.weight.dtype).contiguous()
    sums = (part.sum(0)[:units].to(x.weight.dtype) for part in (dweight, dbias))
    return dvalues, *sums, dmixing


def _pointers(x: reference.Operands) -> tuple[Tensor | None, ...]:
    """The pointers that both kernels begin with."""
    tables = (x.gene_table, x.prefix_table, x.weight, x.bias, x.mixing, x.table)
    return x.genes, x.values, x.streams, *tables


def _constants(x: reference.Operands) -> tuple[tuple[int, int, int | None], dict[str, int]]:
    """The sizes that may differ from call to call, and those that are compiled in."""
    layout = reference.columns(x)
    tile = tiles.choose(x.gene_table.shape[1], x.gene_table.element_size())
    rows = 0 if x.table is None else x.table.shape[0]
    hidden = 0 if x.weight is None else x.weight.shape[0]
    columns = tiles.padded(max(rows, 1))
    prefix = None if x.prefix_table is None else x.prefix_table.shape[0]
    return (x.genes.shape[0], x.gene_table.shape[0], prefix), {
        "D": x.gene_table.shape[1], "K": layout.activations, "M": hidden, "E0": layout.first_stream, "E": rows,
        "BT": tile.rows, "BD": tile.columns, "BE": columns,
        # without a second layer a hidden unit is a column
        "BM": tiles.padded(max(hidden, 1)) if x.mixing is not None else columns,
        "MODE": x.mode, "VALUE_STREAM": x.value_stream, "STREAMED": x.streams is not None, "NORM": x.norm,
        "num_warps": tile.num_warps,
    }  # fmt: skip
