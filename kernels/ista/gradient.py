"""The gradient through a gate and a rectifier, with the sums that the gate and the threshold need.

A program holds a strip of the columns of one cell and steps through its rows, so that the sums stay in
registers: no atomics, the same result every time. Where a cell has many rows they are cut into slices, each
leaves its partial sums in memory, and a second step adds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from .._triton import load_wide, on_device_of, store_narrow
from . import tiles

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def gradient_kernel(
    dout, h, gate, g, dgate, sums, R, rows, stride_gate,
    N: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, ROW_GATE: tl.constexpr, RECTIFIED: tl.constexpr,
):  # fmt: skip
    """``g = gate * dout`` of `rows` rows of one cell, zero where h is if RECTIFIED.

    `dgate` receives the sum of ``dout * h`` over them and `sums` that of g, [slices, C, N]. `gate` and `sums`
    may be None. ROW_GATE: every row has its own gate, and `dgate` is not summed.
    """
    i_c, i_s = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    # [BN]
    o_n = (tl.program_id(2) * BN + tl.arange(0, BN)).to(tl.int64)
    m_n = o_n < N
    if gate is not None and not ROW_GATE:
        b_gate = load_wide(gate + i_c * stride_gate + o_n, m_n)[None, :]
        b_dgate = tl.zeros([BR, BN], tl.float32)
    if sums is not None:
        b_sum = tl.zeros([BR, BN], tl.float32)

    end = tl.minimum((i_s + 1) * rows, R)
    for i_r in range(i_s * rows, end, BR):
        # [BR]
        o_r = i_r + tl.arange(0, BR)
        # [BR, BN]
        m = (o_r < end)[:, None] & m_n[None, :]
        p = (i_c * R + o_r)[:, None] * N + o_n[None, :]
        b_g = load_wide(dout + p, m)
        b_h = load_wide(h + p, m)
        if gate is not None:
            if ROW_GATE:
                store_narrow(dgate + p, b_g * b_h, m)
                b_g *= load_wide(gate + o_r[:, None] * stride_gate + o_n[None, :], m)
            else:
                b_dgate += b_g * b_h
                b_g *= b_gate
        if RECTIFIED:
            b_g = tl.where(b_h <= 0.0, 0.0, b_g)
        if sums is not None:
            b_sum += b_g
        store_narrow(g + p, b_g, m)

    p = (i_s * tl.num_programs(0) + i_c) * N + o_n
    if gate is not None and not ROW_GATE:
        store_narrow(dgate + p, tl.sum(b_dgate, 0), m_n)
    if sums is not None:
        store_narrow(sums + p, tl.sum(b_sum, 0), m_n)


def gated_gradient(
    dout: Tensor, h: Tensor, gate: Tensor | None, *, rectified: bool, need_sum: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`g`, `dgate` (None without a gate) and the sum of `g` over all rows, [N] in float32 (or None)."""
    g = torch.empty_like(dout)
    width = dout.shape[-1]
    row_gate = gate is not None and (dout.ndim == 2 or dout.shape[1] == 1)
    cells, rows = _cells(dout, gate, row_gate)
    strip = tiles.choose_strip(dout.element_size())
    plan = tiles.schedule(cells, rows, width, strip)
    dgate = _partial(plan.slices, gate, row_gate)
    sums = None
    if need_sum:
        sums = torch.empty((plan.slices * cells, width), dtype=torch.float32, device=dout.device)
    if cells:
        with on_device_of(dout):
            gradient_kernel[cells, plan.slices, triton.cdiv(width, strip.columns)](
                dout, h, gate, g, dgate, sums, rows, plan.rows, 0 if gate is None else gate.stride(0),
                N=width, BR=strip.rows, BN=strip.columns, ROW_GATE=row_gate, RECTIFIED=rectified,
                num_warps=strip.num_warps,
            )  # fmt: skip
    if dgate is not None and dgate.ndim == 3:
        dgate = dgate[0] if plan.slices == 1 else dgate.sum(0).to(dout.dtype)
    return g, dgate, None if sums is None else sums.sum(0)


def _cells(dout: Tensor, gate: Tensor | None, row_gate: bool) -> tuple[int, int]:
    """How many cells the kernel sees, and rows of each; without a gate to sum for, all rows are one cell."""
    if gate is None or row_gate:
        return 1, dout.numel() // dout.shape[-1]
    return dout.shape[0], dout.shape[1]


def _partial(slices: int, gate: Tensor | None, row_gate: bool) -> Tensor | None:
    """Room for `dgate`: [C, N], or that of each slice, [slices, C, N], in float32 unless they are final."""
    if gate is None:
        return None
    shape = gate.shape if row_gate else (slices, *gate.shape)
    dtype = gate.dtype if row_gate or slices == 1 else torch.float32
    return torch.empty(shape, dtype=dtype, device=gate.device)
