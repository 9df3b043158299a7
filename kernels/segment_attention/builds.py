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

# one number a row: lse, delta, biases and segments, and what the tile is; Triton 3.6 loads each row twice
_NARROW: Final = 140


def builds() -> dict[str, Build]:
    """Every tile with both biases, which take the most, but where a smaller one of its kind says the same.

    The two 16-bit dtypes differ in one conversion. A head of 96 is one of 128 with masked loads. In
    float32 heads over 64 are left out: they spill.
    """
    found: dict[str, Build] = {}
    for kernel in tiles.KERNELS:
        for width, rows in ((32, 128), (64, 128), (64, 64), (128, 128), (128, 64)):
            found |= build(kernel, tiles.choose(kernel, width, 2, rows, biased=True), "bf16", width)
        found |= build(kernel, tiles.choose(kernel, 128, 2, 128, biased=False), "bf16", 128, "")
        found |= build(kernel, tiles.choose(kernel, 64, 4, 128, biased=True), "fp32", 64)
    return found | build("keys", tiles.choose("keys", 96, 2, 128, biased=True), "bf16", 96)


def build(kernel: Kernel, tile: Tile, dtype: str, width: int, biases: str = "ks") -> dict[str, Build]:
    """One kernel for heads of `width`; `biases` has a letter for each: of keys, of slopes."""
    function = _KERNELS[kernel]
    key, slope = "k" in biases, "s" in biases
    rows, step = ("BN", "BM") if kernel == "keys" else ("BM", "BN")
    constants: dict[str, Any] = {
        "H": 8, "D": width, "BD": tiles.padded(width), "BS": tiles.SHARED_STEP, "SPLIT": 1,
        rows: tile.rows, step: tile.step, "KEY_BIAS": key, "SLOPE": slope, "EXACT": bool(biases),
        "KEY_GRADIENT": key, "SLOPE_GRADIENT": slope,
    }  # fmt: skip
    constants |= {} if key else dict.fromkeys(("key_weight", "key_value", "dbias"))
    constants |= {} if slope else dict.fromkeys(("slope", "coordinate", "dslope"))
    label = f"{kernel}-D{width}-{dtype}-{tile.rows}x{tile.step}-w{tile.num_warps}s{tile.num_stages}-{biases}"
    return {
        label.removesuffix("-"): Build(
            kernel=function,
            types=pointer_types(function, dtype, _SCALARS),
            constants={name: value for name, value in constants.items() if name in function.arg_names},
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            max_registers=_MAX_REGISTERS,
            limit_registers={} if tile.registers is None else {90: tile.registers},
            narrow_loads=_NARROW,
            # under 64 rows Hopper uses the tensor cores of its predecessor, which are not what is counted
            tensor_cores=tile.rows >= 64,
        )
    }
