"""What of these operators is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..aot.build import Build, pointer_types
from . import tiles
from .triton import lengths_kernel, pair_matrix_kernel, pair_sums_kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

# Eight warps of as many fill a multiprocessor. On sm_100 a thread holds half a row of a tile, and the
# compiler takes what there is without spilling.
_MAX_REGISTERS: Final = 255

_TYPES: Final = dict.fromkeys(("n", "N", "G", "stride", "first", "last"), "i32") | {
    "G": "i32:16",
    "stride": "i32:16",
} | dict.fromkeys(("tiles_x", "tiles", "height", "width", "rows_of_tiles"), "i32") | dict.fromkeys(
    ("lengths", "weights", "rates", "factors", "sums"), "*fp32:16"
)  # fmt: skip


def builds() -> dict[str, Build]:
    """Every tile with five doubled bandwidths and weights, the dearest form; the others for one dtype.

    Left out is float16, which differs from bfloat16 in one conversion, and the most bandwidths in float32,
    whose tile is a quarter of the size.
    """
    found = {}
    for tile, size in tiles.every_tile():
        dtype = "bf16" if size == 2 else "fp32"
        found[f"lengths-{dtype}"] = _build(lengths_kernel, tile, dtype, {})
        found |= pair(tile, dtype, bandwidths=5, doubling=True, weighted=True)
        found |= pair(tile, dtype, bandwidths=1, distance=True)
    return found | pair(tiles.choose(2), "bf16", bandwidths=16)


def pair(
    tile: tiles.Tile, dtype: str, *, bandwidths: int, doubling: bool = False, distance: bool = False,
    weighted: bool = False,
) -> dict[str, Build]:  # fmt: skip
    """The sums of a tile, and the tile itself for the gradient."""
    form = "distance" if distance else f"{'doubling' if doubling else 'gaussian'}{bandwidths}"
    label = f"B{tile.block}x{tile.depth}-{dtype}-{form}"
    constants: dict[str, Any] = {"K": bandwidths, "DOUBLING": doubling, "DISTANCE": distance}
    sums = {"GROUP": tiles.GROUP, "WEIGHTED": weighted} | ({} if weighted else {"weights": None})
    return {
        f"sums-{label}{'-weighted' * weighted}": _build(pair_sums_kernel, tile, dtype, constants | sums),
        f"matrix-{label}": _build(pair_matrix_kernel, tile, dtype, constants | {"RECIPROCAL": True}),
    }


def _build(kernel: Any, tile: tiles.Tile, dtype: str, constants: Mapping[str, Any]) -> Build:
    matrix = "bf16" if dtype == "bf16" else "fp32"
    return Build(
        kernel=kernel,
        types=pointer_types(kernel, dtype, _TYPES | {"matrix": f"*{matrix}:16"}),
        constants={**constants, "B": tile.block, "BG": tile.depth},
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        max_registers=_MAX_REGISTERS,
        narrow_loads=_narrow_loads(kernel, constants),
        tensor_cores=True,
    )


def _narrow_loads(kernel: Any, constants: Mapping[str, Any]) -> int:
    """Lengths and weights of the rows of a tile, one number at a time, and a number or two a bandwidth."""
    if kernel is lengths_kernel:
        return 10
    return 80 + 2 * constants["K"] + 64 * constants.get("WEIGHTED", False)
