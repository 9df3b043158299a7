"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import Any, Final

from ..aot.build import Build, pointer_types
from . import tiles
from .launch import DELTA_ROWS
from .triton import (
    subspace_attention_bwd_kernel,
    subspace_attention_delta_kernel,
    subspace_attention_fwd_kernel,
)

_MAX_REGISTERS: Final = 240

_SCALARS: Final = (
    dict.fromkeys(("T", "N", "H"), "i32") | {"scale": "fp32"}
    | dict.fromkeys(("lse", "delta"), "*fp32:16") | dict.fromkeys(("tiles", "segments"), "*i32:16")
)  # fmt: skip

_SIZES: Final = {"bf16": 2, "fp16": 2, "fp32": 4}


def attention(
    dtype: str, width: int, length: int | None, *, backward: bool, tile: tiles.Tile, **changes: Any
) -> Build:
    """One direction for a fixed `length`, or (None) for segments."""
    constants = tiles.constants(width, _SIZES[dtype], tile, length) | changes
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    if length is not None:
        constants |= {"tiles": None, "segments": None}
    kernel = subspace_attention_bwd_kernel if backward else subspace_attention_fwd_kernel
    return Build(
        kernel=kernel,
        types=pointer_types(kernel, dtype, _SCALARS),
        constants=constants,
        max_registers=_MAX_REGISTERS,
        narrow_loads=60,
        tensor_cores=True,
        **options,
    )
