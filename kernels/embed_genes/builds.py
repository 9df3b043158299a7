"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..aot.build import Build, pointer_types
from . import reference, tiles
from .encode import scores_bwd_kernel, values_bwd_kernel, weights_kernel
from .scatter import sum_by_gene_kernel
from .triton import embed_bwd_kernel, embed_fwd_kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_REGISTERS: Final = 240
_MAX_SUM_REGISTERS: Final = 128

_TYPES: Final = (
    {"genes": "*i32:16", "streams": "*i32:16", "order": "*i64:16", "starts": "*i64:16", "eps": "fp32"}
    | dict.fromkeys(("T", "G", "P", "steps"), "i32")
    | dict.fromkeys(("values", "dvalues", "mean", "rstd", "dweight", "dbias"), "*fp32:16")
)

# Ids, values, streams and statistics are one number a token; a table that has not a multiple of eight columns
# is read in pieces, and so are the scores of a bin.
_NARROW: Final = 80


def builds() -> dict[str, Build]:
    """Each tile with 100 bins, two streams, learned tokens and layer norm; the encodings at 100 bins.

    Left out is the MLP with SiLU, which is that with GELU and one product less a unit, and the gradients of
    values in bfloat16 where that in float32 takes more.
    """
    found: dict[str, Build] = {}
    for tile, size in tiles.every_tile():
        width = tile.columns if tile.columns < tiles.choose(512, size).columns else 512
        found |= pair(tile, "bf16" if size == 2 else "fp32", width)
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        for mode in (reference.SOFT_BINS, reference.MIXED_BINS):
            found |= encoding(dtype, mode, tiles.choose_encoding(size, mixed=mode == reference.MIXED_BINS))
    found |= encoding("bf16", reference.GELU_MLP, tiles.choose_encoding(2, mixed=False))
    del found["values-soft-bf16"], found["values-mixed-bf16"]
    return found | {f"sum-N{tile.columns}": sums(tile) for tile in tiles.every_sum_tile()[-2:]}


def pair(tile: tiles.Tile, dtype: str, width: int) -> dict[str, Build]:
    """The forward and the backward kernel of tokens of `width`."""
    constants = {
        "D": width, "E": 102, "BT": tile.rows, "BD": tile.columns, "BE": 128,
        "BK": tiles.step(128, 2 if dtype == "bf16" else 4), "NORM": reference.LAYER_NORM,
    }  # fmt: skip
    sums = dict.fromkeys(("dgain", "dshift"), "*fp32:16")
    return {
        f"fwd-N{width}-{dtype}": _build(embed_fwd_kernel, dtype, constants, tile),
        f"bwd-N{width}-{dtype}": _build(embed_bwd_kernel, dtype, constants, tile, sums),
    }


def encoding(dtype: str, mode: int, tile: tiles.Tile) -> dict[str, Build]:
    """The weights of 100 bins or hidden units and two streams, and the gradient of the values."""
    mixed = mode == reference.MIXED_BINS
    offset = 100 + (mode == reference.GELU_MLP)
    values = {"M": 100, "BT": tile.rows, "BM": 128, "MODE": mode, "VALUE_STREAM": 1, "STREAMED": True}
    scores = values | {"K": 100, "BE": 128} | ({} if mixed else {"mixing": None})
    label = f"{('', 'soft', 'mixed', 'silu', 'gelu')[mode]}-{dtype}"
    weights = scores | {"E0": offset, "E": offset + 2}
    found = {
        f"weights-{label}": _build(weights_kernel, dtype, weights, tile, tensor_cores=mixed),
        f"values-{label}": _build(values_bwd_kernel, dtype, values, tile, tensor_cores=False),
    }
    return found | ({f"scores-{label}": _build(scores_bwd_kernel, dtype, scores, tile)} if mixed else {})


def sums(tile: tiles.Tile) -> Build:
    """The sum by gene."""
    constants = {"D": tile.columns, "BT": tile.rows, "BD": tile.columns}
    return _build(sum_by_gene_kernel, "bf16", constants, tile, tensor_cores=False)


def _build(
    kernel: Any, dtype: str, constants: Mapping[str, Any], tile: tiles.Tile,
    types: dict[str, str] | None = None, *, tensor_cores: bool = True,
) -> Build:  # fmt: skip
    return Build(
        kernel=kernel,
        types=pointer_types(kernel, dtype, _TYPES | (types or {})),
        constants=constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        max_registers=_MAX_REGISTERS if tensor_cores else _MAX_SUM_REGISTERS,
        narrow_loads=_NARROW,
        tensor_cores=tensor_cores,
    )
