"""The kernels, and the functions that launch them.

A program holds one row of several conditions at a time, [BC, BN], and steps through the rows of those
conditions. So the gain and bias are read once a program, and the sums over rows that the gradients of
`shift`, `scale` and `gate` need stay in registers: no atomics, the same result every time. Where a condition
has many rows they are cut into slices, each leaves its partial sums in memory, and a second step adds them.

The naming system is described in `scdd.kernels._triton`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import load_wide, on_device_of, store_narrow
from . import tiles

# Partial sums cost a write and a read of a float32 row each; over this many rows that is small.
_LEAST_ROWS_PER_PARTIAL_SUM = 16


@triton.jit
def modulate_fwd_kernel(
    x, residual, gate, shift, scale, y, h, mean, rstd,
    C, R, rows, stride_gate, stride_shift, stride_scale, eps,
    N: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """``y = layer_norm(h) * (1 + scale) + shift`` of `rows` rows, where h is x or ``residual + gate * x``."""
    i_c, i_s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    # [BC], [BN]
    o_c = i_c * BC + tl.arange(0, BC)
    o_n = tl.arange(0, BN)
    m_c = o_c < C
    # [BC, BN]
    m = m_c[:, None] & (o_n < N)[None, :]
    b_gain = 1.0 + load_wide(scale + o_c[:, None] * stride_scale + o_n[None, :], m)
    b_shift = load_wide(shift + o_c[:, None] * stride_shift + o_n[None, :], m)
    if GATED:
        b_gate = load_wide(gate + o_c[:, None] * stride_gate + o_n[None, :], m)

    for i_r in range(i_s * rows, tl.minimum((i_s + 1) * rows, R)):
        o_r = o_c * R + i_r
        p = o_r[:, None] * N + o_n[None, :]
        b_h = load_wide(x + p, m)
        if GATED:
            b_h = b_gate * b_h + load_wide(residual + p, m)
            # the backward reads the rounded h, so its statistics must be those of the rounded h
            b_h = b_h.to(h.dtype.element_ty)
            tl.store(h + p, b_h, mask=m)
            b_h = b_h.to(tl.float32)
        # [BC]; the mean is corrected once: a rounding error in it would swamp rows that barely vary
        b_mean = tl.sum(b_h, 1) / N
        b_mean += tl.sum(tl.where(m, b_h - b_mean[:, None], 0.0), 1) / N
        # [BC, BN]
        b_centred = tl.where(m, b_h - b_mean[:, None], 0.0)
        b_rstd = tl.rsqrt(tl.sum(b_centred * b_centred, 1) / N + eps)
        b_y = b_centred * b_rstd[:, None] * b_gain + b_shift
        store_narrow(y + p, b_y, m)
        tl.store(mean + o_r, b_mean, mask=m_c)
        tl.store(rstd + o_r, b_rstd, mask=m_c)


@triton.jit
def modulate_bwd_kernel(
    dy, dh, x, h, gate, scale, mean, rstd, dx, dresidual, dgate, dshift, dscale,
    C, R, rows, stride_gate, stride_scale,
    N: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr, GATED: tl.constexpr, SUM_SHIFT: tl.constexpr,
):  # fmt: skip
    """Gradients of `rows` rows, and the sums over them for `dgate`, `dshift`, `dscale` ([slices, C, N])."""
    i_c, i_s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    # [BC], [BN]
    o_c = i_c * BC + tl.arange(0, BC)
    o_n = tl.arange(0, BN)
    m_c = o_c < C
    # [BC, BN]
    m = m_c[:, None] & (o_n < N)[None, :]
    b_gain = 1.0 + load_wide(scale + o_c[:, None] * stride_scale + o_n[None, :], m)
    b_dscale = tl.zeros([BC, BN], tl.float32)
    if SUM_SHIFT:
        b_dshift = tl.zeros([BC, BN], tl.float32)
    if GATED:
        b_gate = load_wide(gate + o_c[:, None] * stride_gate + o_n[None, :], m)
        b_dgate = tl.zeros([BC, BN], tl.float32)

    for i_r in range(i_s * rows, tl.minimum((i_s + 1) * rows, R)):
        o_r = o_c * R + i_r
        p = o_r[:, None] * N + o_n[None, :]
        # [BC]
        b_mean = tl.load(mean + o_r, mask=m_c, other=0.0)
        b_rstd = tl.load(rstd + o_r, mask=m_c, other=0.0)
        # [BC, BN]
        b_dy = load_wide(dy + p, m)
        b_h = load_wide(h + p, m)
        # outside the mask this is not zero, but b_dy is
        b_normed = (b_h - b_mean[:, None]) * b_rstd[:, None]
        b_dscale += b_dy * b_normed
        if SUM_SHIFT:
            b_dshift += b_dy
        b_dnormed = b_dy * b_gain
        b_along = tl.sum(b_dnormed * b_normed, 1) / N
        b_level = tl.sum(b_dnormed, 1) / N
        b_dh = (b_dnormed - b_level[:, None] - b_normed * b_along[:, None]) * b_rstd[:, None]
        if GATED:
            b_dh += load_wide(dh + p, m)
            store_narrow(dresidual + p, b_dh, m)
            b_dgate += b_dh * load_wide(x + p, m)
            b_dh *= b_gate
        store_narrow(dx + p, b_dh, m)

    p = (i_s.to(tl.int64) * C + o_c)[:, None] * N + o_n[None, :]
    store_narrow(dscale + p, b_dscale, m)
    if SUM_SHIFT:
        store_narrow(dshift + p, b_dshift, m)
    if GATED:
        store_narrow(dgate + p, b_dgate, m)


def modulate_forward(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward kernel; see `reference.modulate_forward`."""
    y, _, mean, rstd = _forward(x, None, None, shift, scale, eps)
    return y, mean, rstd


def gated_residual_modulate_forward(
    x: Tensor, residual: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward kernel; see `reference.gated_residual_modulate_forward`."""
    y, h, mean, rstd = _forward(x, residual, gate, shift, scale, eps)
    assert h is not None
    return y, h, mean, rstd


def modulate_backward(
    dy: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernel; see `reference.modulate_backward`."""
    dx, _, _, dshift, dscale = _backward(dy, None, None, x, None, scale, mean, rstd)
    return dx, dshift, dscale


def gated_residual_modulate_backward(
    dy: Tensor, dh: Tensor, x: Tensor, h: Tensor, gate: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, ...]:
    """Launch the backward kernel; see `reference.gated_residual_modulate_backward`."""
    return _backward(dy, dh, x, h, gate, scale, mean, rstd)


def _forward(
    x: Tensor, residual: Tensor | None, gate: Tensor | None, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    conditions, rows, width = _sizes(x)
    y = torch.empty_like(x)
    h = torch.empty_like(x) if gate is not None else None
    mean = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if x.numel():
        tile = tiles.choose(width, x.element_size())
        plan = tiles.schedule(conditions, rows, tile)
        with on_device_of(x):
            modulate_fwd_kernel[triton.cdiv(conditions, tile.conditions), plan.slices](
                x, residual, gate, shift, scale, y, h, mean, rstd,
                conditions, rows, plan.rows, _stride(gate), shift.stride(0), scale.stride(0), eps,
                N=width, BC=tile.conditions, BN=tile.width, GATED=gate is not None, num_warps=tile.num_warps,
            )  # fmt: skip
    return y, h, mean, rstd


def _backward(
    dy: Tensor, dh: Tensor | None, x: Tensor | None, h: Tensor, gate: Tensor | None,
    scale: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Any, ...]:  # fmt: skip
    conditions, rows, width = _sizes(h)
    tile = tiles.choose(width, h.element_size())
    plan = tiles.schedule(conditions, rows, tile, least_rows=_LEAST_ROWS_PER_PARTIAL_SUM)
    dx = torch.empty_like(h)
    dresidual = torch.empty_like(h) if gate is not None else None
    dgate = _partial_sums(scale, plan.slices) if gate is not None else None
    dshift = _partial_sums(scale, plan.slices) if h.ndim == 3 else None
    dscale = _partial_sums(scale, plan.slices)
    if conditions:
        with on_device_of(h):
            modulate_bwd_kernel[triton.cdiv(conditions, tile.conditions), plan.slices](
                dy, dh, x, h, gate, scale, mean, rstd, dx, dresidual, dgate, dshift, dscale,
                conditions, rows, plan.rows, _stride(gate), scale.stride(0),
                N=width, BC=tile.conditions, BN=tile.width, GATED=gate is not None, SUM_SHIFT=h.ndim == 3,
                num_warps=tile.num_warps,
            )  # fmt: skip
    sums = (_total(partial, scale) for partial in (dgate, dshift, dscale))
    return dx, dresidual, *sums


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Conditions, rows of each and width."""
    return x.shape[0], x.shape[1] if x.ndim == 3 else 1, x.shape[-1]


def _stride(gate: Tensor | None) -> int:
    return 0 if gate is None else gate.stride(0)


def _partial_sums(like: Tensor, slices: int) -> Tensor:
    """Room for the sums of each slice: [slices, C, N], in float32 unless they are final."""
    dtype = like.dtype if slices == 1 else torch.float32
    return torch.empty((slices, *like.shape), dtype=dtype, device=like.device)


def _total(partial: Tensor | None, like: Tensor) -> Tensor:
    """Add the slices, [C, N]; empty where there is nothing to sum."""
    if partial is None:
        return torch.empty(0, dtype=like.dtype, device=like.device)
    return partial[0] if len(partial) == 1 else partial.sum(0).to(like.dtype)
