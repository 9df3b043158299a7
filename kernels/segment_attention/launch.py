"""The functions that launch the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .._triton import on_device_of
from . import tiles
from .reference import key_gradients
from .triton import keys_bwd_kernel, queries_bwd_kernel, segment_attention_fwd_kernel

if TYPE_CHECKING:
    from torch import Tensor


def segment_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, cut: Tensor, segments: Tensor,
    key_weight: Tensor | None, key_value: Tensor | None, slope: Tensor | None, coordinate: Tensor | None,
    scale: float, tile_rows: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the forward kernel; see `reference.segment_attention_forward`."""
    rows, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, rows), dtype=torch.float32, device=q.device)
    tile = _tile("forward", q, tile_rows, key_value, slope)
    grid, sizes = _grid(cut, q, tile, tile_rows)
    if grid[0]:
        with on_device_of(q):
            segment_attention_fwd_kernel[grid](
                q, k, v, out, lse, cut, segments, key_weight, key_value, slope, coordinate,
                rows, q.stride(0), k.stride(0), v.stride(0), scale,
                **sizes, BM=tile.rows, BN=tile.step, KEY_BIAS=key_value is not None, SLOPE=slope is not None,
                **_options(tile, q),
            )  # fmt: skip
    return out, lse


def segment_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor,
    cut: Tensor, segments: Tensor, key_weight: Tensor | None, key_value: Tensor | None,
    slope: Tensor | None, coordinate: Tensor | None, scale: float, tile_rows: int,
    key_gradient: bool, slope_gradient: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Launch the kernel over queries, then that over keys; see `reference.segment_attention_backward`."""
    rows, heads, _ = q.shape
    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    delta = torch.empty((heads, rows), dtype=torch.float32, device=q.device)
    dbias = torch.empty((heads, rows), dtype=torch.float32, device=q.device) if key_gradient else None
    tile = _tile("queries", q, tile_rows, key_value, slope)
    grid, sizes = _grid(cut, q, tile, tile_rows)
    biases = {"KEY_BIAS": key_value is not None, "SLOPE": slope is not None}
    strides = q.stride(0), k.stride(0), v.stride(0)
    if grid[0]:
        with on_device_of(q):
            queries_bwd_kernel[grid](
                q, k, v, out, dout, dq, lse, delta, cut, segments, key_weight, key_value, slope, coordinate,
                rows, *strides, scale, **sizes, **biases, BM=tile.rows, BN=tile.step,
                EXACT=key_gradient or slope_gradient, **_options(tile, q),
            )  # fmt: skip
    tile = _tile("keys", q, tile_rows, key_value, slope)
    grid, sizes = _grid(cut, q, tile, tile_rows)
    dslope = torch.empty(grid[0], dtype=torch.float32, device=q.device) if slope_gradient else None
    if grid[0]:
        with on_device_of(q):
            keys_bwd_kernel[grid](
                q, k, v, dout, dk, dv, dbias, dslope, lse, delta, cut, segments,
                key_weight, key_value, slope, coordinate,
                rows, *strides, scale, **sizes, **biases, BM=tile.step, BN=tile.rows,
                KEY_GRADIENT=key_gradient, SLOPE_GRADIENT=slope_gradient,
                **_options(tile, q),
            )  # fmt: skip
    dweight, dvalue = key_gradients(None if dbias is None else dbias.mT, key_weight, key_value, lse)
    return dq, dk, dv, dweight, dvalue, _slope_gradient(dslope, heads, q)


def _tile(
    kernel: tiles.Kernel, q: Tensor, tile_rows: int, key_value: Tensor | None, slope: Tensor | None
) -> tiles.Tile:
    biased = key_value is not None or slope is not None
    hopper = q.device.type != "cuda" or torch.cuda.get_device_capability(q.device)[0] >= 9
    return tiles.choose(kernel, q.shape[2], q.element_size(), tile_rows, biased=biased, hopper=hopper)


def _grid(cut: Tensor, q: Tensor, tile: tiles.Tile, tile_rows: int) -> tuple[tuple[int, int], dict[str, Any]]:
    """The programs, for each tile of the schedule and head, x parts of its columns; sizes for the kernels."""
    _, heads, width = q.shape
    split = -(-tile_rows // tile.rows)
    columns = tile.columns or tiles.padded(width)
    sizes = {"H": heads, "D": width, "BD": columns, "BS": tiles.SHARED_STEP, "SPLIT": split}
    return (len(cut) * split * heads, -(-width // columns)), sizes


def _options(tile: tiles.Tile, q: Tensor) -> dict[str, Any]:
    hopper = q.device.type == "cuda" and torch.cuda.get_device_capability(q.device)[0] == 9
    registers = tile.registers if hopper else None
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "maxnreg": registers}


def _slope_gradient(partial: Tensor | None, heads: int, q: Tensor) -> Tensor:
    """[H] from the parts of the programs; empty where it is None."""
    if partial is None:
        return torch.empty(0, dtype=torch.float32, device=q.device)
    return -partial.view(-1, heads).sum(0)
