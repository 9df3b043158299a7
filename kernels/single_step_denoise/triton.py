"""The functions that launch the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from .._triton import on_device_of
from . import tiles
from .backward import denoise_bwd_kernel
from .forward import denoise_fwd_kernel
from .weights import DenoiserWeights

if TYPE_CHECKING:
    from collections.abc import Sequence


def denoise_forward(
    z: Tensor, eps: Tensor | None, seed: Tensor | None, condition: Tensor | None, modulation: Tensor,
    weights: Sequence[Tensor], signal_rows: Tensor | None, noise_rows: Tensor | None,
    signal: float, noise: float, mean: Tensor | None, std: Tensor | None, kind: str, norm_eps: float,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Launch the forward kernel; see `reference.denoise_forward`.

    What it keeps is the residual stream before each norm; without `keep` that is one block of rows which
    every layer overwrites.
    """
    w, out = DenoiserWeights(*weights), torch.empty_like(z)
    depth, hidden, width = w.w1.shape
    h = torch.empty((depth + 1 if keep else 1, len(z), width), dtype=w.w1.dtype, device=z.device)
    if len(z):
        y = torch.empty((len(z), width), dtype=w.w1.dtype, device=z.device)
        a = torch.empty((len(z), hidden), dtype=w.w1.dtype, device=z.device)
        tile = tiles.choose(width, hidden, w.w1.element_size())
        with on_device_of(z):
            denoise_fwd_kernel[(triton.cdiv(len(z), tile.rows),)](
                z, eps, seed, condition, modulation, *w, signal_rows, noise_rows, mean, std, out, h, y, a,
                len(z), width, hidden, depth, h.stride(0) if keep else 0, signal, noise, norm_eps,
                **tile.constants(z.shape[1], w.w1.shape), KIND=kind,
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
    return out, [h] if keep else []


def denoise_backward(
    dout: Tensor, condition: Tensor | None, modulation: Tensor, weights: Sequence[Tensor],
    signal_rows: Tensor | None, noise_rows: Tensor | None, std: Tensor | None,
    signal: float, noise: float, kind: str, norm_eps: float,
    kept: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """Launch the backward kernel; see `reference.denoise_backward`."""
    w, dz = DenoiserWeights(*weights), torch.empty_like(dout)
    if not len(dout):
        return dz
    depth, hidden, width = w.w1.shape
    (h,) = kept
    y, du, dy = (torch.empty_like(h[0]) for _ in range(3))
    da = torch.empty((len(dout), hidden), dtype=w.w1.dtype, device=dout.device)
    dh = torch.empty_like(y, dtype=torch.float32)
    tile = tiles.choose(width, hidden, w.w1.element_size())
    with on_device_of(dout):
        denoise_bwd_kernel[(triton.cdiv(len(dout), tile.rows),)](
            dout, condition, modulation, w.w_in, w.w1, w.b1, w.w2, w.w_out, signal_rows, noise_rows, std, dz,
            h, y, du, dy, da, dh,
            len(dout), width, hidden, depth, h.stride(0), signal, noise, norm_eps,
            **tile.constants(dout.shape[1], w.w1.shape), KIND=kind,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return dz
