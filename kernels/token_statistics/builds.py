"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import Any, Final

from ..aot.build import Build, pointer_types
from . import tiles
from .triton import token_statistics_bwd_kernel, token_statistics_fwd_kernel

# In float32 on Triton 3.6; in 16 bits about 160, three programs of four warps on a multiprocessor.
_MAX_REGISTERS: Final = 224

_STATISTICS: Final = (
    "square", "moment", "mass", "part_square", "part_numerator", "part_mass",
    "part_dmoment", "part_dweight", "part_dtemperature", "temperature",
)  # fmt: skip
_KNOWN: Final = {"N": "i32", "slices": "i32", "cu_seqlens": "*i32:16"} | dict.fromkeys(
    _STATISTICS, "*fp32:16"
)
_PARTS: Final = _STATISTICS[3:8]

# Heads and channels of every size of tile, and the awkward width of 96.
_SHAPES: Final = ((1, 16), (2, 16), (4, 16), (2, 64), (4, 64), (8, 64), (12, 64), (16, 128))


def builds() -> dict[str, Build]:
    """The backward of every tile with all passes in one, its dearest form; both at the published size.

    Left out is the forward of the other tiles, which holds a part of what the backward does.
    """
    found: dict[str, Build] = {}
    for heads, channels in _SHAPES:
        found |= {n: b for n, b in pair(heads, channels, "bf16", one=0).items() if n.startswith("bwd")}
    for one in (0, 1, 2, 3):
        found |= pair(8, 96, "bf16" if one else "fp32", one=one)
    return found


def pair(heads: int, channels: int, dtype: str, *, one: int) -> dict[str, Build]:
    """The forward and the backward kernel of one pass."""
    label = f"H{heads}-P{channels}-{dtype}-pass{one}"
    kernels = {"fwd": token_statistics_fwd_kernel, "bwd": token_statistics_bwd_kernel}
    return {
        f"{name}-{label}": _build(kernel, heads, channels, dtype, one) for name, kernel in kernels.items()
    }


def _build(kernel: Any, heads: int, channels: int, dtype: str, one: int) -> Build:
    tile = tiles.choose(heads, channels)
    absent = {name: None for name in _PARTS if not one and name in kernel.arg_names}
    constants = {"H": heads, "P": channels, "BN": tile.tokens, "BH": tile.heads, "BP": tile.channels}
    return Build(
        kernel=kernel,
        types=pointer_types(kernel, dtype, _KNOWN),
        constants=constants | {"PACKED": True, "PASS": one} | absent,
        num_warps=tile.num_warps,
        max_registers=_MAX_REGISTERS,
        # where the segment begins and ends, the temperatures, and the mass of each head
        narrow_loads=16,
    )
