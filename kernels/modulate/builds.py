"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..aot.build import Build, pointer_types
from . import tiles
from .triton import modulate_bwd_kernel, modulate_fwd_kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

# Above this a multiprocessor has room for 16 warps at most, too few to keep its memory busy.
_MAX_REGISTERS: Final = 128

_SCALARS: Final = (
    {"C": "i32", "R": "i32", "rows": "i32", "eps": "fp32", "mean": "*fp32:16", "rstd": "*fp32:16"}
    | dict.fromkeys(("stride_gate", "stride_shift", "stride_scale"), "i32:16")
)  # fmt: skip


def builds() -> dict[str, Build]:
    """The backward of all tiles in its dearest form, the forward of the widest, other forms at one width.

    The dearest form is gated and sums over rows; without a gate a kernel does part of the same work. Left out
    is the forward of the other tiles, which holds half of what the backward does, and float16, which differs
    from bfloat16 in one conversion. To build all combinations would take minutes and say nothing new.
    """
    found: dict[str, Build] = {}
    for tile, size in tiles.every_tile():
        both = pair(tile, "bf16" if size == 2 else "fp32", tile.width, gated=True, sum_shift=True)
        wide = tile.width == tiles.MAX_WIDTH
        found |= {name: build for name, build in both.items() if wide or name.startswith("bwd")}
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        found |= pair(tiles.choose(512, size), dtype, 512, gated=False, sum_shift=False)
    # a row that does not fill its tile, and is a multiple of 8 elements but not of 16
    return found | pair(tiles.choose(1000, 2), "bf16", 1000, gated=True, sum_shift=True)


def pair(tile: tiles.Tile, dtype: str, width: int, *, gated: bool, sum_shift: bool) -> dict[str, Build]:
    """The forward and the backward kernel for rows of `width`."""
    label = f"N{width}-{dtype}{'-gated' * gated}{'-rows' * sum_shift}"
    constants = {"N": width, "BC": tile.conditions, "BN": tile.width, "GATED": gated}
    forward = dict.fromkeys(() if gated else ("residual", "gate", "h"))
    backward = dict.fromkeys(() if gated else ("dh", "x", "gate", "dresidual", "dgate"))
    backward |= {} if sum_shift else {"dshift": None}
    # partial sums over the rows are kept in float32
    sums = dict.fromkeys(("dgate", "dshift", "dscale"), "*fp32:16") if sum_shift else {}
    return {
        f"fwd-{label}": _build(modulate_fwd_kernel, tile, dtype, {}, constants | forward),
        f"bwd-{label}": _build(
            modulate_bwd_kernel, tile, dtype, sums, constants | {"SUM_SHIFT": sum_shift} | backward
        ),
    }


def _build(
    kernel: Any, tile: tiles.Tile, dtype: str, types: Mapping[str, str], constants: Mapping[str, Any]
) -> Build:
    return Build(
        kernel=kernel,
        types=pointer_types(kernel, dtype, {**_SCALARS, **types}),
        constants=constants,
        num_warps=tile.num_warps,
        max_registers=_MAX_REGISTERS,
        # the backward reads the mean and the reciprocal deviation of each row
        narrow_loads=2 if "dy" in kernel.arg_names else 0,
    )
