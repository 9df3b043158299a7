"""The kernels, and the functions that launch them.

`attention_mass`: a program keeps a tile of keys and lets the queries of their segment pass by; a key belongs
to one program, which sums in registers.

`attention_rows`: queries of chosen genes are few, so they are gathered first (`plan`), 64 of a segment at a
time. A program computes their attention to some keys, all heads in turn, and adds it to the matrix of genes.
Several programs meet in one element of that matrix. They add whole numbers, multiples of 2^-40, which gives
the same sum in any order; so no pass over memory is needed to bring the terms into one.

The naming system is described in `scdd.kernels._triton`.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import dot, load_wide, on_device_of
from . import tiles
from .plan import plan

_LOG2E = tl.constexpr(1.4426950408889634)

# A sum may reach 2^23, as many queries of one gene; what is below 2^-41 counts as nothing.
_UNITS: Final = 2.0**40
_ONE = tl.constexpr(_UNITS)


@triton.jit
def load_rows(x, o_r, m_r, stride, i_h, i_d, D: tl.constexpr, BK: tl.constexpr):
    """Columns `i_d` to ``i_d + BK`` of head `i_h` of some rows of [T, H, D], as they are stored: [B, BK]."""
    o_d = i_d + tl.arange(0, BK)
    p = o_r.to(tl.int64)[:, None] * stride + i_h * D + o_d[None, :]
    return tl.load(x + p, mask=m_r[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def products(
    x, o_x, m_x, stride_x, y, o_y, m_y, stride_y, i_h, B: tl.constexpr, D: tl.constexpr, BK: tl.constexpr
):
    """Products of the rows `o_x` of x and the `B` rows `o_y` of y, read in steps to leave registers."""
    b_s = tl.zeros([o_x.shape[0], B], tl.float32)
    for i_d in range(0, D, BK):
        b_x = load_rows(x, o_x, m_x, stride_x, i_h, i_d, D, BK)
        b_y = load_rows(y, o_y, m_y, stride_y, i_h, i_d, D, BK)
        b_s = dot(b_x, tl.trans(b_y), b_s)
    return b_s


@triton.jit
def biased(b_s, scale, b_key, weight, b_distance, slope, KEY_BIAS: tl.constexpr, SLOPE: tl.constexpr):
    """Scores in powers of two, from products."""
    b_s = b_s * (scale * _LOG2E)
    if KEY_BIAS:
        b_s += b_key * (weight * _LOG2E)
    if SLOPE:
        b_s -= b_distance * (slope * _LOG2E)
    return b_s


@triton.jit
def mass_step(
    k, o_n, m_n, stride_k, b_k, b_key, b_at, b_segment, b_mass, q, lse, segments, coordinate, i_m, stop,
    stride_q, scale, weight,
    incline, i_h,
    D: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr,
    KEY_BIAS: tl.constexpr, SLOPE: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Add what the queries from `i_m` on give to each key, [BN]."""
    o_m = i_m + tl.arange(0, BM)
    m_m = o_m < stop
    # [BN, BM]
    if BK == BD:
        b_q = load_rows(q, o_m, m_m, stride_q, i_h, 0, D, BD)
        b_s = dot(b_k, tl.trans(b_q), tl.zeros([b_mass.shape[0], BM], tl.float32))
    else:
        b_s = products(k, o_n, m_n, stride_k, q, o_m, m_m, stride_q, i_h, BM, D, BK)
    b_distance = 0.0
    if SLOPE:
        b_distance = tl.abs(b_at[:, None] - load_wide(coordinate + o_m, m_m)[None, :])
    b_s = biased(b_s, scale, b_key, weight, b_distance, incline, KEY_BIAS, SLOPE)
    # two to a score less infinity is the zero that queries past the end must give
    b_lse = tl.load(lse + o_m, mask=m_m, other=float("inf")) * _LOG2E
    b_p = tl.exp2(b_s - b_lse[None, :])
    if SHARED:
        b_other = tl.load(segments + o_m, mask=m_m, other=-2)
        b_p = tl.where(b_segment[:, None] == b_other[None, :], b_p, 0.0)
    return b_mass + tl.sum(b_p, 1)


@triton.jit
def mass_kernel(
    q, k, lse, mass, tiles, segments, key_weight, key_bias, slope, coordinate, T, stride_q, stride_k, scale,
    H: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SPLIT: tl.constexpr, KEY_BIAS: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """`mass` [T, H] of some keys, for one head; `lse` is [H, T]."""
    i_tile, i_h = tl.program_id(0), tl.program_id(1)
    p = tiles + (i_tile // SPLIT).to(tl.int64) * 6
    first = tl.load(p) + (i_tile % SPLIT) * BN
    end = tl.load(p + 1)
    if first >= end:
        return
    shared = tl.load(p + 2) != tl.load(p + 3)
    begin, stop = tl.load(p + 4), tl.load(p + 5)
    # [BN]
    o_n = first + tl.arange(0, BN)
    m_n = o_n < end
    # keys stay in registers where they fit; as float32 each is two numbers of tf32
    b_k = 0.0
    if BK == BD:
        b_k = load_rows(k, o_n, m_n, stride_k, i_h, 0, D, BD)
    weight, b_key, incline, b_at = 0.0, 0.0, 0.0, 0.0
    if KEY_BIAS:
        weight = tl.load(key_weight + i_h)
        b_key = load_wide(key_bias + o_n, m_n)[:, None]
    if SLOPE:
        incline = tl.load(slope + i_h)
        b_at = load_wide(coordinate + o_n, m_n)
    b_segment = tl.load(segments + o_n, mask=m_n, other=-1)
    b_mass = tl.zeros([BN], tl.float32)
    p_lse = lse + i_h.to(tl.int64) * T
    # a tile of one segment takes the first loop, a tile of several the second
    alone = tl.where(shared, begin, stop)
    for i in tl.range(begin, alone, BM):
        b_mass = mass_step(
            k, o_n, m_n, stride_k, b_k, b_key, b_at, b_segment, b_mass, q, p_lse, segments, coordinate, i,
            stop, stride_q, scale, weight, incline, i_h, D, BD, BK, BM, KEY_BIAS, SLOPE, False,
        )  # fmt: skip
    for i in tl.range(alone, stop, BM, num_stages=1):
        b_mass = mass_step(
            k, o_n, m_n, stride_k, b_k, b_key, b_at, b_segment, b_mass, q, p_lse, segments, coordinate, i,
            stop, stride_q, scale, weight, incline, i_h, D, BD, BK, BM, KEY_BIAS, SLOPE, True,
        )  # fmt: skip
    tl.store(mass + o_n.to(tl.int64) * H + i_h, b_mass, mask=m_n)


@triton.jit
def add_units(sums, broken, b_p, p_sums, b_r, m):
    """Add a block to the matrix of genes in whole units, and note rows in which a number is not finite."""
    b_sound = (b_p < 2.0) & m
    tl.atomic_add(sums + p_sums, (b_p * _ONE + 0.5).to(tl.int64), mask=b_sound, sem="relaxed")
    # every program that writes here writes the same
    b_broken = tl.max(tl.where(m & ~b_sound, 1, 0), 1)
    tl.store(broken + b_r, b_broken, mask=b_broken > 0)


@triton.jit
def rows_kernel(
    q, k, lse, sums, counts, broken, queries, plan_tiles, row_of_token, genes, key_weight, key_bias, slope,
    coordinate, T, G, stride_q, stride_k, scale,
    H: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PARTS: tl.constexpr, KEY_BIAS: tl.constexpr, SLOPE: tl.constexpr, PER_HEAD: tl.constexpr,
):  # fmt: skip
    """Add the attention of up to BM gathered queries to some keys of their segment; `lse` is [H, T].

    `plan_tiles` [M, 4] has first and end of the queries of a tile, and first and end of their keys. `sums` is
    int64 [R, G] or [R, H, G], `counts` int32 [R, G].
    """
    p_tile = plan_tiles + tl.program_id(0).to(tl.int64) * 4
    first, end = tl.load(p_tile), tl.load(p_tile + 1)
    if first >= end:
        return
    begin, stop = tl.load(p_tile + 2), tl.load(p_tile + 3)
    # [BM]: places among the chosen queries, their tokens, the rows of the result
    o_m = first + tl.arange(0, BM)
    m_m = o_m < end
    b_t = tl.load(queries + o_m, mask=m_m, other=0).to(tl.int64)
    b_r = tl.load(row_of_token + b_t, mask=m_m, other=0).to(tl.int64)
    b_at = tl.zeros([BM], tl.float32)
    if SLOPE:
        b_at = load_wide(coordinate + b_t, m_m)
    for i_n in range(begin + tl.program_id(1) * BN, stop, BN * PARTS):
        # [BN]
        o_n = i_n + tl.arange(0, BN)
        m_n = o_n < stop
        b_g = tl.load(genes + o_n, mask=m_n, other=-1).to(tl.int64)
        b_key, b_distance = 0.0, 0.0
        if KEY_BIAS:
            b_key = load_wide(key_bias + o_n, m_n)[None, :]
        if SLOPE:
            b_distance = tl.abs(b_at[:, None] - load_wide(coordinate + o_n, m_n)[None, :])
        # [BM, BN]
        m = m_m[:, None] & ((b_g >= 0) & (b_g < G))[None, :]
        b_mean = tl.zeros([BM, BN], tl.float32)
        for i_h in range(H):
            b_s = products(q, b_t, m_m, stride_q, k, o_n, m_n, stride_k, i_h, BN, D, BK)
            weight, incline = 0.0, 0.0
            if KEY_BIAS:
                weight = tl.load(key_weight + i_h)
            if SLOPE:
                incline = tl.load(slope + i_h)
            b_s = biased(b_s, scale, b_key, weight, b_distance, incline, KEY_BIAS, SLOPE)
            p_lse = lse + tl.cast(i_h, tl.int64) * T
            b_lse = tl.load(p_lse + b_t, mask=m_m, other=float("inf")) * _LOG2E
            b_p = tl.exp2(b_s - b_lse[:, None])
            if PER_HEAD:
                add_units(sums, broken, b_p, (b_r[:, None] * H + i_h) * G + b_g[None, :], b_r, m)
            else:
                b_mean += b_p
        p = b_r[:, None] * G + b_g[None, :]
        if not PER_HEAD:
            add_units(sums, broken, b_mean / H, p, b_r, m)
        tl.atomic_add(counts + p, tl.full([BM, BN], 1, tl.int32), mask=m, sem="relaxed")


def attention_mass(
    q: Tensor, k: Tensor, lse: Tensor, cu_seqlens: Tensor, tiles_: Tensor | None, segments: Tensor | None,
    key_weight: Tensor | None, key_value: Tensor | None, slope: Tensor | None, coordinate: Tensor | None,
    scale: float, tile_rows: int,
) -> Tensor:  # fmt: skip
    """Launch the kernel; see `reference.attention_mass`."""
    assert tiles_ is not None
    assert segments is not None
    heads, width = q.shape[1:]
    mass = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    tile = tiles.choose_mass(width, q.element_size())
    q, k, columns = _rows(q), _rows(k), lse.mT.contiguous()
    split = triton.cdiv(tile_rows, tile.keys)
    if tiles_.numel():
        with on_device_of(q):
            mass_kernel[(len(tiles_) * split, heads)](
                q, k, columns, mass, tiles_, segments, key_weight, _log1p(key_value), slope, coordinate,
                len(q), q.stride(0), k.stride(0), scale,
                H=heads, D=width, BD=triton.next_power_of_2(width), BK=tile.step,
                BM=tile.queries, BN=tile.keys, SPLIT=split,
                KEY_BIAS=key_value is not None, SLOPE=slope is not None,
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
    return mass


def attention_rows(
    q: Tensor, k: Tensor, lse: Tensor, cu_seqlens: Tensor, genes: Tensor, chosen: Tensor,
    key_weight: Tensor | None, key_value: Tensor | None, slope: Tensor | None, coordinate: Tensor | None,
    n_genes: int, scale: float, per_head: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the kernel; see `reference.attention_rows`."""
    heads, width = q.shape[1:]
    rows = chosen.shape[0]
    tile = tiles.choose_rows(width, q.element_size())
    shape = (rows, heads, n_genes) if per_head else (rows, n_genes)
    sums = torch.zeros(shape, dtype=torch.int64, device=q.device)
    counts = torch.zeros((rows, n_genes), dtype=torch.int32, device=q.device)
    broken = torch.zeros(rows, dtype=torch.int32, device=q.device)
    found = plan(cu_seqlens, genes, chosen, n_genes, tile.queries)
    q, k, columns = _rows(q), _rows(k), lse.mT.contiguous()
    if rows and len(found.tiles):
        with on_device_of(q):
            rows_kernel[(len(found.tiles), tiles.KEY_PARTS)](
                q, k, columns, sums, counts, broken, found.queries, found.tiles, found.row_of_token, genes,
                key_weight, _log1p(key_value), slope, coordinate,
                len(q), n_genes, q.stride(0), k.stride(0), scale,
                H=heads, D=width, BK=tile.step, BM=tile.queries, BN=tile.keys,
                PARTS=tiles.KEY_PARTS, KEY_BIAS=key_value is not None, SLOPE=slope is not None,
                PER_HEAD=per_head, num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
    attention = sums.to(torch.float32).mul_(1 / _UNITS)
    lost = broken.view(-1, *[1] * (attention.ndim - 1)) > 0
    return attention.masked_fill_(lost, torch.nan), counts


def _rows(packed: Tensor) -> Tensor:
    """[T, H, D] whose rows may lie apart, as pieces of one projection do, but are whole."""
    whole = packed.stride(2) == 1 and packed.stride(1) == packed.shape[2]
    return packed if whole else packed.contiguous()


def _log1p(key_value: Tensor | None) -> Tensor | None:
    return None if key_value is None else torch.log1p(key_value)
