"""The kernels, and the functions that launch them.

Between them lies the batched factorisation of PyTorch. The first kernel reads the tokens of a segment and
head once, scales each to length one where asked, and leaves the matrix to be factorised; the second takes
the tokens times its inverse, through the scaling.

A matrix is P x P, the Gram matrix of the channels. Where a segment has fewer tokens than that, its other
eigenvalues would be ones beside very large numbers, and the rounding of those would swamp them: there it
holds the Gram matrix of the tokens in its corner, and ones beyond, with the same determinant.

The naming system is described in `scdd.kernels._triton`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import dot, load_wide, on_device_of, store_narrow
from . import reference, tiles


@triton.jit
def _segment(cu_seqlens, i_s, N, PACKED: tl.constexpr):
    """First token and number of tokens of a segment."""
    if PACKED:
        start = tl.load(cu_seqlens + i_s).to(tl.int64)
        return start, tl.load(cu_seqlens + i_s + 1).to(tl.int64) - start
    return i_s * N, tl.cast(N, tl.int64)


@triton.jit
def _scale(b_square):
    """One over the length of tokens from its square; the least length is 1e-12."""
    return tl.rsqrt(tl.maximum(b_square, 1e-24))


@triton.jit
def _tokens(w, start, i_n, length, i_h, H, i_p, P: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr):
    """Tokens `i_n` and channels `i_p` and following of a head, [BN, BP], with their offsets and mask."""
    o_n, o_p = i_n + tl.arange(0, BN), i_p + tl.arange(0, BP)
    p = (((start + o_n) * H + i_h) * P)[:, None] + o_p[None, :]
    m = (o_n < length)[:, None] & (o_p < P)[None, :]
    return tl.load(w + p, mask=m, other=0.0), p, m


@triton.jit
def _matrix(matrix, i_m, i_r, i_c, P: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """Rows `i_r` and columns `i_c` and following of the matrix of a head, [BR, BC] in float32."""
    o_r, o_c = i_r + tl.arange(0, BR), i_c + tl.arange(0, BC)
    p = i_m * P * P + o_r[:, None] * P + o_c[None, :]
    return load_wide(matrix + p, (o_r < P)[:, None] & (o_c < P)[None, :])


@triton.jit
def _gram_of_tokens(
    w, start, length, i_h, H,
    P: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    """Products of up to BP tokens, [BP, BP]."""
    b_gram = tl.zeros([BP, BP], tl.float32)
    b_square = tl.zeros([BP], tl.float32)
    for i_p in range(0, P, BK):
        # [BP, BK]
        b_w, _, _ = _tokens(w, start, 0, length, i_h, H, i_p, P, BP, BK)
        b_gram = dot(b_w, tl.trans(b_w), b_gram)
        b_wide = b_w.to(tl.float32)
        b_square += tl.sum(b_wide * b_wide, 1)
    if NORMALISE:
        b_scale = _scale(b_square)
        b_gram *= b_scale[:, None] * b_scale[None, :]
    return b_gram


@triton.jit
def _gram_of_channels(
    w, start, length, i_h, H,
    P: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    """Products of the channels, [BP, BP]."""
    b_gram = tl.zeros([BP, BP], tl.float32)
    for i_n in range(0, length, BK):
        # [BK, BP]
        b_w, _, _ = _tokens(w, start, i_n, length, i_h, H, 0, P, BK, BP)
        if NORMALISE:
            # in float32, so that their length is one and not the next number of 16 bits
            b_w = b_w.to(tl.float32)
            b_w = b_w * _scale(tl.sum(b_w * b_w, 1))[:, None]
        b_gram = dot(tl.trans(b_w), b_w, b_gram)
    return b_gram


@triton.jit
def subspace_gram_kernel(
    w, cu_seqlens, matrix, N, H, weight,
    P: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr, PACKED: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    """``I + weight / N * gram`` of one head: of its channels, or of its tokens if they are fewer."""
    i_m = tl.program_id(0).to(tl.int64)
    i_s, i_h = i_m // H, i_m % H
    start, length = _segment(cu_seqlens, i_s, N, PACKED)
    # [BP, BP]
    if length < P:
        b_gram = _gram_of_tokens(w, start, length, i_h, H, P, BK, BP, NORMALISE)
    else:
        b_gram = _gram_of_channels(w, start, length, i_h, H, P, BK, BP, NORMALISE)
    b_gram *= weight / tl.maximum(length, 1).to(tl.float32)
    # [BP]
    o_p = tl.arange(0, BP)
    m_p = o_p < P
    b_gram += tl.where(o_p[:, None] == o_p[None, :], 1.0, 0.0)
    p = i_m * P * P + o_p[:, None] * P + o_p[None, :]
    tl.store(matrix + p, b_gram, mask=m_p[:, None] & m_p[None, :])


@triton.jit
def subspace_gram_bwd_kernel(
    drate, w, cu_seqlens, inverse, dw, N, H, slices, weight,
    P: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr,
    PACKED: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    """Gradient of every `slices`-th block of tokens of one head of a segment."""
    i_m, i_c = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_s, i_h = i_m // H, i_m % H
    start, length = _segment(cu_seqlens, i_s, N, PACKED)
    few = length < P
    b_weight = tl.load(drate + i_m) * weight / tl.maximum(length, 1).to(tl.float32)
    for i_n in range(i_c * BN, length, slices * BN):
        # [BN, BP]; the inverse spans many orders of magnitude, so its products are not taken in 16 bits
        b_dw = tl.zeros([BN, BP], tl.float32)
        for i_k in range(0, P, BK):
            # [BN, BK], [BK, BP]
            if few:
                b_a = _matrix(inverse, i_m, i_n, i_k, P, BN, BK)
                b_b = _tokens(w, start, i_k, length, i_h, H, 0, P, BK, BP)[0].to(tl.float32)
                if NORMALISE:
                    b_b *= _scale(tl.sum(b_b * b_b, 1))[:, None]
            else:
                b_a = _tokens(w, start, i_n, length, i_h, H, i_k, P, BN, BK)[0].to(tl.float32)
                b_b = _matrix(inverse, i_m, i_k, 0, P, BK, BP)
            b_dw = dot(b_a, b_b, b_dw)
        b_w, p, m = _tokens(w, start, i_n, length, i_h, H, 0, P, BN, BP)
        b_dw *= b_weight
        if NORMALISE:
            # [BN]
            b_w = b_w.to(tl.float32)
            b_square = tl.sum(b_w * b_w, 1)
            b_scale = _scale(b_square)
            b_w *= b_scale[:, None]
            if not few:
                b_dw *= b_scale[:, None]
            # of a token shorter than the least length the scale is constant
            b_along = tl.where(b_square > 1e-24, tl.sum(b_w * b_dw, 1), 0.0)
            b_dw = (b_dw - b_w * b_along[:, None]) * b_scale[:, None]
        store_narrow(dw + p, b_dw, m)


def forward(w: Tensor, cu_seqlens: Tensor | None, eps: float, normalise: bool) -> tuple[Tensor, Tensor]:
    """Launch the kernel and factorise; see `reference.forward`."""
    segments, tokens = _sizes(w, cu_seqlens)
    heads, channels = w.shape[-2:]
    matrix = torch.empty((segments, heads, channels, channels), dtype=torch.float32, device=w.device)
    tile = tiles.choose(channels)
    if segments:
        with on_device_of(w):
            subspace_gram_kernel[(segments * heads,)](
                w, cu_seqlens, matrix, tokens, heads, channels / eps**2, P=channels,
                BK=tile.block, BP=tile.channels, PACKED=cu_seqlens is not None, NORMALISE=normalise,
                num_warps=tile.num_warps,
            )  # fmt: skip
    return reference.half_log_determinant(matrix)


def backward(
    drate: Tensor, w: Tensor, cu_seqlens: Tensor | None, factor: Tensor, eps: float, normalise: bool
) -> Tensor:
    """Invert and launch the kernel; see `reference.backward`."""
    segments, tokens = _sizes(w, cu_seqlens)
    heads, channels = w.shape[-2:]
    dw = torch.empty_like(w)
    tile = tiles.choose(channels)
    slices = tiles.slices(segments * heads, segments, w.numel() // (heads * channels), tile)
    if segments:
        inverse = reference.inverse_of(factor).contiguous()
        with on_device_of(w):
            subspace_gram_bwd_kernel[segments * heads, slices](
                drate, w, cu_seqlens, inverse, dw, tokens, heads, slices, channels / eps**2, P=channels,
                BN=tile.tokens, BK=tile.gradient_block, BP=tile.channels, PACKED=cu_seqlens is not None,
                NORMALISE=normalise, num_warps=tile.num_warps,
            )  # fmt: skip
    return dw


def _sizes(w: Tensor, cu_seqlens: Tensor | None) -> tuple[int, int]:
    """Segments, and tokens of each where they are alike."""
    return (w.shape[0], w.shape[1]) if cu_seqlens is None else (cu_seqlens.shape[0] - 1, 0)
