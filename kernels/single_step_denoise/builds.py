"""What of this operator is compiled ahead of time, and held to which budget."""

from __future__ import annotations

from typing import Any, Final

from ..aot.build import Build, pointer_types
from . import tiles
from .backward import denoise_bwd_kernel
from .forward import denoise_fwd_kernel

_SCALARS: Final = (
    {"B": "i32", "depth": "i32", "width": "i32:16", "hidden": "i32:16", "level": "i64:16"}
    | dict.fromkeys(("signal", "noise", "norm_eps"), "fp32")
    | {"condition": "*i64:16", "seed": "*i64:16", "dh": "*fp32:16"}
)
# a program has 8 warps, and shared memory holds no second one that registers would have to be left for
_MAX_REGISTERS: Final = 255
# biases, levels and rows of modulation; where a width is no multiple of 128 tiles are narrow as well
_NARROW: Final = 96
_NARROW_RAGGED: Final = 160
_CODES: Final = ("z", "eps", "dout", "dz", "out", "signal_rows", "noise_rows", "mean", "std")


def builds() -> dict[str, Build]:
    """Both kernels at the widths of the presets and between, with all that is optional; other forms at one.

    The 16-bit dtypes differ in one conversion, and the parameterisations in a multiplication or a division.
    """
    found: dict[str, Build] = {}
    for dtype in ("bf16", "fp32"):
        for width, latent in ((128, 32), (512, 128)):
            found |= pair(dtype, width, latent)
    found |= pair("bf16", 256, 64, of_codes="fp32")
    found |= pair("bf16", 1024, 128)
    # a width that no power of two is near to, codes of no even length, and noise that is drawn
    found |= pair("fp16", 400, 50, kind="eps", drawn=True)
    return found


def pair(
    dtype: str, width: int, latent: int, *, of_codes: str | None = None, kind: str = "v", drawn: bool = False
) -> dict[str, Build]:
    """The forward and the backward kernel of a denoiser of `width` with three blocks."""
    tile = tiles.choose(width, 2 * width, 4 if dtype == "fp32" else 2)
    constants = tile.constants(latent, (3, 2 * width, width)) | {"KIND": kind}
    types = _SCALARS | dict.fromkeys(_CODES, f"*{of_codes or dtype}:16")
    noise = {"eps": None} if drawn else {"seed": None}
    label = f"W{width}-d{latent}-{dtype}{f'-codes-{of_codes}' if of_codes else ''}{'-drawn' * drawn}"
    return {
        f"fwd-{label}": _build(denoise_fwd_kernel, dtype, tile, types, constants | noise),
        f"bwd-{label}": _build(denoise_bwd_kernel, dtype, tile, types, constants),
    }


def _build(
    kernel: Any, dtype: str, tile: tiles.Tile, types: dict[str, str], constants: dict[str, Any]
) -> Build:
    return Build(
        kernel=kernel,
        types=pointer_types(kernel, dtype, types),
        constants=constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        max_registers=_MAX_REGISTERS,
        narrow_loads=_NARROW_RAGGED if constants["W"] % 128 else _NARROW,
        tensor_cores=True,
    )
