"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..aot.build import Build, pointer_types
from . import reference, tiles
from .encode import values_bwd_kernel
from .scatter import sum_by_gene_kernel
from .triton import embed_bwd_kernel, embed_fwd_kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_REGISTERS: Final = 240
_MAX_SUM_REGISTERS: Final = 128

_TYPES: Final = (
    {"genes": "*i32:16", "streams": "*i32:16", "order": "*i64:16", "starts": "*i64:16", "eps": "fp32"}
    | dict.fromkeys(("T", "G", "P", "steps"), "i32")
    | dict.fromkeys(("values", "dvalues", "mean", "rstd", "dweight", "dbias", "dmixing"), "*fp32:16")
)

# Ids, values, streams and statistics are one number a token; a table that has not a multiple of eight columns
# is read in pieces, and so are the scores of a bin.
_NARROW: Final = 64


def builds() -> dict[str, Build]:
    """Each tile in its dearest form, at the width of the issue in each of the others."""
    found = {}
    for tile, size in tiles.every_tile():
        dtype = "bf16" if size == 2 else "fp32"
        width = tile.columns if tile.columns < 128 else 512
        found |= pair(tile, dtype, width, reference.SOFT_BINS, bins=100)
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        tile = tiles.choose(512, size)
        found |= pair(tile, dtype, 512, reference.MIXED_BINS, bins=100)
        found[f"values-mixed-{dtype}"] = values(dtype, reference.MIXED_BINS)
    found |= pair(tiles.choose(512, 2), "bf16", 512, reference.GELU_MLP, bins=64)
    found |= {"values-soft-bf16": values("bf16", reference.SOFT_BINS)}
    return found | {f"sum-N{tile.columns}": sums(tile) for tile in tiles.every_sum_tile()[3:]}


def pair(tile: tiles.Tile, dtype: str, width: int, mode: int, *, bins: int) -> dict[str, Build]:
    """The forward and the backward kernel of tokens of `width`, with two streams, learned tokens, layer norm."""
    offset = int(mode == reference.GELU_MLP)
    mixed = mode == reference.MIXED_BINS
    columns = tiles.padded(bins + offset + 2)
    constants = {
        "D": width, "K": bins, "M": bins, "E0": bins + offset, "E": bins + offset + 2, "BT": tile.rows,
        "BD": tile.columns, "BE": columns, "BM": tiles.padded(bins) if mixed else columns, "MODE": mode,
        "VALUE_STREAM": 1, "STREAMED": True, "NORM": reference.LAYER_NORM,
    } | ({} if mixed else {"mixing": None})  # fmt: skip
    label = f"N{width}-{dtype}-{('', 'soft', 'mixed', 'silu', 'gelu')[mode]}"
    sums = dict.fromkeys(("dgain", "dshift"), "*fp32:16")
    return {
        f"fwd-{label}": _build(embed_fwd_kernel, dtype, constants, tile.num_warps),
        f"bwd-{label}": _build(embed_bwd_kernel, dtype, constants, tile.num_warps, sums),
    }


def values(dtype: str, mode: int) -> Build:
    """The gradient of the values through 100 bins."""
    mixed = mode == reference.MIXED_BINS
    constants = {
        "K": 100, "M": 100, "BT": tiles.ROWS, "BE": 128, "BM": 128, "MODE": mode, "VALUE_STREAM": 1,
        "STREAMED": True,
    } | ({} if mixed else dict.fromkeys(("mixing", "dmixing")))  # fmt: skip
    return _build(values_bwd_kernel, dtype, constants, 8, tensor_cores=mixed)


def sums(tile: tiles.Tile) -> Build:
    """The sum by gene."""
    constants = {"D": tile.columns, "BT": tile.rows, "BD": tile.columns}
    return _build(sum_by_gene_kernel, "bf16", constants, tile.num_warps, tensor_cores=False)


def _build(
    kernel: Any, dtype: str, constants: Mapping[str, Any], num_warps: int,
    types: Mapping[str, str] | None = None, *, tensor_cores: bool = True,
) -> Build:  # fmt: skip
    return Build(
        kernel=kernel,
        types=pointer_types(kernel, dtype, _TYPES | (types or {})),
        constants=constants,
        num_warps=num_warps,
        max_registers=_MAX_REGISTERS if tensor_cores else _MAX_SUM_REGISTERS,
        narrow_loads=_NARROW,
        tensor_cores=tensor_cores,
    )
