"""What of these operators is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import Final

from ..aot.build import Build, pointer_types
from . import tiles
from .triton import mass_kernel, rows_kernel

# Eight warps of as many fill a multiprocessor; sm_80 takes 249 for the rows in float32, and does not spill.
_MAX_REGISTERS: Final = 255

_TYPES: Final = (
    dict.fromkeys(("T", "G"), "i32")
    | dict.fromkeys(("stride_q", "stride_k"), "i32:16")
    | dict.fromkeys(("tiles", "segments", "plan_tiles", "queries", "row_of_token", "genes"), "*i32:16")
    | dict.fromkeys(("lse", "mass", "key_weight", "key_bias", "slope", "coordinate"), "*fp32:16")
    | {"scale": "fp32", "sums": "*i64:16", "counts": "*i32:16", "broken": "*i32:16"}
)

# What is one number a row or a key: lse, biases, segments, genes. On sm_100 a thread holds a row of scores
# and reads those of all of its columns, 64 in each of two loops.
_NARROW: Final = 256


def builds() -> dict[str, Build]:
    """Each tile with both biases, at 8 heads; the rows per head at one.

    Left out are the rows of heads of 96 and 128, which pass by in the same steps as those of 64.
    """
    found = {}
    for name, width, size, tile in tiles.every_tile():
        if name == "rows" and width > 64:
            continue
        dtype = "bf16" if size == 2 else "fp32"
        found[f"{name}-D{width}-{dtype}"] = build(name, width, dtype, tile)
    tile = tiles.choose_rows(64, 2)
    return found | {"rows-D64-bf16-per-head": build("rows", 64, "bf16", tile, per_head=True)}


def build(name: str, width: int, dtype: str, tile: tiles.Tile, *, per_head: bool = False) -> Build:
    """One kernel."""
    kernel = mass_kernel if name == "mass" else rows_kernel
    constants = {
        "H": 8, "D": width, "BK": tile.step, "BM": tile.queries, "BN": tile.keys,
        "KEY_BIAS": True, "SLOPE": True,
    }  # fmt: skip
    own = (
        {"SPLIT": 1, "BD": 128 if width == 96 else width}
        if name == "mass"
        else {"PARTS": tiles.KEY_PARTS, "PER_HEAD": per_head}
    )
    return Build(
        kernel=kernel,
        types=pointer_types(kernel, dtype, _TYPES),
        constants=constants | own,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        max_registers=_MAX_REGISTERS,
        narrow_loads=_NARROW,
        tensor_cores=True,
    )
