"""A matrix product with all that follows it, in one kernel.

The columns of one row of tiles run side by side, so the rows are read from memory once; the weights, a few
megabytes, stay in the second-level cache. Hence no grouping of tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from .._triton import dot, load_wide, on_device_of, store_narrow
from . import tiles

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def finish(
    b_v, o_row, o_n, added, mask, level, residual, gate, h, out,
    M, R, stride_gate, alpha, offset, N: tl.constexpr, RECTIFY: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """All that follows the product `b_v`; returns how many of its elements are zero, if COUNT."""
    o_m = o_row.to(tl.int64)
    m_m, m_n = o_row < M, o_n < N
    # as b_v
    m = m_m[:, None] & m_n[None, :]
    p = o_m[:, None] * N + o_n[None, :]
    b_v *= alpha
    if added is not None:
        b_v += load_wide(added + p, m)
    # comparisons are such that NaN stays NaN
    if RECTIFY:
        if level is not None:
            b_v -= load_wide(level + o_n, m_n)[None, :]
        else:
            b_v -= offset
        b_v = tl.where(b_v <= 0.0, 0.0, b_v)
    if mask is not None:
        b_v = tl.where(load_wide(mask + p, m) <= 0.0, 0.0, b_v)
    count = 0
    if COUNT:
        # of v as it is stored; the interpreter can not compare bfloat16
        b_zero = (b_v.to(out.dtype.element_ty).to(tl.float32) == 0.0) & m
        count = tl.sum(b_zero.to(tl.int32))
    if h is not None:
        store_narrow(h + p, b_v, m)
    if gate is not None:
        o_c = (o_row // R).to(tl.int64)
        b_v *= load_wide(gate + o_c[:, None] * stride_gate + o_n[None, :], m)
    if residual is not None:
        b_v += load_wide(residual + p, m)
    store_narrow(out + p, b_v, m)
    return count


@triton.jit
def halves(b):
    """The left and the right half of the columns."""
    return tl.split(tl.permute(tl.reshape(b, [b.shape[0], 2, b.shape[1] // 2]), [0, 2, 1]))


@triton.jit
def matmul_kernel(
    a, w, added, mask, level, residual, gate, h, out, zeros,
    M, R, stride_gate, alpha, offset,
    N: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    TRANSPOSED: tl.constexpr, RECTIFY: tl.constexpr,
):  # fmt: skip
    """One tile of ``v = alpha * a @ w + added``, rectified or masked, as ``residual + gate[row // R] * v``.

    `w` is [K, N], or [N, K] if TRANSPOSED. RECTIFY: ``v = relu(v - level)``. `mask`: v is zero where it is
    not positive. `h` receives v, and `zeros` the number of its zeros in this tile. Each pointer but a, w and
    out may be None.
    """
    i = tl.program_id(0)
    i_m, i_n = i // tl.cdiv(N, BN), i % tl.cdiv(N, BN)
    # [BM], [BN], [BK]
    o_row = i_m * BM + tl.arange(0, BM)
    o_m = o_row.to(tl.int64)
    o_n = (i_n * BN + tl.arange(0, BN)).to(tl.int64)
    o_k = tl.arange(0, BK).to(tl.int64)
    m_m, m_n = o_row < M, o_n < N
    p_a = a + o_m[:, None] * K + o_k[None, :]
    p_w = w + (o_n[None, :] * K + o_k[:, None] if TRANSPOSED else o_k[:, None] * N + o_n[None, :])
    b_v = tl.zeros([BM, BN], tl.float32)
    for i_k in range(0, K, BK):
        # [BM, BK], [BK, BN]
        if K % BK == 0:
            b_a = tl.load(p_a, mask=m_m[:, None], other=0.0)
            b_w = tl.load(p_w, mask=m_n[None, :], other=0.0)
        else:
            m_k = o_k < K - i_k
            b_a = tl.load(p_a, mask=m_m[:, None] & m_k[None, :], other=0.0)
            b_w = tl.load(p_w, mask=m_n[None, :] & m_k[:, None], other=0.0)
        b_v = dot(b_a, b_w, b_v, "tf32x3")
        p_a += BK
        p_w += BK if TRANSPOSED else BK * N

    # what follows takes more registers than the product: one quarter of the columns after the other
    b_left, b_right = halves(b_v)
    b_0, b_1 = halves(b_left)
    b_2, b_3 = halves(b_right)
    b_quarters = (b_0, b_1, b_2, b_3)
    count = 0
    for i_q in tl.static_range(4):
        # [BN / 4]
        o_n = (i_n * BN + i_q * (BN // 4) + tl.arange(0, BN // 4)).to(tl.int64)
        count += finish(
            b_quarters[i_q], o_row, o_n, added, mask, level, residual, gate, h, out,
            M, R, stride_gate, alpha, offset, N, RECTIFY, zeros is not None,
        )  # fmt: skip
    if zeros is not None:
        tl.store(zeros + i, count)


def matmul(
    a: Tensor, w: Tensor, *, transposed: bool, alpha: float = 1.0, added: Tensor | None = None,
    rectify: bool = False, level: Tensor | None = None, offset: float = 0.0, mask: Tensor | None = None,
    residual: Tensor | None = None, gate: Tensor | None = None, h: Tensor | None = None,
    zeros: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Launch the kernel on `a`, [C, R, K] or [C, K], and return a result with rows like its."""
    depth, width = a.shape[-1], w.shape[0] if transposed else w.shape[1]
    out = torch.empty((*a.shape[:-1], width), dtype=a.dtype, device=a.device)
    if out.numel():
        tile = tiles.choose(a.element_size())
        rows = a.numel() // depth
        with on_device_of(a):
            matmul_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(width, tile.columns),)](
                a, w, added, mask, level, residual, gate, h, out, zeros,
                rows, a.shape[1] if a.ndim == 3 else 1, 0 if gate is None else gate.stride(0), alpha, offset,
                N=width, K=depth, BM=tile.rows, BN=tile.columns, BK=tile.depth,
                TRANSPOSED=transposed, RECTIFY=rectify, num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
    return out


def room_for_zeros(a: Tensor, width: int) -> Tensor:
    """One count for each tile of a result of `width` columns with rows like those of `a`."""
    tile = tiles.choose(a.element_size())
    count = triton.cdiv(a.numel() // a.shape[-1], tile.rows) * triton.cdiv(width, tile.columns)
    return torch.empty(count, dtype=torch.int32, device=a.device)
