"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import Final

from ..aot import ARCHITECTURES
from ..aot.build import Build, pointer_types
from . import tiles
from .launch import DELTA_ROWS
from .triton import (
    subspace_attention_bwd_kernel,
    subspace_attention_delta_kernel,
    subspace_attention_fwd_kernel,
)

_MAX_REGISTERS: Final = 240

# one number a row or key: lse, delta, the segment; what the tile is; a last block of 16 keys
_NARROW: Final = 70

_SCALARS: Final = (
    dict.fromkeys(("T", "N", "H"), "i32") | {"scale": "fp32"}
    | dict.fromkeys(("lse", "delta"), "*fp32:16") | dict.fromkeys(("tiles", "segments"), "*i32:16")
)  # fmt: skip

_SIZES: Final = {"bf16": 2, "fp16": 2, "fp32": 4}

# the published size, and 256 tokens in heads of 64
_LENGTHS: Final = {32: 65, 64: 256, 96: 200, 128: 200}


def builds() -> dict[str, Build]:
    """Both directions at every width: a fixed length by 128 rows, and segments by 64."""
    found: dict[str, Build] = {}
    for width, length in _LENGTHS.items():
        for backward in (False, True):
            found |= attention("bf16", width, length, 128, backward=backward)
            found |= attention("bf16", width, None, 64, backward=backward)
    for width in (32, 96, 128):
        for backward in (False, True):
            found |= attention("fp32", width, None, 64, backward=backward)
    found |= attention("fp16", 64, 256, 64, backward=True)
    found |= attention("fp32", 64, 200, 128, backward=True)
    for backward in (False, True):
        found |= attention("bf16", 128, None, 64, backward=backward, hopper=False)
    return found | delta("bf16", 96)


def attention(
    dtype: str, width: int, length: int | None, rows: int, *, backward: bool, hopper: bool = True
) -> dict[str, Build]:
    """One direction for a fixed `length`, or (None) for segments."""
    tile = tiles.choose(width, _SIZES[dtype], rows, backward=backward, hopper=hopper)
    constants = tiles.constants(width, tile, length, backward=backward)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    if length is not None:
        constants |= {"tiles": None, "segments": None}
    kernel = subspace_attention_bwd_kernel if backward else subspace_attention_fwd_kernel
    label = f"{'bwd' if backward else 'fwd'}-P{width}-{dtype}-{tile.rows}x{tile.keys}"
    # the other generation has tiles of its own at these widths
    narrower = width >= 96 and _SIZES[dtype] == 2
    return {
        f"{label}-{f'N{length}' if length else 'segments'}{'' if hopper else '-ampere'}": Build(
            kernel=kernel,
            types=pointer_types(kernel, dtype, _SCALARS),
            constants=constants,
            # the widest heads leave less room on Hopper, and still do not spill
            max_registers=_MAX_REGISTERS + 8 * (width == 128),
            narrow_loads=_NARROW,
            tensor_cores=True,
            architectures=((90, 100) if hopper else (80,)) if narrower else ARCHITECTURES,
            **options,
        )
    }


def delta(dtype: str, width: int) -> dict[str, Build]:
    """The sums over each row that the backward kernel reads."""
    first, second = tiles.PIECES[width]
    return {
        f"delta-P{width}-{dtype}": Build(
            kernel=subspace_attention_delta_kernel,
            types=pointer_types(subspace_attention_delta_kernel, dtype, _SCALARS),
            constants={"P": width, "PA": first, "PB": second, "BM": DELTA_ROWS},
            num_warps=4,
            max_registers=128,
        )
    }
