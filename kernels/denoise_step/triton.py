"""The kernel, and the function that launches it.

The naming system is described in `scdd.kernels._triton`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._philox_triton import normal_quads
from .._triton import load_wide, on_device_of, store_narrow
from . import tiles


@triton.jit
def denoise_step_kernel(
    x, output, unconditional, previous, coefficients, seed, after, estimate,
    B, G, stride, guidance, lowest, highest,
    BB: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """``x0 = clamp(c[0] x + c[1] output)``, ``after = c[2] x + c[3] x0 + c[4] previous + c[5] eps``."""
    # [BB], [BG]
    o_b = tl.program_id(0).to(tl.int64) * BB + tl.arange(0, BB)
    i_g = tl.program_id(1) * BG
    o_g = i_g + tl.arange(0, BG)
    m_b = o_b < B
    c = coefficients + o_b * stride
    # [BB, BG]
    m = m_b[:, None] & (o_g < G)[None, :]
    p = o_b[:, None] * G + o_g[None, :]
    b_x = load_wide(x + p, m)
    b_said = load_wide(output + p, m)
    if unconditional is not None:
        b_free = load_wide(unconditional + p, m)
        b_said = b_free + guidance * (b_said - b_free)
    b_x0 = load_wide(c, m_b)[:, None] * b_x + load_wide(c + 1, m_b)[:, None] * b_said
    # comparisons, as minimum and maximum would hide NaN
    b_x0 = tl.where(b_x0 < lowest, lowest, b_x0)
    b_x0 = tl.where(b_x0 > highest, highest, b_x0)
    if estimate is not None:
        store_narrow(estimate + p, b_x0, m)
    b_after = load_wide(c + 2, m_b)[:, None] * b_x + load_wide(c + 3, m_b)[:, None] * b_x0
    if previous is not None:
        b_after += load_wide(c + 4, m_b)[:, None] * load_wide(previous + p, m)
    if seed is not None:
        o_q = i_g // 4 + tl.arange(0, BG // 4)
        p_q = o_b[:, None] * ((G + 3) // 4) + o_q[None, :]
        b_eps = normal_quads(tl.load(seed), p_q, BB, BG // 4)
        b_after += load_wide(c + 5, m_b)[:, None] * b_eps
    store_narrow(after + p, b_after, m)


def denoise_step(
    x: Tensor, output: Tensor, coefficients: Tensor, unconditional: Tensor | None, previous: Tensor | None,
    seed: Tensor | None, guidance: float, lowest: float, highest: float, with_estimate: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the kernel; see `reference.denoise_step`."""
    cells, genes = x.shape
    after = torch.empty_like(x)
    estimate = torch.empty_like(x) if with_estimate else None
    if x.numel():
        tile = tiles.choose(genes)
        grid = (triton.cdiv(cells, tile.cells), triton.cdiv(genes, tile.genes))
        stride = coefficients.stride(0) if coefficients.ndim == 2 else 0
        with on_device_of(x):
            denoise_step_kernel[grid](
                x, output, unconditional, previous, coefficients, seed, after, estimate,
                cells, genes, stride, guidance, lowest, highest,
                BB=tile.cells, BG=tile.genes, num_warps=tile.num_warps,
            )  # fmt: skip
    return after, x.new_empty(0) if estimate is None else estimate
