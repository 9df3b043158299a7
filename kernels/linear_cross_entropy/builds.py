"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import Final

from ..aot.build import Build, pointer_types
from . import tiles
from .triton import linear_cross_entropy_kernel

# Four programs of eight warps on a multiprocessor.
_MAX_REGISTERS: Final = 64

_KNOWN: Final = {
    "target": "*i64:16", "losses": "*fp32:16", "lse": "*fp32:16", "dlosses": "*fp32:16",
    "V": "i32", "stride": "i32:16", "ignore_index": "i32",
}  # fmt: skip


def builds() -> dict[str, Build]:
    """The loss alone, the loss with its gradient, and the gradient when the loss is known, with a bias.

    Left out is float16, which differs from bfloat16 in one conversion.
    """
    found = {}
    for dtype, size in (("bf16", 2), ("fp32", 4)):
        tile = tiles.choose(size)
        for known, gradient in ((False, False), (False, True), (True, True)):
            label = f"{'gradient' if known else 'both' if gradient else 'loss'}-{dtype}"
            found[label] = _build(tile, dtype, known=known, gradient=gradient)
    return found


def _build(tile: tiles.Tile, dtype: str, *, known: bool, gradient: bool) -> Build:
    constants = {"BV": tile.width, "BIASED": True, "LSE_KNOWN": known, "WEIGHTED": known}
    absent = {"losses": None} if known else {"dlosses": None}
    return Build(
        kernel=linear_cross_entropy_kernel,
        types=pointer_types(linear_cross_entropy_kernel, dtype, _KNOWN),
        constants=constants | {"GRADIENT": gradient} | absent,
        num_warps=tile.num_warps,
        max_registers=_MAX_REGISTERS,
        # the target of the row, its logit and bias, its weight and sum
        narrow_loads=4,
    )
