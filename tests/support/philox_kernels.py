"""A kernel that only draws noise; Triton compiles what it can read in a file, so it can not lie in a test."""

from __future__ import annotations

import triton
import triton.language as tl

from scdd.kernels._philox_triton import normal, normal_quads


@triton.jit
def draw_kernel(seed, theirs, one, four, first, ROWS: tl.constexpr):
    """[ROWS, 16] numbers as ``tl.randn`` has them, and of both layouts."""
    i_r = tl.program_id(0).to(tl.int64) * ROWS
    o_r = i_r + tl.arange(0, ROWS)
    b_seed = tl.load(seed)
    # [ROWS, 16]
    p = o_r[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(theirs + p, tl.randn(b_seed, first + p))
    tl.store(one + p, normal(b_seed, first + p))
    # [ROWS, 4]
    o_q = o_r[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(four + p, normal_quads(b_seed, first + o_q, ROWS, 4))
