"""The functions that launch the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton

from .._triton import on_device_of
from . import tiles as tile_table
from .triton import (
    subspace_attention_bwd_kernel,
    subspace_attention_delta_kernel,
    subspace_attention_fwd_kernel,
)

if TYPE_CHECKING:
    from torch import Tensor

DELTA_ROWS = 64


def subspace_attention_forward(
    w: Tensor, scale: float,
    cu_seqlens: Tensor | None, tiles: Tensor | None, segments: Tensor | None, tile_rows: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the forward kernel; see `reference.subspace_attention_forward`."""
    out = torch.empty_like(w)
    lse = torch.empty((w.shape[-2], *w.shape[:-2]), dtype=torch.float32, device=w.device)
    programs, sizes, options = _grid(w, tiles, tile_rows, backward=False)
    if programs:
        with on_device_of(w):
            subspace_attention_fwd_kernel[programs,](w, out, lse, tiles, segments, *sizes, scale, **options)
    return out, lse


def subspace_attention_backward(
    dout: Tensor, w: Tensor, out: Tensor, lse: Tensor, scale: float,
    cu_seqlens: Tensor | None, tiles: Tensor | None, segments: Tensor | None, tile_rows: int,
) -> Tensor:  # fmt: skip
    """Launch the backward kernels; see `reference.subspace_attention_backward`."""
    dw = torch.empty_like(w)
    delta = torch.empty_like(lse)
    programs, sizes, options = _grid(w, tiles, tile_rows, backward=True)
    if programs:
        rows, _, heads = sizes
        first, second = tile_table.PIECES[w.shape[-1]]
        with on_device_of(w):
            subspace_attention_delta_kernel[triton.cdiv(rows, DELTA_ROWS) * heads,](
                dout, out, delta, rows, heads, P=w.shape[-1], PA=first, PB=second, BM=DELTA_ROWS, num_warps=4
            )
            subspace_attention_bwd_kernel[programs,](
                dout, w, lse, delta, dw, tiles, segments, *sizes, scale, **options
            )
    return dw


def _grid(
    w: Tensor, tiles: Tensor | None, tile_rows: int, *, backward: bool
) -> tuple[int, tuple[int, int, int], dict[str, Any]]:
    """Number of programs, the sizes `T`, `N` and `H`, and what the kernel is compiled with."""
    heads, width = w.shape[-2:]
    total = w.numel() // (heads * width) if w.numel() else 0
    length = w.shape[1] if tiles is None else 0
    rows = tile_rows if tiles is not None else tile_table.rows_of(length)
    hopper = w.device.type != "cuda" or torch.cuda.get_device_capability(w.device)[0] >= 9
    tile = tile_table.choose(width, w.element_size(), rows, backward=backward, hopper=hopper)
    options = tile_table.constants(width, tile, None if tiles is not None else length, backward=backward)
    if not total:
        blocks = 0
    else:
        blocks = len(tiles) if tiles is not None else w.shape[0] * triton.cdiv(length, tile.rows)
    programs = blocks * heads * (width // options["PA"] if tile.columns else 1)
    return programs, (total, length, heads), options
