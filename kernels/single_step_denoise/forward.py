"""The forward kernel; `triton` launches it.

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

from .._triton import dot, load_wide, store_narrow
from .pieces import mixing, modulate_rows, modulation_rows, noised, product


@triton.jit
def first_layer(
    z, eps, seed, w_in, b_in, h, b_signal, b_noise, o_m, m_m, i_first, width,
    D: tl.constexpr, BD: tl.constexpr, W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Noise the codes, ``h = w_in z_t + b_in``."""
    o_n = tl.arange(0, BN)
    for i_n in tl.range(0, width, BN, disable_licm=True):
        # [BM, BN]
        b_acc = tl.zeros([BM, BN], tl.float32) + tl.load(b_in + i_n + o_n).to(tl.float32)[None, :]
        for i_d in range(0, BD, BE):
            # [BM, BE], [BE, BN]
            o_d = i_d + tl.arange(0, BE)
            b_z = noised(z, eps, seed, b_signal, b_noise, o_m, o_d, i_first, D)
            b_w = tl.load(w_in + (i_n + o_n)[None, :] * BD + o_d[:, None])
            b_acc = dot(b_z.to(w_in.dtype.element_ty), b_w, b_acc)
        store_narrow(h + o_m[:, None] * W + (i_n + o_n)[None, :], b_acc, m_m)


@triton.jit
def last_layer(
    z, eps, seed, w_out, b_out, mean, std, out, y, b_signal, b_noise, o_m, m_m, i_first, width,
    D: tl.constexpr, BD: tl.constexpr, W: tl.constexpr, KIND: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The clean latents of ``w_out y + b_out``; the noised codes are computed again, or drawn."""
    for i_d in range(0, BD, BE):
        # [BM, BE]
        o_d = i_d + tl.arange(0, BE)
        m_d = o_d < D
        b_x = tl.zeros([BM, BE], tl.float32) + tl.load(b_out + o_d).to(tl.float32)[None, :]
        b_x = product(y, w_out, o_m, o_d, b_x, width, W, BK, STAGES)
        if KIND == "v":
            b_z = noised(z, eps, seed, b_signal, b_noise, o_m, o_d, i_first, D)
            b_x = b_signal * b_z - b_noise * b_x
        elif KIND == "eps":
            b_x = (noised(z, eps, seed, b_signal, b_noise, o_m, o_d, i_first, D) - b_noise * b_x) / b_signal
        if std is not None:
            b_x = b_x * load_wide(std + o_d, m_d)[None, :] + load_wide(mean + o_d, m_d)[None, :]
        store_narrow(out + o_m[:, None] * D + o_d[None, :], b_x, m_m & m_d[None, :])


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
    """Clean latents of BM codes. `level` is how far apart in `h` the inputs of two blocks lie, or 0."""
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

    first_layer(
        z, eps, seed, w_in, b_in, h, b_signal, b_noise, o_m, m_m, i_b, width, D, BD, W, BM, BN, BE
    )  # fmt: skip
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
    last_layer(
        z, eps, seed, w_out, b_out, mean, std, out, y, b_signal, b_noise, o_m, m_m, i_b, width,
        D, BD, W, KIND, BM, BK, BE, STAGES,
    )  # fmt: skip
