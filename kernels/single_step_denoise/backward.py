"""The backward kernel, of the codes alone; `triton` launches it.

It goes through the layers as the forward does, from the last to the first. A block takes three products: the
hidden layer once more, its gradient, and that of the block's input; weights are read as they lie, transposed
by the order in which a product walks them.

The naming system is described in `scdd.kernels._triton`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton import dot, load_wide, store_narrow
from .pieces import mixing, modulation_rows, product, product_transposed, standardised


@triton.jit
def output_gradient(dout, std, o_m, o_d, D: tl.constexpr):
    """Gradient of the latents while they are standardised, at rows `o_m` and columns `o_d`."""
    m = (o_d < D)[None, :]
    b_dx = load_wide(dout + o_m[:, None] * D + o_d[None, :], m)
    if std is not None:
        b_dx *= load_wide(std + o_d, o_d < D)[None, :]
    return b_dx


@triton.jit
def last_layer_bwd(
    dout, std, w_out, dy, b_signal, b_noise, o_m, m_m, width,
    D: tl.constexpr, BD: tl.constexpr, W: tl.constexpr, KIND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """``dy = (gradient of what the network says) w_out``."""
    o_n = tl.arange(0, BN)
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
            b_acc = dot(b_do.to(w_out.dtype.element_ty), b_w, b_acc)
        store_narrow(dy + o_m[:, None] * W + (i_n + o_n)[None, :], b_acc, m_m)


@triton.jit
def first_layer_bwd(
    dout, std, w_in, dz, dh, b_signal, o_m, m_m, width,
    D: tl.constexpr, BD: tl.constexpr, W: tl.constexpr, KIND: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """``dz = signal (dh w_in + what reaches the noised codes past the network)``."""
    o_k = tl.arange(0, BK)
    for i_d in range(0, BD, BE):
        # [BM, BE]
        o_d = i_d + tl.arange(0, BE)
        b_dz = tl.zeros([BM, BE], tl.float32)
        for i_k in range(0, width, BK):
            b_dh = tl.load(dh + o_m[:, None] * W + (i_k + o_k)[None, :]).to(w_in.dtype.element_ty)
            b_dz = dot(b_dh, tl.load(w_in + (i_k + o_k)[:, None] * BD + o_d[None, :]), b_dz)
        if KIND == "v":
            b_dz += b_signal * output_gradient(dout, std, o_m, o_d, D)
        elif KIND == "eps":
            b_dz += output_gradient(dout, std, o_m, o_d, D) / b_signal
        store_narrow(dz + o_m[:, None] * D + o_d[None, :], b_signal * b_dz, m_m & (o_d < D)[None, :])


@triton.jit
def modulate_rows_bwd(
    dy, dh, h, y, du, level, modulation, condition, i_l, rows, norm_eps, first, LAST: tl.constexpr,
    W: tl.constexpr, BW: tl.constexpr, ROW: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Add to `dh` what the norm behind block `i_l` hands back; then prepare the block.

    That is its input `y`, and the gradient `du` of its result. No block lies before the first norm (`LAST`).
    """
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
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr,
    BR: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradient of BM codes; the hidden activations are computed again from `h` [DEPTH + 1, B, W]."""
    ROW: tl.constexpr = (3 * DEPTH + 2) * W
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
    o_n = tl.arange(0, BN)
    b_signal, b_noise = mixing(signal, noise, signal_rows, noise_rows, o_m)

    last_layer_bwd(
        dout, std, w_out, dy, b_signal, b_noise, o_m, m_m, width, D, BD, W, KIND, BM, BN, BE
    )  # fmt: skip
    tl.debug_barrier()

    # in 64 bits: the argument has 32 where one level fits them
    h += tl.cast(level, tl.int64) * (DEPTH - 1)
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
        dy, dh, h, y, du, level, modulation, condition, -1, rows, norm_eps, False, True,
        W, BW, ROW, BM, BR,
    )  # fmt: skip
    tl.debug_barrier()
    first_layer_bwd(
        dout, std, w_in, dz, dh, b_signal, o_m, m_m, width, D, BD, W, KIND, BM, BK, BE
    )  # fmt: skip
