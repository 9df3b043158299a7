"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from ..aot.build import Build, pointer_types
from . import tiles
from .triton import keys_bwd_kernel, queries_bwd_kernel, segment_attention_fwd_kernel

if TYPE_CHECKING:
    from .tiles import Kernel, Tile

_MAX_REGISTERS: Final = 255

_KERNELS: Final = MappingProxyType(
    {"forward": segment_attention_fwd_kernel, "queries": queries_bwd_kernel, "keys": keys_bwd_kernel}
)

_SCALARS: Final = (
    dict.fromkeys(("lse", "delta", "dbias", "dslope"), "*fp32:16")
    | dict.fromkeys(("key_weight", "key_value", "slope", "coordinate"), "*fp32:16")
    | {"tiles": "*i32:16", "segments": "*i32:16", "T": "i32", "scale": "fp32"}
    | dict.fromkeys(("stride_q", "stride_k", "stride_v"), "i32:16")
)

# one number a row: lse, delta, biases and segments, and what the tile is
_NARROW: Final = 40


def builds() -> dict[str, Build]:
    """Every tile with both biases, which take the most; and the plain form of those for 128 rows.

    The two 16-bit dtypes differ in one conversion. A head of 96 is one of 128 with masked loads.
    """
    found = {}
    for kernel, width, size, tile in tiles.every_tile():
        dtype = "bf16" if size == 2 else "fp32"
        found |= build(kernel, tile, dtype, width, biased=True)
        if size == 2 and tile.rows == 128 and width > 32:
            found |= build(kernel, tile, dtype, width, biased=False)
    return found | build("keys", tiles.choose("keys", 96, 2, 128), "bf16", 96, biased=True)


def build(kernel: Kernel, tile: Tile, dtype: str, width: int, *, biased: bool) -> dict[str, Build]:
    """One kernel for heads of `width`."""
    function = _KERNELS[kernel]
    constants: dict[str, Any] = {
        "H": 8, "D": width, "BD": tiles.padded(width), "BS": tiles.SHARED_STEP, "SPLIT": 1, "KEY_BIAS": biased, "SLOPE": biased,
    }  # fmt: skip
    constants |= {"BM": tile.rows, "BN": tile.step} if kernel != "keys" else {"BN": tile.rows, "BM": tile.step}
    if kernel == "keys":
        constants |= {"KEY_GRADIENT": biased, "SLOPE_GRADIENT": biased}
    elif kernel == "queries":
        constants |= {"EXACT": biased}
    if not biased:
        absent = ("key_weight", "key_value", "slope", "coordinate", "dbias", "dslope")
        constants |= {name: None for name in absent if name in function.arg_names}
    label = f"{kernel}-D{width}-{dtype}-{tile.rows}x{tile.step}-w{tile.num_warps}s{tile.num_stages}"
    return {
        label + "-biased" * biased: Build(
            kernel=function,
            types=pointer_types(function, dtype, _SCALARS),
            constants=constants,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            max_registers=_MAX_REGISTERS,
            narrow_loads=_NARROW,
            tensor_cores=True,
        )
    }
