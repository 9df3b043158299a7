"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import Any, Final

from ..aot.build import Build, pointer_types
from . import tiles
from .triton import subspace_gram_bwd_kernel, subspace_gram_kernel

_MAX_REGISTERS: Final = 255

_KNOWN: Final = {
    "drate": "*fp32:16", "cu_seqlens": "*i32:16", "matrix": "*fp32:16", "inverse": "*fp32:16",
    "N": "i32", "H": "i32", "slices": "i32", "weight": "fp32",
}  # fmt: skip


def builds() -> dict[str, Build]:
    """Both kernels of every tile with packed and normalised tokens; in 16 bits the awkward width of 96."""
    found: dict[str, Build] = {}
    for dtype in ("bf16", "fp32"):
        for channels in (*(tile.channels for tile in tiles.every_tile()), *([96] if dtype == "bf16" else [])):
            label = f"P{channels}-{dtype}"
            found[f"fwd-{label}"] = _build(subspace_gram_kernel, channels, dtype)
            found[f"bwd-{label}"] = _build(subspace_gram_bwd_kernel, channels, dtype)
    return found


def _build(kernel: Any, channels: int, dtype: str) -> Build:
    tile = tiles.choose(channels)
    backward = kernel is subspace_gram_bwd_kernel
    constants = {"P": channels, "BP": tile.channels, "BK": tile.gradient_block if backward else tile.block}
    constants |= {"BN": tile.tokens} if backward else {}
    return Build(
        kernel=kernel,
        types=pointer_types(kernel, dtype, _KNOWN),
        constants=constants | {"PACKED": True, "NORMALISE": True},
        num_warps=tile.num_warps,
        max_registers=_MAX_REGISTERS,
        # where the segment begins and ends, and the gradient of its rate
        narrow_loads=16,
        # the matrix of a narrow head has too few rows for the instruction of Hopper
        tensor_cores=tile.channels >= 64,
    )
