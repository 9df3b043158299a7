"""The kernels, and the functions that launch them.

A tile is [BM, BD], some tokens of one cell and some of their channels. The forward goes over the channels
twice, for the statistics of the rows and for the projection; what it reads the second time is in the cache
still. The backward has the sums over a row from the forward, so it takes each element once; see `reference`.

The naming system is described in `scdd.kernels._triton`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._philox_triton import normal_quads
from .._triton import dot, load_wide, on_device_of, store_narrow
from . import tiles


@triton.jit
def row_statistics(h, p_row, m_row, norm_eps, D: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr):
    """Mean in two parts and reciprocal deviation of rows, chunks merged as by Chan, Golub and LeVeque.

    The first part of the mean is that of the first chunk. What is left after it was subtracted is small where
    the mean is large, and so is then the rounding error of the second part, which would swamp rows that
    barely vary.
    """
    o_d = tl.arange(0, BD)
    b_h = load_wide(h + p_row[:, None] + o_d[None, :], m_row[:, None] & (o_d < D)[None, :])
    b_pivot = tl.sum(b_h, 1) / min(BD, D)
    b_mean = tl.zeros([BM], tl.float32)
    b_square = tl.zeros([BM], tl.float32)
    for i_d in range(0, D, BD):
        o_d = i_d + tl.arange(0, BD)
        m = m_row[:, None] & (o_d < D)[None, :]
        b_h = tl.where(m, load_wide(h + p_row[:, None] + o_d[None, :], m) - b_pivot[:, None], 0.0)
        count = tl.minimum(BD, D - i_d).to(tl.float32)
        b_level = tl.sum(b_h, 1) / count
        b_centred = tl.where(m, b_h - b_level[:, None], 0.0)
        b_step = b_level - b_mean
        share = count / (i_d + count)
        b_square += tl.sum(b_centred * b_centred, 1) + b_step * b_step * (i_d * share)
        b_mean += b_step * share
    return b_pivot, b_mean, tl.rsqrt(b_square / D + norm_eps)


@triton.jit
def denoise_loss_fwd_kernel(
    h, shift, scale, weight, bias, x0, signal, noise, cell_weight, seed, eps, squares, residual, statistics,
    B, N, G, norm_eps,
    D: tl.constexpr, P: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
    PREDICTION: tl.constexpr,
):  # fmt: skip
    """Sum of squared errors of each row, `squares` [B, N], and what the backward needs of it."""
    i_b, i_n = tl.program_id(0).to(tl.int64), tl.program_id(1)
    # [BM], [BK]
    o_n = i_n * BM + tl.arange(0, BM)
    m_n = o_n < N
    o_r = i_b * N + o_n
    o_k = tl.arange(0, BK)
    b_pivot, b_rest, b_rstd = row_statistics(h, o_r * D, m_n, norm_eps, D, BM, BD)

    b_projected = tl.zeros([BM, BK], tl.float32)
    b_of_gain = tl.zeros([BK, BD], tl.float32)
    b_of_shift = tl.zeros([BK, BD], tl.float32)
    for i_d in range(0, D, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = o_d < D
        # zero beyond D, where a row whose mean is large and that barely varies is beyond float16
        b_gain = tl.where(m_d, 1.0 + load_wide(scale + i_b * D + o_d, m_d), 0.0)
        b_shift = load_wide(shift + i_b * D + o_d, m_d)
        # [BK, BD]
        b_w = tl.load(
            weight + o_k[:, None] * D + o_d[None, :], mask=(o_k < P)[:, None] & m_d[None, :], other=0.0
        )
        b_of_gain += b_w.to(tl.float32) * b_gain[None, :]
        b_of_shift += b_w.to(tl.float32) * b_shift[None, :]
        # [BM, BD]
        b_h = load_wide(h + o_r[:, None] * D + o_d[None, :], m_n[:, None] & m_d[None, :])
        b_y = (b_h - b_pivot[:, None] - b_rest[:, None]) * b_rstd[:, None] * b_gain[None, :]
        b_projected = dot(b_y.to(b_w.dtype), tl.trans(b_w), b_projected)

    b_predicted = b_projected + tl.sum(b_of_shift, 1)[None, :] + load_wide(bias + o_k, o_k < P)[None, :]
    # [BM, BK]
    o_g = o_n[:, None] * P + o_k[None, :]
    m = m_n[:, None] & (o_k < P)[None, :] & (o_g < G)
    if PREDICTION == "x0":
        b_target = load_wide(x0 + i_b * G + o_g, m)
    else:
        if eps is None:
            QUADS: tl.constexpr = (P + 3) // 4
            o_q = o_r[:, None] * QUADS + tl.arange(0, BK // 4)[None, :]
            b_target = normal_quads(tl.load(seed), o_q, BM, BK // 4)
        else:
            b_target = load_wide(eps + i_b * G + o_g, m)
        if PREDICTION == "v":
            b_signal, b_noise = tl.load(signal + i_b).to(tl.float32), tl.load(noise + i_b).to(tl.float32)
            b_target = b_signal * b_target - b_noise * load_wide(x0 + i_b * G + o_g, m)
    b_error = tl.where(m, b_predicted - b_target, 0.0)
    tl.store(squares + o_r, tl.sum(b_error * b_error, 1), mask=m_n)
    if cell_weight is not None:
        b_error *= tl.load(cell_weight + i_b).to(tl.float32)

    # the backward reads the rounded residual, so its row sums must be those of the rounded residual
    b_error = b_error.to(residual.dtype.element_ty)
    tl.store(residual + o_r[:, None] * P + o_k[None, :], b_error, mask=m_n[:, None] & (o_k < P)[None, :])
    b_error = b_error.to(tl.float32)
    rows = tl.cast(B, tl.int64) * N
    tl.store(statistics + o_r, b_pivot + b_rest, mask=m_n)
    tl.store(statistics + rows + o_r, b_rstd, mask=m_n)
    tl.store(statistics + 2 * rows + o_r, tl.sum(b_error * tl.sum(b_of_gain, 1)[None, :], 1) / D, mask=m_n)
    tl.store(statistics + 3 * rows + o_r, tl.sum(b_error * b_projected, 1) / D, mask=m_n)


@triton.jit
def denoise_loss_bwd_kernel(
    dloss, h, shift, scale, weight, residual, statistics, dh, dshift, dscale, dweight, dbias,
    B, N, cells, factor,
    D: tl.constexpr, P: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Gradients of the channels of `cells` cells, and sums over them, unscaled: `dweight` [slices, P, D]."""
    i_s = tl.program_id(1).to(tl.int64)
    # [BD], [BK]; within a cell 32 bits are enough
    o_d = tl.program_id(0) * BD + tl.arange(0, BD)
    o_k = tl.arange(0, BK)
    m_d, m_k = o_d < D, o_k < P
    factor *= tl.load(dloss).to(tl.float32)
    rows = tl.cast(B, tl.int64) * N
    # [BK, BD]
    p_w = o_k[:, None] * D + o_d[None, :]
    m_w = m_k[:, None] & m_d[None, :]
    b_w = tl.load(weight + p_w, mask=m_w, other=0.0)
    b_dweight = tl.zeros([BD, BK], tl.float32)
    b_dbias = tl.zeros([BK], tl.float32)
    for i_b in range(i_s * cells, tl.minimum((i_s + 1) * cells, B)):
        first = i_b * N
        b_gain = 1.0 + load_wide(scale + i_b * D + o_d, m_d)
        b_outer = tl.zeros([BD, BK], tl.float32)
        b_total = tl.zeros([BM, BK], tl.float32)
        # [BM, BD]; the next tile is asked for before the last is worked on, as registers leave no room for a
        # second program that would have the memory busy meanwhile
        p_h = tl.arange(0, BM)[:, None] * D + o_d[None, :]
        m = (tl.arange(0, BM) < N)[:, None] & m_d[None, :]
        b_next = tl.load(h + first * D + p_h, mask=m, other=0.0)
        for i_n in range(0, N, BM):
            # [BM]
            o_n = i_n + tl.arange(0, BM)
            m_n = o_n < N
            b_h = b_next
            m = (o_n + BM < N)[:, None] & m_d[None, :]
            b_next = tl.load(h + (first + i_n + BM) * D + p_h, mask=m, other=0.0)
            b_mean = load_wide(statistics + first + o_n, m_n)
            b_rstd = load_wide(statistics + (rows + first) + o_n, m_n)
            b_level = load_wide(statistics + (2 * rows + first) + o_n, m_n)
            b_along = load_wide(statistics + (3 * rows + first) + o_n, m_n)
            # [BM, BK], [BM, BD]
            p = o_n[:, None] * P + o_k[None, :]
            b_error = tl.load(residual + first * P + p, mask=m_n[:, None] & m_k[None, :], other=0.0)
            b_normed = (b_h.to(tl.float32) - b_mean[:, None]) * b_rstd[:, None]
            b_dh = dot(b_error, b_w, tl.zeros([BM, BD], tl.float32)) * b_gain[None, :]
            b_dh = (b_dh - b_level[:, None] - b_normed * b_along[:, None]) * (b_rstd * factor)[:, None]
            store_narrow(dh + (first + i_n) * D + p_h, b_dh, m_n[:, None] & m_d[None, :])
            b_outer = dot(tl.trans(b_normed.to(b_w.dtype)), b_error, b_outer)
            b_total += b_error.to(tl.float32)
        # [BK], [BD, BK]
        b_total = tl.sum(b_total, 0)
        b_wide = load_wide(weight + tl.trans(p_w), tl.trans(m_w))
        b_shift = load_wide(shift + i_b * D + o_d, m_d)
        store_narrow(dshift + i_b * D + o_d, tl.sum(b_wide * b_total[None, :], 1) * factor, m_d)
        store_narrow(dscale + i_b * D + o_d, tl.sum(b_wide * b_outer, 1) * factor, m_d)
        b_gain = 1.0 + load_wide(scale + i_b * D + o_d, m_d)
        b_dweight += b_outer * b_gain[:, None] + b_total[None, :] * b_shift[:, None]
        b_dbias += b_total
    tl.store(dweight + i_s * P * D + tl.trans(p_w), b_dweight, mask=tl.trans(m_w))
    if tl.program_id(0) == 0:
        tl.store(dbias + i_s * P + o_k, b_dbias, mask=m_k)


def denoise_loss_forward(
    h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor,
    x0: Tensor, signal: Tensor, noise: Tensor, cell_weight: Tensor | None,
    seed: Tensor | None, eps: Tensor | None, prediction: str, norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the forward kernel; see `reference.denoise_loss_forward`."""
    cells, patches, width = h.shape
    tile = tiles.choose(width, h.element_size(), backward=False)
    grid = (cells, triton.cdiv(patches, tile.rows))
    wide: dict[str, Any] = {"dtype": torch.float32, "device": h.device}
    squares = torch.empty((cells, patches), **wide)
    residual = torch.empty((cells, patches, len(weight)), dtype=h.dtype, device=h.device)
    statistics = torch.empty((4, cells, patches), **wide)
    if x0.numel():
        with on_device_of(h):
            denoise_loss_fwd_kernel[grid](
                h, shift, scale, weight, bias, x0, signal, noise, cell_weight, seed, eps,
                squares, residual, statistics, cells, patches, x0.shape[1], norm_eps,
                **_sizes(tile, weight), PREDICTION=prediction, num_warps=tile.num_warps,
            )  # fmt: skip
    of_cells = squares.sum(1) / x0.shape[1]
    loss = of_cells if cell_weight is None else of_cells * cell_weight.to(of_cells.dtype)
    return loss.mean(), of_cells, residual, statistics


def denoise_loss_backward(
    dloss: Tensor, h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, residual: Tensor,
    statistics: Tensor, genes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the backward kernel and add its parts; see `reference.denoise_loss_backward`."""
    cells, patches, width = h.shape
    tile = tiles.choose(width, h.element_size(), backward=True)
    plan = tiles.schedule(cells, width, tile)
    factor = 2 / max(1, cells * genes)
    dh, dshift, dscale = torch.empty_like(h), torch.empty_like(shift), torch.empty_like(scale)
    wide: dict[str, Any] = {"dtype": torch.float32, "device": h.device}
    dweight = torch.empty((plan.slices, *weight.shape), **wide)
    dbias = torch.empty((plan.slices, len(weight)), **wide)
    with on_device_of(h):
        denoise_loss_bwd_kernel[triton.cdiv(width, tile.width), plan.slices](
            dloss, h, shift, scale, weight, residual, statistics, dh, dshift, dscale, dweight, dbias,
            cells, patches, plan.cells, factor, **_sizes(tile, weight),
            num_warps=tile.num_warps, num_stages=tiles.BACKWARD_STAGES,
        )  # fmt: skip
    scaled = dloss * factor
    totals = ((part.sum(0) * scaled).to(weight.dtype) for part in (dweight, dbias))
    return dh, dshift, dscale, *totals  # type: ignore[return-value]


def _sizes(tile: tiles.Tile, weight: Tensor) -> dict[str, int]:
    """What the kernels know of the sizes when they are compiled."""
    patch, width = weight.shape
    return {"D": width, "P": patch, "BM": tile.rows, "BD": tile.width, "BK": tiles.patch_width(patch)}
