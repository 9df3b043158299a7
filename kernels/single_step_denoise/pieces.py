"""What the forward and the backward kernel are made of.

Rows and columns that a block holds are given as vectors of offsets; `o_m` counts from the first row of the
program. The naming system is described in `scdd.kernels._triton`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._philox_triton import normal
from .._triton import dot, load_wide, store_narrow


@triton.jit
def mixing(signal, noise, signal_rows, noise_rows, o_m):
    """Signal and noise levels: of each row, [BM, 1], or the same for all."""
    if signal_rows is not None:
        signal = tl.load(signal_rows + o_m).to(tl.float32)[:, None]
        noise = tl.load(noise_rows + o_m).to(tl.float32)[:, None]
    return signal, noise


@triton.jit
def noised(z, eps, seed, signal, noise, o_m, o_d, i_first, D: tl.constexpr):
    """``signal z + noise eps`` at rows `o_m` and columns `o_d`; row 0 is that of code `i_first`."""
    p = o_m[:, None] * D + o_d[None, :]
    m = (o_d < D)[None, :]
    b_z = signal * load_wide(z + p, m)
    if eps is not None:
        b_z += noise * load_wide(eps + p, m)
    if seed is not None:
        b_z += noise * tl.where(m, normal(tl.load(seed), i_first * D + p), 0.0)
    return b_z


@triton.jit
def modulation_rows(condition, o_m, ROW: tl.constexpr):
    """Offset of the modulation of each row of `o_m`; without conditions every row has its own."""
    if condition is not None:
        return tl.load(condition + o_m).to(tl.int64) * ROW
    return o_m.to(tl.int64) * ROW


@triton.jit
def standardised(b_h, m_w, W: tl.constexpr, norm_eps):
    """Rows of `b_h` with mean 0 and variance 1, and the reciprocal deviation."""
    b_mean = tl.sum(b_h, 1) / W
    # the mean is corrected once: a rounding error in it would swamp rows that barely vary
    b_mean += tl.sum(tl.where(m_w, b_h - b_mean[:, None], 0.0), 1) / W
    b_centred = tl.where(m_w, b_h - b_mean[:, None], 0.0)
    b_rstd = tl.rsqrt(tl.sum(b_centred * b_centred, 1) / W + norm_eps)
    return b_centred * b_rstd[:, None], b_rstd


@triton.jit
def modulate_rows(
    h, y, modulation, condition, i_j, rows, norm_eps,
    W: tl.constexpr, BW: tl.constexpr, ROW: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """``y = standardised(h) * (1 + scale) + shift`` of the rows of a program; `i_j` numbers the shift."""
    o_w = tl.arange(0, BW)
    m_w = (o_w < W)[None, :]
    for i_r in tl.range(0, BM, BR, disable_licm=True):
        o_r = i_r + tl.arange(0, BR)
        m = (o_r < rows)[:, None] & m_w
        o_r = tl.minimum(o_r, rows - 1)
        p_row = (modulation_rows(condition, o_r, ROW) + i_j * W)[:, None] + o_w[None, :]
        p_h = o_r[:, None] * W + o_w[None, :]
        # [BR, BW]
        b_normed, _ = standardised(load_wide(h + p_h, m_w), m_w, W, norm_eps)
        b_y = b_normed * (1.0 + load_wide(modulation + p_row + W, m_w)) + load_wide(modulation + p_row, m_w)
        store_narrow(y + p_h, b_y, m)


@triton.jit
def product(x, w, o_m, o_n, b_acc, k, K: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr):
    """``b_acc + x[o_m] @ w[o_n]^T`` for `x` [., K] and `w` [., K]."""
    o_k = tl.arange(0, BK)
    for i_k in tl.range(0, k, BK, num_stages=STAGES):
        b_x = tl.load(x + o_m[:, None] * K + (i_k + o_k)[None, :])
        b_w = tl.load(w + o_n[None, :] * K + (i_k + o_k)[:, None])
        b_acc = dot(b_x, b_w, b_acc)
    return b_acc


@triton.jit
def product_transposed(
    x, w, o_m, o_n, b_acc, k, K: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr
):
    """``b_acc + x[o_m] @ w[:, o_n]`` for `x` [., K] and `w` [K, N]."""
    o_k = tl.arange(0, BK)
    for i_k in tl.range(0, k, BK, num_stages=STAGES):
        b_x = tl.load(x + o_m[:, None] * K + (i_k + o_k)[None, :])
        b_w = tl.load(w + (i_k + o_k)[:, None] * N + o_n[None, :])
        b_acc = dot(b_x, b_w, b_acc)
    return b_acc
