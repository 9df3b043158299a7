"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

import itertools
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from ..aot import ARCHITECTURES
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
    """Every tile once: with both biases, which take the most, or without where those have another tile.

    Left out as they say nothing new: float16, which differs from bfloat16 in one conversion; one bias alone;
    and heads of 96, which are those of 128 with masked loads, but for the kernel with the most of them.
    """
    found: dict[str, Build] = {}
    for kernel, width, size in itertools.product(tiles.KERNELS, (32, 64, 128), (2, 4)):
        dtype = "bf16" if size == 2 else "fp32"
        launched: dict[Tile, tuple[bool, set[int]]] = {}
        for biased, rows, sm in itertools.product((True, False), (128, 64), ARCHITECTURES):
            tile = tiles.choose(kernel, width, size, rows, biased=biased, hopper=sm >= 90)
            launched.setdefault(tile, (biased, set()))[1].add(sm)
        for tile, (biased, some) in launched.items():
            found |= build(kernel, tile, dtype, width, "ks" * biased, tuple(sorted(some)))
    return found | build("keys", tiles.choose("keys", 96, 2, 128, biased=True), "bf16", 96)


def build(
    kernel: Kernel, tile: Tile, dtype: str, width: int, biases: str = "ks",
    architectures: tuple[int, ...] = ARCHITECTURES,
) -> dict[str, Build]:  # fmt: skip
    """One kernel for heads of `width`; `biases` has a letter for each: of keys, of slopes."""
    function = _KERNELS[kernel]
    key, slope = "k" in biases, "s" in biases
    rows, step = ("BN", "BM") if kernel == "keys" else ("BM", "BN")
    constants: dict[str, Any] = {
        "H": 8, "D": width, "BD": tile.columns or tiles.padded(width), "BS": tiles.SHARED_STEP, "SPLIT": 1,
        rows: tile.rows, step: tile.step, "KEY_BIAS": key, "SLOPE": slope, "EXACT": bool(biases),
        "KEY_GRADIENT": key, "SLOPE_GRADIENT": slope,
    }  # fmt: skip
    constants |= {} if key else dict.fromkeys(("key_weight", "key_value", "dbias"))
    constants |= {} if slope else dict.fromkeys(("slope", "coordinate", "dslope"))
    columns = f"c{tile.columns}" if tile.columns else ""
    label = f"{kernel}-D{width}-{dtype}-{tile.rows}x{tile.step}{columns}-w{tile.num_warps}s{tile.num_stages}"
    label += f"-{biases}"
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
            architectures=architectures,
        )
    }
