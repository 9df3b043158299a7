"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import Any, Final

from ..aot.build import Build, pointer_types
from . import tiles
from .gradient import gradient_kernel
from .matmul import matmul_kernel

_OPTIONAL: Final = ("added", "mask", "level", "residual", "gate", "h", "zeros")
# The step forward in its dearest form, what its gradient asks, and the products of the overcomplete step.
_FORMS: Final = {
    "step": ("added", "level", "residual", "gate", "h", "zeros"),
    "plain": ("added",),
    "masked": ("added", "mask"),
}
_SCALARS: Final = {
    "M": "i32", "R": "i32", "rows": "i32", "stride_gate": "i32:16", "alpha": "fp32", "offset": "fp32",
    "level": "*fp32:16", "zeros": "*i32:16",
}  # fmt: skip


def builds() -> dict[str, Build]:
    """Both kernels in the forms that are launched, at the widths of white-box transformers.

    The two 16-bit dtypes differ in one conversion. A form without some of its pointers does part of the same
    work.
    """
    found: dict[str, Build] = {}
    for tile, size in tiles.every_tile():
        dtype = "bf16" if size == 2 else "fp32"
        for form, transposed in (("step", True), ("step", False), ("plain", False), ("masked", False)):
            name = f"{form}-{'NK' if transposed else 'KN'}-{dtype}"
            found[name] = product(tile, dtype, 768, 768, form, transposed=transposed)
        strip = tiles.choose_strip(size)
        found[f"gradient-{dtype}"] = gradient(strip, dtype, 768, row_gate=False)
        found[f"gradient-rows-{dtype}"] = gradient(strip, dtype, 768, row_gate=True)
    # sizes that fill no tile
    return found | {"step-N200-bf16": product(tiles.choose(2), "bf16", 200, 96, "step", transposed=True)}


def product(tile: tiles.Tile, dtype: str, width: int, depth: int, form: str, *, transposed: bool) -> Build:
    """A product with what follows it."""
    constants: dict[str, Any] = {name: None for name in _OPTIONAL if name not in _FORMS[form]}
    constants |= {"N": width, "K": depth, "BM": tile.rows, "BN": tile.columns, "BK": tile.depth}
    constants |= {"TRANSPOSED": transposed, "RECTIFY": form == "step"}
    return Build(
        kernel=matmul_kernel,
        types=pointer_types(matmul_kernel, dtype, _SCALARS),
        constants=constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        max_registers=240,
        tensor_cores=True,
    )


def gradient(strip: tiles.Strip, dtype: str, width: int, *, row_gate: bool) -> Build:
    """The gated gradient with both of its sums."""
    sums = {"sums": "*fp32:16"} | ({} if row_gate else {"dgate": "*fp32:16"})
    constants = {"N": width, "BR": strip.rows, "BN": strip.columns, "ROW_GATE": row_gate, "RECTIFIED": True}
    return Build(
        kernel=gradient_kernel,
        types=pointer_types(gradient_kernel, dtype, _SCALARS | sums),
        constants=constants,
        num_warps=strip.num_warps,
        max_registers=128,
        # the gate, once a program
        narrow_loads=0 if row_gate else 1,
    )
