"""The kernels, and the functions that launch them.

Each direction needs sums over the tokens of a segment twice before it can write: the norms, then the moments;
backwards the gradient of the moments, then that of the norms. So each kernel is three loops over the tokens.
Where there are segments enough to fill a GPU one program runs all three (`PASS` 0), and keeps the sums in
registers. Where there are not, a segment is cut into slices and the kernel is launched once for each loop: a
program leaves the sums of its slice in memory, and the programs of the next pass add the slices, all in the
same order. No atomics, the same result every time.

Memberships are never stored: every loop has the whole token at hand, and computes them from the norms.

The naming system is described in `scdd.kernels._triton`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import load_wide, on_device_of, store_narrow
from . import tiles


@triton.jit
def _slice(cu_seqlens, N, slices, BN: tl.constexpr, PACKED: tl.constexpr):
    """First token of the segment of this program, and the half-open range of its slice within it."""
    i_s, i_c = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if PACKED:
        start = tl.load(cu_seqlens + i_s).to(tl.int64)
        length = tl.load(cu_seqlens + i_s + 1).to(tl.int64) - start
    else:
        start = i_s * N
        length = tl.cast(N, tl.int64)
    # whole tiles, but for the last
    share = tl.cdiv(tl.cdiv(length, slices), BN) * BN
    return start, i_c * share, tl.minimum((i_c + 1) * share, length)


@triton.jit
def _tokens(x, start, i_n, last, p_c, m_c, D: tl.constexpr, BN: tl.constexpr):
    """Tokens `i_n` and following of a segment, [BN, BH, BP], with their offsets and mask."""
    o_n = i_n + tl.arange(0, BN)
    p = ((start + o_n) * D)[:, None, None] + p_c[None, :, :]
    m = (o_n < last)[:, None, None] & m_c[None, :, :]
    return load_wide(x + p, m), p, m, o_n < last


@triton.jit
def _total(part, slices, p_c, m_c, SIZE: tl.constexpr):
    """Sum over the slices of a segment."""
    i_s = tl.program_id(0).to(tl.int64)
    b_sum = tl.load(part + i_s * slices * SIZE + p_c, mask=m_c, other=0.0)
    for i_c in range(1, slices):
        b_sum += tl.load(part + (i_s * slices + i_c) * SIZE + p_c, mask=m_c, other=0.0)
    return b_sum


@triton.jit
def _store_part(part, b_sum, slices, p_c, m_c, SIZE: tl.constexpr):
    i_s, i_c = tl.program_id(0).to(tl.int64), tl.program_id(1)
    tl.store(part + (i_s * slices + i_c) * SIZE + p_c, b_sum, mask=m_c)


@triton.jit
def _weight(b_square):
    """``1 / max(sqrt(square), 1e-12)^2``."""
    return 1.0 / tl.maximum(b_square, 1e-24)


@triton.jit
def _memberships(b_w, b_weight, b_tau, m_h):
    """Alignment and membership of each token with each head, [BN, BH]."""
    b_alignment = tl.sum(b_w * b_w * b_weight[None, :, :], 2)
    b_logit = tl.where(m_h[None, :], b_alignment * b_tau[None, :], -float("inf"))
    b_exp = tl.exp2((b_logit - tl.max(b_logit, 1)[:, None]) * 1.4426950408889634)
    return b_alignment, b_exp / tl.sum(b_exp, 1)[:, None]


@triton.jit
def _logit_gradient(b_w, b_dout, b_membership, b_gain, b_dnumerator, b_dmass):
    """Gradient of the logits of the memberships, [BN, BH]."""
    b_d = tl.sum(b_w * (b_dnumerator[None, :, :] * b_w - b_gain[None, :, :] * b_dout), 2) + b_dmass[None, :]
    return b_membership * (b_d - tl.sum(b_membership * b_d, 1)[:, None])


@triton.jit
def token_statistics_fwd_kernel(
    w, temperature, cu_seqlens, out, square, moment, mass, part_square, part_numerator, part_mass,
    N, slices,
    H: tl.constexpr, P: tl.constexpr, BN: tl.constexpr, BH: tl.constexpr, BP: tl.constexpr,
    PACKED: tl.constexpr, PASS: tl.constexpr,
):  # fmt: skip
    """Norms (pass 1), moments (pass 2) and output (pass 3) of one slice of a segment, or all (pass 0)."""
    D: tl.constexpr = H * P
    start, first, last = _slice(cu_seqlens, N, slices, BN, PACKED)
    # [BH], [BP], [BH, BP]
    o_h, o_p = tl.arange(0, BH), tl.arange(0, BP)
    m_h = o_h < H
    p_c = o_h[:, None] * P + o_p[None, :]
    m_c = m_h[:, None] & (o_p < P)[None, :]
    b_tau = load_wide(temperature + o_h, m_h)

    if PASS <= 1:
        b_square = tl.zeros([BH, BP], tl.float32)
        for i_n in range(first, last, BN):
            b_w, _, _, _ = _tokens(w, start, i_n, last, p_c, m_c, D, BN)
            b_square += tl.sum(b_w * b_w, 0)
    if PASS == 1:
        _store_part(part_square, b_square, slices, p_c, m_c, D)
    else:
        if PASS >= 2:
            b_square = _total(part_square, slices, p_c, m_c, D)
        b_weight = _weight(b_square)

        if PASS != 3:
            b_numerator = tl.zeros([BH, BP], tl.float32)
            b_mass = tl.zeros([BH], tl.float32)
            for i_n in range(first, last, BN):
                b_w, _, _, m_n = _tokens(w, start, i_n, last, p_c, m_c, D, BN)
                _, b_membership = _memberships(b_w, b_weight, b_tau, m_h)
                # tokens past the end have memberships too
                b_mass += tl.sum(tl.where(m_n[:, None], b_membership, 0.0), 0)
                b_numerator += tl.sum(b_membership[:, :, None] * b_w * b_w, 0)
        if PASS == 2:
            _store_part(part_numerator, b_numerator, slices, p_c, m_c, D)
            _store_part(part_mass, b_mass, slices, o_h, m_h, H)
        else:
            if PASS == 3:
                b_numerator = _total(part_numerator, slices, p_c, m_c, D)
                b_mass = _total(part_mass, slices, o_h, m_h, H)
            b_mass += 1e-8
            b_moment = b_numerator / b_mass[:, None]
            b_gain = 1.0 / (1.0 + b_moment)
            for i_n in range(first, last, BN):
                b_w, p, m, _ = _tokens(w, start, i_n, last, p_c, m_c, D, BN)
                _, b_membership = _memberships(b_w, b_weight, b_tau, m_h)
                store_narrow(out + p, -b_w * b_membership[:, :, None] * b_gain[None, :, :], m)

            # every slice has the same statistics, the first writes them
            i_s, writes = tl.program_id(0).to(tl.int64), tl.program_id(1) == 0
            tl.store(square + i_s * D + p_c, b_square, mask=m_c & writes)
            tl.store(moment + i_s * D + p_c, b_moment, mask=m_c & writes)
            tl.store(mass + i_s * H + o_h, b_mass, mask=m_h & writes)


@triton.jit
def token_statistics_bwd_kernel(
    dout, w, temperature, cu_seqlens, square, moment, mass, dw, part_dmoment, part_dweight, part_dtemperature,
    N, slices,
    H: tl.constexpr, P: tl.constexpr, BN: tl.constexpr, BH: tl.constexpr, BP: tl.constexpr,
    PACKED: tl.constexpr, PASS: tl.constexpr,
):  # fmt: skip
    """Gradient through the moments (pass 1), the norms (pass 2) and the tokens (pass 3), or all (pass 0)."""
    D: tl.constexpr = H * P
    i_s = tl.program_id(0).to(tl.int64)
    start, first, last = _slice(cu_seqlens, N, slices, BN, PACKED)
    # [BH], [BP], [BH, BP]
    o_h, o_p = tl.arange(0, BH), tl.arange(0, BP)
    m_h = o_h < H
    p_c = o_h[:, None] * P + o_p[None, :]
    m_c = m_h[:, None] & (o_p < P)[None, :]
    b_tau = load_wide(temperature + o_h, m_h)
    b_square = tl.load(square + i_s * D + p_c, mask=m_c, other=0.0)
    b_weight = _weight(b_square)

    if PASS <= 1:
        b_dgain = tl.zeros([BH, BP], tl.float32)
        for i_n in range(first, last, BN):
            b_w, p, m, _ = _tokens(w, start, i_n, last, p_c, m_c, D, BN)
            b_dout = load_wide(dout + p, m)
            _, b_membership = _memberships(b_w, b_weight, b_tau, m_h)
            b_dgain += tl.sum(b_dout * b_w * b_membership[:, :, None], 0)
    if PASS == 1:
        _store_part(part_dmoment, b_dgain, slices, p_c, m_c, D)
    else:
        if PASS >= 2:
            b_dgain = _total(part_dmoment, slices, p_c, m_c, D)
        b_moment = tl.load(moment + i_s * D + p_c, mask=m_c, other=0.0)
        b_gain = 1.0 / (1.0 + b_moment)
        b_dnumerator = b_gain * b_gain * b_dgain / tl.load(mass + i_s * H + o_h, mask=m_h, other=1.0)[:, None]
        b_dmass = -tl.sum(b_dnumerator * b_moment, 1)

        if PASS != 3:
            b_dweight = tl.zeros([BH, BP], tl.float32)
            b_dtau = tl.zeros([BH], tl.float32)
            for i_n in range(first, last, BN):
                b_w, p, m, _ = _tokens(w, start, i_n, last, p_c, m_c, D, BN)
                b_alignment, b_membership = _memberships(b_w, b_weight, b_tau, m_h)
                b_dlogit = _logit_gradient(
                    b_w, load_wide(dout + p, m), b_membership, b_gain, b_dnumerator, b_dmass
                )
                b_dtau += tl.sum(b_dlogit * b_alignment, 0)
                b_dweight += tl.sum((b_dlogit * b_tau[None, :])[:, :, None] * b_w * b_w, 0)
            _store_part(part_dtemperature, b_dtau, slices, o_h, m_h, H)
        if PASS == 2:
            _store_part(part_dweight, b_dweight, slices, p_c, m_c, D)
        else:
            if PASS == 3:
                b_dweight = _total(part_dweight, slices, p_c, m_c, D)
            # not weight squared, which overflows
            b_dsquare = tl.where(b_square > 1e-24, -b_weight * (b_weight * b_dweight), 0.0)
            for i_n in range(first, last, BN):
                b_w, p, m, _ = _tokens(w, start, i_n, last, p_c, m_c, D, BN)
                b_dout = load_wide(dout + p, m)
                _, b_membership = _memberships(b_w, b_weight, b_tau, m_h)
                b_dlogit = _logit_gradient(b_w, b_dout, b_membership, b_gain, b_dnumerator, b_dmass)
                b_dw = b_dnumerator[None, :, :] * b_membership[:, :, None] + b_dsquare[None, :, :]
                b_dw += (b_dlogit * b_tau[None, :])[:, :, None] * b_weight[None, :, :]
                b_dw = 2.0 * b_w * b_dw - b_dout * b_membership[:, :, None] * b_gain[None, :, :]
                store_narrow(dw + p, b_dw, m)


def forward(
    w: Tensor, temperature: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward kernel; see `reference.forward`."""
    segments, slices = _cut(w, cu_seqlens)
    heads, channels = w.shape[-2:]
    out = torch.empty_like(w)
    square, moment = (_floats(w, segments, heads, channels) for _ in range(2))
    mass = _floats(w, segments, heads)
    parts = (
        (None, None, None)
        if slices == 1
        else (
            _floats(w, segments, slices, heads, channels),
            _floats(w, segments, slices, heads, channels),
            _floats(w, segments, slices, heads),
        )
    )
    _launch(
        token_statistics_fwd_kernel, w, cu_seqlens, segments, slices,
        (w, temperature, cu_seqlens, out, square, moment, mass, *parts),
    )  # fmt: skip
    return out, square, moment, mass


def backward(
    dout: Tensor, w: Tensor, temperature: Tensor, cu_seqlens: Tensor | None,
    square: Tensor, moment: Tensor, mass: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the backward kernel; see `reference.backward`."""
    segments, slices = _cut(w, cu_seqlens)
    heads, channels = w.shape[-2:]
    dw = torch.empty_like(w)
    dtemperature = _floats(w, segments, slices, heads)
    parts = (
        (None, None)
        if slices == 1
        else tuple(_floats(w, segments, slices, heads, channels) for _ in range(2))
    )
    _launch(
        token_statistics_bwd_kernel, w, cu_seqlens, segments, slices,
        (dout, w, temperature, cu_seqlens, square, moment, mass, dw, *parts, dtemperature),
    )  # fmt: skip
    return dw, dtemperature.sum((0, 1)).to(temperature.dtype)


def _cut(w: Tensor, cu_seqlens: Tensor | None) -> tuple[int, int]:
    """Segments, and slices of each."""
    if cu_seqlens is None:
        return w.shape[0], tiles.slices(w.shape[0], w.shape[0] * w.shape[1])
    return cu_seqlens.shape[0] - 1, tiles.slices(cu_seqlens.shape[0] - 1, w.shape[0])


def _floats(w: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=w.device)


def _launch(
    kernel: triton.JITFunction, w: Tensor, cu_seqlens: Tensor | None, segments: int, slices: int,
    tensors: tuple[Tensor | None, ...],
) -> None:  # fmt: skip
    """Run all passes: in one program each segment, or one launch each where segments are sliced."""
    if not segments:
        return
    heads, channels = w.shape[-2:]
    tile = tiles.choose(heads, channels)
    tokens = w.shape[1] if cu_seqlens is None else 0
    with on_device_of(w):
        for one in (0,) if slices == 1 else (1, 2, 3):
            kernel[segments, slices](
                *tensors, tokens, slices, H=heads, P=channels,
                BN=tile.tokens, BH=tile.heads, BP=tile.channels, PACKED=cu_seqlens is not None, PASS=one,
                num_warps=tile.num_warps,
            )  # fmt: skip
