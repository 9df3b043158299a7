"""The kernels; `triton` launches them.

A program takes a tile of codes through the whole network, all in one launch. Every layer is a plain matrix
product whose left side, at most BM x H numbers, waits in memory of that program alone; it is read back by the
program that wrote it, a moment later and thus from the cache, and so are the weights, which all programs
share. Between a layer and the next the warps of a program must meet: `tl.debug_barrier` is that, and makes
what one has stored visible to the others.

That way no program holds more than a chunk of a layer in registers, whatever the width. To keep the rows
[BM, W] in registers from end to end spills at a width of 128 already: rows, sum of the branch, gain, bias and
gate are five blocks of that size, and each row has its own condition.

The naming system is described in `scdd.kernels._triton`.
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
    """``signal z + noise eps`` at rows `o_m` and columns `o_d`; `i_first` numbers the first row among all codes."""
    p = o_m[:, None] * D + o_d[None, :]
    m = (o_d < D)[None, :]
    b_z = signal * load_wide(z + p, m)
    if eps is not None:
        b_z += noise * load_wide(eps + p, m)
    if seed is not None:
        b_z += noise * tl.where(m, normal(tl.load(seed), i_first * D + p), 0.0)
    return b_z


@triton.jit
def output_gradient(dout, std, o_m, o_d, D: tl.constexpr):
    """Gradient of the latents while they are standardised, at rows `o_m` and columns `o_d`."""
    m = (o_d < D)[None, :]
    b_dx = load_wide(dout + o_m[:, None] * D + o_d[None, :], m)
    if std is not None:
        b_dx *= load_wide(std + o_d, o_d < D)[None, :]
    return b_dx


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


@triton.jit
def denoise_fwd_kernel(
    z, eps, seed, condition, modulation, w_in, b_in, w1, b1, w2, b2, w_out, b_out,
    signal_rows, noise_rows, mean, std, out, h, y, a,
    B, width, hidden, depth, level, signal, noise, norm_eps,
    D: tl.constexpr, BD: tl.constexpr, W: tl.constexpr, BW: tl.constexpr, H: tl.constexpr,
    DEPTH: tl.constexpr, KIND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr, BR: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Clean latents of BM codes. `level` is how far the input of a block lies in `h` from that of the next."""
    ROW: tl.constexpr = (3 * DEPTH + 2) * W
    # all that belongs to the rows of this program begins at the first of them: so offsets fit 32 bits
    i_b = tl.program_id(0).to(tl.int64) * BM
    rows = tl.minimum(B - i_b, BM).to(tl.int32)
    z += i_b * D
    out += i_b * D
    if eps is not None:
        eps += i_b * D
    h += i_b * W
    y += i_b * W
    a += i_b * H
    if condition is not None:
        condition += i_b
    else:
        modulation += i_b * ROW
    if signal_rows is not None:
        signal_rows += i_b
        noise_rows += i_b
    # [BM], rows past the end repeat the last one, and are not stored
    o_m = tl.arange(0, BM)
    m_m = (o_m < rows)[:, None]
    o_m = tl.minimum(o_m, rows - 1)
    o_n = tl.arange(0, BN)
    b_signal, b_noise = mixing(signal, noise, signal_rows, noise_rows, o_m)

    for i_n in tl.range(0, width, BN, disable_licm=True):
        # [BM, BN]
        b_acc = tl.zeros([BM, BN], tl.float32) + tl.load(b_in + i_n + o_n).to(tl.float32)[None, :]
        for i_d in range(0, BD, BE):
            # [BM, BE], [BE, BN]
            o_d = i_d + tl.arange(0, BE)
            b_z = noised(z, eps, seed, b_signal, b_noise, o_m, o_d, i_b, D)
            b_w = tl.load(w_in + (i_n + o_n)[None, :] * BD + o_d[:, None])
            b_acc = dot(b_z.to(w_in.dtype.element_ty), b_w, b_acc)
        store_narrow(h + o_m[:, None] * W + (i_n + o_n)[None, :], b_acc, m_m)
    tl.debug_barrier()

    for i_l in tl.range(0, depth, disable_licm=True):
        modulate_rows(h, y, modulation, condition, 3 * i_l, rows, norm_eps, W, BW, ROW, BM, BR)
        tl.debug_barrier()
        for i_n in tl.range(0, hidden, BN, disable_licm=True):
            b_acc = tl.zeros([BM, BN], tl.float32) + tl.load(b1 + i_l * H + i_n + o_n).to(tl.float32)[None, :]
            b_acc = product(y, w1 + i_l * H * W, o_m, i_n + o_n, b_acc, width, W, BK, STAGES)
            store_narrow(a + o_m[:, None] * H + (i_n + o_n)[None, :], b_acc * tl.sigmoid(b_acc), m_m)
        tl.debug_barrier()
        p_gate = modulation_rows(condition, o_m, ROW) + (3 * i_l + 2) * W
        for i_n in tl.range(0, width, BN, disable_licm=True):
            b_acc = tl.zeros([BM, BN], tl.float32) + tl.load(b2 + i_l * W + i_n + o_n).to(tl.float32)[None, :]
            b_acc = product(a, w2 + i_l * W * H, o_m, i_n + o_n, b_acc, hidden, H, BK, STAGES)
            p_h = o_m[:, None] * W + (i_n + o_n)[None, :]
            b_acc *= tl.load(modulation + p_gate[:, None] + (i_n + o_n)[None, :]).to(tl.float32)
            b_acc += tl.load(h + p_h).to(tl.float32)
            store_narrow(h + level + p_h, b_acc, m_m)
        h += level
        tl.debug_barrier()

    modulate_rows(h, y, modulation, condition, 3 * DEPTH, rows, norm_eps, W, BW, ROW, BM, BR)
    tl.debug_barrier()
    for i_d in range(0, BD, BE):
        # [BM, BE]
        o_d = i_d + tl.arange(0, BE)
        m_d = o_d < D
        b_x = tl.zeros([BM, BE], tl.float32) + tl.load(b_out + o_d).to(tl.float32)[None, :]
        b_x = product(y, w_out, o_m, o_d, b_x, width, W, BK, STAGES)
        if KIND == "v":
            b_z = noised(z, eps, seed, b_signal, b_noise, o_m, o_d, i_b, D)
            b_x = b_signal * b_z - b_noise * b_x
        elif KIND == "eps":
            b_x = (noised(z, eps, seed, b_signal, b_noise, o_m, o_d, i_b, D) - b_noise * b_x) / b_signal
        if std is not None:
            b_x = b_x * load_wide(std + o_d, m_d)[None, :] + load_wide(mean + o_d, m_d)[None, :]
        store_narrow(out + o_m[:, None] * D + o_d[None, :], b_x, m_m & m_d[None, :])


@triton.jit
def modulate_rows_bwd(
    dy, dh, h, y, du, level, modulation, condition, i_l, rows, norm_eps, first, LAST: tl.constexpr,
    W: tl.constexpr, BW: tl.constexpr, ROW: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Add what the norm behind block `i_l` hands back to `dh`; prepare the block: its input, and its gradient."""
    o_w = tl.arange(0, BW)
    m_w = (o_w < W)[None, :]
    for i_r in tl.range(0, BM, BR, disable_licm=True):
        o_r = i_r + tl.arange(0, BR)
        m = (o_r < rows)[:, None] & m_w
        o_r = tl.minimum(o_r, rows - 1)
        p_row = (modulation_rows(condition, o_r, ROW) + 3 * i_l * W)[:, None] + o_w[None, :]
        p_h = o_r[:, None] * W + o_w[None, :]
        # [BR, BW]; the norm behind block i_l has the modulation that comes after the three rows of the block
        b_normed, b_rstd = standardised(load_wide(h + level + p_h, m_w), m_w, W, norm_eps)
        b_dnormed = load_wide(dy + p_h, m_w) * (1.0 + load_wide(modulation + p_row + 4 * W, m_w))
        b_along = tl.sum(b_dnormed * b_normed, 1) / W
        b_level = tl.sum(b_dnormed, 1) / W
        b_dh = (b_dnormed - b_level[:, None] - b_normed * b_along[:, None]) * b_rstd[:, None]
        # the first has nothing to add to, and must not read what is not yet written
        b_dh += load_wide(dh + p_h, m_w & (not first))
        tl.store(dh + p_h, b_dh, mask=m)
        if not LAST:
            b_normed, _ = standardised(load_wide(h + p_h, m_w), m_w, W, norm_eps)
            b_gain = 1.0 + load_wide(modulation + p_row + W, m_w)
            store_narrow(y + p_h, b_normed * b_gain + load_wide(modulation + p_row, m_w), m)
            store_narrow(du + p_h, b_dh * load_wide(modulation + p_row + 2 * W, m_w), m)


@triton.jit
def denoise_bwd_kernel(
    dout, condition, modulation, w_in, w1, b1, w2, w_out, signal_rows, noise_rows, std, dz,
    h, y, du, dy, da, dh,
    B, width, hidden, depth, level, signal, noise, norm_eps,
    D: tl.constexpr, BD: tl.constexpr, W: tl.constexpr, BW: tl.constexpr, H: tl.constexpr,
    DEPTH: tl.constexpr, KIND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr, BR: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Gradient of BM codes; the hidden activations are computed again from `h` [DEPTH + 1, B, W]."""
    ROW: tl.constexpr = (3 * DEPTH + 2) * W
    dtype = w1.dtype.element_ty
    # all that belongs to the rows of this program begins at the first of them: so offsets fit 32 bits
    i_b = tl.program_id(0).to(tl.int64) * BM
    rows = tl.minimum(B - i_b, BM).to(tl.int32)
    dout += i_b * D
    dz += i_b * D
    h += i_b * W
    y += i_b * W
    du += i_b * W
    dy += i_b * W
    dh += i_b * W
    da += i_b * H
    if condition is not None:
        condition += i_b
    else:
        modulation += i_b * ROW
    if signal_rows is not None:
        signal_rows += i_b
        noise_rows += i_b
    # [BM], rows past the end repeat the last one, and are not stored
    o_m = tl.arange(0, BM)
    m_m = (o_m < rows)[:, None]
    o_m = tl.minimum(o_m, rows - 1)
    o_n, o_k = tl.arange(0, BN), tl.arange(0, BK)
    b_signal, b_noise = mixing(signal, noise, signal_rows, noise_rows, o_m)

    for i_n in tl.range(0, width, BN, disable_licm=True):
        # [BM, BN]
        b_acc = tl.zeros([BM, BN], tl.float32)
        for i_d in range(0, BD, BE):
            # [BM, BE], [BE, BN]
            o_d = i_d + tl.arange(0, BE)
            b_do = output_gradient(dout, std, o_m, o_d, D)
            if KIND == "v":
                b_do *= -b_noise
            elif KIND == "eps":
                b_do *= -b_noise / b_signal
            b_w = tl.load(w_out + o_d[:, None] * W + (i_n + o_n)[None, :])
            b_acc = dot(b_do.to(dtype), b_w, b_acc)
        store_narrow(dy + o_m[:, None] * W + (i_n + o_n)[None, :], b_acc, m_m)
    tl.debug_barrier()

    h += (DEPTH - 1) * level
    for i in tl.range(0, depth, disable_licm=True):
        i_l = DEPTH - 1 - i
        modulate_rows_bwd(
            dy, dh, h, y, du, level, modulation, condition, i_l, rows, norm_eps, i == 0, False,
            W, BW, ROW, BM, BR,
        )  # fmt: skip
        tl.debug_barrier()
        for i_n in tl.range(0, hidden, BN, disable_licm=True):
            b_a = tl.zeros([BM, BN], tl.float32) + tl.load(b1 + i_l * H + i_n + o_n).to(tl.float32)[None, :]
            b_a = product(y, w1 + i_l * H * W, o_m, i_n + o_n, b_a, width, W, BK, STAGES)
            b_da = tl.zeros([BM, BN], tl.float32)
            b_da = product_transposed(du, w2 + i_l * W * H, o_m, i_n + o_n, b_da, width, W, H, BK, STAGES)
            b_sigmoid = tl.sigmoid(b_a)
            b_da *= b_sigmoid * (1.0 + b_a * (1.0 - b_sigmoid))
            store_narrow(da + o_m[:, None] * H + (i_n + o_n)[None, :], b_da, m_m)
        tl.debug_barrier()
        for i_n in tl.range(0, width, BN, disable_licm=True):
            b_acc = tl.zeros([BM, BN], tl.float32)
            b_acc = product_transposed(da, w1 + i_l * H * W, o_m, i_n + o_n, b_acc, hidden, H, W, BK, STAGES)
            store_narrow(dy + o_m[:, None] * W + (i_n + o_n)[None, :], b_acc, m_m)
        h -= level
        tl.debug_barrier()

    modulate_rows_bwd(
        dy, dh, h, y, du, level, modulation, condition, -1, rows, norm_eps, DEPTH == 0, True,
        W, BW, ROW, BM, BR,
    )  # fmt: skip
    tl.debug_barrier()
    for i_d in range(0, BD, BE):
        # [BM, BE]
        o_d = i_d + tl.arange(0, BE)
        b_dz = tl.zeros([BM, BE], tl.float32)
        for i_k in range(0, width, BK):
            b_dh = tl.load(dh + o_m[:, None] * W + (i_k + o_k)[None, :]).to(dtype)
            b_dz = dot(b_dh, tl.load(w_in + (i_k + o_k)[:, None] * BD + o_d[None, :]), b_dz)
        if KIND == "v":
            b_dz += b_signal * output_gradient(dout, std, o_m, o_d, D)
        elif KIND == "eps":
            b_dz += output_gradient(dout, std, o_m, o_d, D) / b_signal
        store_narrow(dz + o_m[:, None] * D + o_d[None, :], b_signal * b_dz, m_m & (o_d < D)[None, :])
