"""Every tile that we ship compiles, within its budget, for every architecture; no GPU needed."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("triton")

from scdd.kernels import _dispatch
from scdd.kernels._aot import ARCHITECTURES, Build, broken_promises, cost
from scdd.kernels.modulate import tiles

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(_dispatch.INTERPRET, reason="an interpreted kernel has nothing to compile"),
]

# Above this a multiprocessor has room for 16 warps at most, too few to keep its memory busy.
MAX_REGISTERS = 128


def modulate_builds() -> dict[str, Build]:
    """Both kernels of `modulate`: all tiles in their dearest form, and the other forms at a common width.

    The dearest form is gated and sums over rows; without a gate a kernel does part of the same work. The two
    16-bit dtypes differ in one conversion. To build all combinations would take minutes and say nothing new.
    """
    builds = {}
    for tile, size in tiles.every_tile():
        dtype = "bf16" if size == 2 else "fp32"
        builds |= _pair(tile, dtype, tile.width, gated=True, sum_shift=True)
    for dtype, size in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
        builds |= _pair(tiles.choose(512, size), dtype, 512, gated=False, sum_shift=False)
    # a row that does not fill its tile, and is a multiple of 8 elements but not of 16
    builds |= _pair(tiles.choose(1000, 2), "bf16", 1000, gated=True, sum_shift=True)
    return builds


def _pair(tile: tiles.Tile, dtype: str, width: int, *, gated: bool, sum_shift: bool) -> dict[str, Build]:
    """Build the forward and the backward kernel for rows of `width`."""
    from scdd.kernels.modulate import triton as kernels

    label = f"N{width}-{dtype}{'-gated' * gated}{'-rows' * sum_shift}"
    constants = {"N": width, "BC": tile.conditions, "BN": tile.width, "GATED": gated}
    forward = dict.fromkeys(() if gated else ("residual", "gate", "h"))
    backward = dict.fromkeys(() if gated else ("dh", "x", "gate", "dresidual", "dgate"))
    backward |= {} if sum_shift else {"dshift": None}
    # partial sums over the rows are kept in float32
    sums = dict.fromkeys(("dgate", "dshift", "dscale"), "fp32") if sum_shift else {}
    return {
        f"modulate-fwd-{label}": _build(kernels.modulate_fwd_kernel, tile, dtype, {}, constants | forward),
        f"modulate-bwd-{label}": _build(
            kernels.modulate_bwd_kernel, tile, dtype, sums, constants | {"SUM_SHIFT": sum_shift} | backward
        ),
    }


def _build(kernel, tile, dtype, pointees, constants) -> Build:
    """Build `kernel` with pointers to `dtype`, except where `pointees` says otherwise."""
    types = {"C": "i32", "R": "i32", "rows": "i32", "eps": "fp32"}
    types |= dict.fromkeys(("stride_gate", "stride_shift", "stride_scale"), "i32:16")
    pointees = {"mean": "fp32", "rstd": "fp32"} | pointees
    for name in kernel.arg_names:
        types.setdefault(name, f"*{pointees.get(name, dtype)}:16")
    return Build(
        kernel=kernel,
        types=types,
        constants=constants,
        num_warps=tile.num_warps,
        max_registers=MAX_REGISTERS,
        # the backward reads the mean and the reciprocal deviation of each row
        narrow_loads=2 if "dy" in kernel.arg_names else 0,
    )


# An interpreted process skips the whole file, and could not build these.
BUILDS = {} if _dispatch.INTERPRET else modulate_builds()


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda sm: f"sm{sm}")
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
def test_compiles_within_budget(build, architecture):
    found = cost(build, architecture)
    assert not broken_promises(build, architecture, found), found


@pytest.mark.parametrize(
    ("promise", "word"),
    [
        ({"max_registers": 16}, "registers"),
        ({"narrow_loads": -1}, "under 128 bits"),
        ({"num_warps": 4}, "local"),
    ],
)
def test_a_broken_budget_is_reported(promise, word):
    # a row of 16384 elements in 4 warps can not stay in registers
    tile = tiles.Tile(conditions=1, width=16_384, num_warps=4)
    build = _pair(tile, "fp32", tile.width, gated=True, sum_shift=True)
    build = dataclasses.replace(build[f"modulate-bwd-N{tile.width}-fp32-gated-rows"], **promise)
    assert any(word in broken for broken in broken_promises(build, 90, cost(build, 90)))
