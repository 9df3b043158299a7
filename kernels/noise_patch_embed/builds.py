"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..aot.build import Build, pointer_types
from . import tiles
from .triton import noise_patch_embed_bwd_kernel, noise_patch_embed_dx_kernel, noise_patch_embed_fwd_kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

# On Hopper none takes over 128 in bfloat16, which leaves room for two programs of eight warps. Where operands
# of the tensor cores lie in registers it is more: in float32, three times over, and on Ampere.
_MAX_REGISTERS: Final = {"bf16": 184, "fp32": 224}

_SCALARS: Final = dict.fromkeys(("B", "G", "N", "steps"), "i32") | {
    "x0": "*fp32:16", "signal": "*fp32:16", "noise": "*fp32:16", "eps": "*fp32:16", "seed": "*i64:16",
    "dweight": "*fp32:16", "dbias": "*fp32:16", "dposition": "*fp32:16", "dx0": "*fp32:16",
}  # fmt: skip


def builds() -> dict[str, Build]:
    """All kernels at the sizes of the papers, both ways to come by the noise, and a large patch.

    Left out is the large patch with noise that is given, which takes less than what is drawn.
    """
    found: dict[str, Build] = {}
    for tile, size in tiles.every_tile():
        dtype = "bf16" if size == 2 else "fp32"
        label = f"{dtype}-{tile.tokens}x{tile.cells}"
        found |= _group(tile, dtype, label, width=768, patch=10)
    tile = tiles.choose(64, 512, 2)
    found |= _group(tile, "bf16", "bf16-patch32", width=512, patch=32)
    del found["fwd-bf16-patch32-given"]
    return found


def _group(tile: tiles.Tile, dtype: str, label: str, *, width: int, patch: int) -> dict[str, Build]:
    """The kernels for one size, the backward with the dearer sums."""
    rows = tile.tokens * tile.cells
    sizes = {
        "D": width, "P": patch, "BT": tile.tokens, "BM": rows, "BK": tiles.patch_width(patch), "BD":
        tile.width
    }  # fmt: skip
    position = {"POSITION": True, "dbias": None}
    return {
        f"fwd-{label}-drawn": _build(noise_patch_embed_fwd_kernel, tile, dtype, sizes | {"eps": None}),
        f"fwd-{label}-given": _build(noise_patch_embed_fwd_kernel, tile, dtype, sizes | {"seed": None}),
        f"bwd-{label}": _build(noise_patch_embed_bwd_kernel, tile, dtype, sizes | position),
        f"dx-{label}": _build(noise_patch_embed_dx_kernel, tile, dtype, sizes),
    }


def _build(kernel: Any, tile: tiles.Tile, dtype: str, constants: Mapping[str, Any]) -> Build:
    return Build(
        kernel=kernel,
        types=pointer_types(kernel, dtype, _SCALARS),
        constants=constants,
        num_warps=tile.num_warps,
        max_registers=_MAX_REGISTERS[dtype],
        # patches of ten genes are not aligned: cells, noise and weight, a small part of what is moved
        narrow_loads=64,
        tensor_cores=True,
    )
