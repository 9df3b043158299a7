"""Normal noise inside kernels: the numbers of `scdd.kernels._philox`, up to rounding.

These are the numbers of `tl.randn` and `tl.randn4x` as well, but not their code: a uniform number names its
quadrant exactly, so a short polynomial gives sine and cosine at once, where the functions of the mathematics
library are ready for any angle and keep local memory for the largest. Compiled for sm_90, a number takes
about 175 instructions by ``tl.randn``, 107 by `normal` and 50 by `normal_quads`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def normal_pair(u1, u2):
    """Two independent normal blocks of two uniform ones, by Box and Muller."""
    radius = tl.sqrt(-2.0 * tl.log(tl.maximum(u1, 1.0e-7)))
    # the angle is (quadrant + part) * pi / 2 with |part| <= 1/2; the difference is exact
    quadrant = tl.floor(4.0 * u2 + 0.5)
    z = (4.0 * u2 - quadrant) * 1.5707963267948966
    z2 = z * z
    sine = z + z * z2 * (-1.6666654611e-1 + z2 * (8.3321608736e-3 - z2 * 1.9515295891e-4))
    cosine = 4.166664568298827e-2 + z2 * (-1.388731625493765e-3 + z2 * 2.443315711809948e-5)
    cosine = 1.0 - 0.5 * z2 + z2 * z2 * cosine
    quadrant = quadrant.to(tl.int32)
    odd = (quadrant & 1) == 1
    across = tl.where(odd, sine, cosine)
    up = tl.where(odd, cosine, sine)
    # quadrants 1 and 2 lie left of the axis, 2 and 3 below it
    across = tl.where(((quadrant + 1) & 2) == 2, -across, across)
    up = tl.where((quadrant & 2) == 2, -up, up)
    return radius * across, radius * up


@triton.jit
def normal(seed, counter):
    """One normal number a counter: `philox_normal`."""
    i1, i2, _, _ = tl.randint4x(seed, counter)
    n1, _ = normal_pair(tl.uint_to_uniform_float(i1), tl.uint_to_uniform_float(i2))
    return n1


@triton.jit
def normal4(seed, counter):
    """Four blocks of normal numbers, one of each counter in each."""
    i1, i2, i3, i4 = tl.randint4x(seed, counter)
    n1, n2 = normal_pair(tl.uint_to_uniform_float(i1), tl.uint_to_uniform_float(i2))
    n3, n4 = normal_pair(tl.uint_to_uniform_float(i3), tl.uint_to_uniform_float(i4))
    return n1, n2, n3, n4


@triton.jit
def normal_quads(seed, counter, ROWS: tl.constexpr, QUADS: tl.constexpr):
    """The four numbers of each counter side by side: counters [ROWS, QUADS] give [ROWS, 4 * QUADS]."""
    n1, n2, n3, n4 = normal4(seed, counter)
    # [ROWS, QUADS, 2, 2], the last two dimensions counting 1, 2, 3, 4
    joined = tl.join(tl.join(n1, n3), tl.join(n2, n4))
    return tl.reshape(joined, [ROWS, 4 * QUADS])
