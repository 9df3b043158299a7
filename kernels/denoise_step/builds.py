"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import Any, Final

from ..aot.build import Build, pointer_types
from . import tiles
from .triton import denoise_step_kernel

# Sixteen programs of four warps on a multiprocessor would have 32; half of them keep its memory busy.
_MAX_REGISTERS: Final = 80

_SCALARS: Final = {
    "B": "i32", "G": "i32:16", "stride": "i32", "guidance": "fp32", "lowest": "fp32", "highest": "fp32",
    "coefficients": "*fp32:16", "seed": "*i64:16",
}  # fmt: skip


def builds() -> dict[str, Build]:
    """Every tile with all that it can be given, and the common samplers at a common size."""
    found: dict[str, Build] = {}
    for tile in tiles.every_tile():
        found |= _build(tile, "bf16", "all")
    common = tiles.choose(2000)
    found |= _build(common, "fp32", "all")
    for dtype in ("bf16", "fp32"):
        found |= _build(common, dtype, "ancestral", unconditional=None, previous=None, estimate=None)
        found |= _build(common, dtype, "multistep", unconditional=None, seed=None)
    return found


def _build(tile: tiles.Tile, dtype: str, label: str, **missing: None) -> dict[str, Build]:
    sizes: dict[str, Any] = {"BB": tile.cells, "BG": tile.genes}
    return {
        f"{label}-{dtype}-{tile.cells}x{tile.genes}": Build(
            kernel=denoise_step_kernel,
            types=pointer_types(denoise_step_kernel, dtype, _SCALARS),
            constants=sizes | missing,
            num_warps=tile.num_warps,
            max_registers=_MAX_REGISTERS,
            # six coefficients of each cell of a thread, and the seed
            narrow_loads=50,
        )
    }
