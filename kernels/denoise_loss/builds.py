"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..aot.build import Build, pointer_types
from . import tiles
from .triton import denoise_loss_bwd_kernel, denoise_loss_fwd_kernel

if TYPE_CHECKING:
    from collections.abc import Mapping

# The backward has one program on a multiprocessor, and asks for its tiles ahead.
_MAX_REGISTERS: Final = 255

_SCALARS: Final = dict.fromkeys(("B", "N", "G", "cells"), "i32") | {
    "norm_eps": "fp32", "factor": "fp32", "seed": "*i64:16",
} | dict.fromkeys(
    ("x0", "signal", "noise", "cell_weight", "eps", "squares", "statistics", "dloss", "dweight", "dbias"),
    "*fp32:16",
)  # fmt: skip


def builds() -> dict[str, Build]:
    """Both kernels at the sizes of the papers, with every target, and a large patch."""
    found: dict[str, Build] = {}
    for dtype in ("bf16", "fp32"):
        found |= _forward(dtype, 768, 10, "v", given=False) | _backward(dtype, 768, 10)
    found |= _forward("bf16", 768, 8, "eps", given=True) | _forward("bf16", 768, 8, "x0", given=True)
    # a width that no tile divides
    found |= _forward("bf16", 456, 10, "eps", given=False) | _backward("bf16", 456, 10)
    for dtype in ("bf16", "fp32"):
        found |= _forward(dtype, 512, 16, "v", given=False) | _backward(dtype, 512, 16)
    return found


def _forward(dtype: str, width: int, patch: int, prediction: str, *, given: bool) -> dict[str, Build]:
    tile = tiles.choose(width, 2 if dtype == "bf16" else 4, backward=False)
    constants = {"PREDICTION": prediction, ("seed" if given else "eps"): None}
    label = f"fwd-{dtype}-D{width}-P{patch}-{prediction}{'-given' * given}"
    return {label: _build(denoise_loss_fwd_kernel, tile, dtype, _sizes(tile, width, patch) | constants)}


def _backward(dtype: str, width: int, patch: int) -> dict[str, Build]:
    tile = tiles.choose(width, 2 if dtype == "bf16" else 4, backward=True)
    label = f"bwd-{dtype}-D{width}-P{patch}"
    return {label: _build(denoise_loss_bwd_kernel, tile, dtype, _sizes(tile, width, patch))}


def _sizes(tile: tiles.Tile, width: int, patch: int) -> dict[str, Any]:
    return {"D": width, "P": patch, "BM": tile.rows, "BD": tile.width, "BK": tiles.patch_width(patch)}


def _build(kernel: Any, tile: tiles.Tile, dtype: str, constants: Mapping[str, Any]) -> Build:
    return Build(
        kernel=kernel,
        types=pointer_types(kernel, dtype, _SCALARS),
        constants=constants,
        num_warps=tile.num_warps,
        num_stages=tiles.BACKWARD_STAGES if "dh" in kernel.arg_names else 3,
        max_registers=_MAX_REGISTERS,
        # statistics of rows, modulation, and genes in patches that are not aligned
        narrow_loads=96,
        tensor_cores=True,
    )
