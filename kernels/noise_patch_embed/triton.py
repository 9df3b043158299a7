"""The kernels, and the functions that launch them.

A row is one token of one cell. A tile is [BM, ...], `BT` tokens of ``BM / BT`` cells, whose patches
[BM, BK] (BK genes, the last few beyond the patch) stay in registers while the program steps through the
channels. Noise is drawn where it is used, four numbers a counter.

The naming system is described in `scdd.kernels._triton`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._philox_triton import normal_quads
from .._triton import dot, load_wide, on_device_of, store_narrow
from . import tiles


@triton.jit
def noise_patch_embed_fwd_kernel(
    x0, signal, noise, weight, bias, position, seed, eps, tokens, noised,
    B, G, N,
    D: tl.constexpr, P: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """``tokens = noised @ weight.T + bias + position`` of ``noised = signal x0 + noise eps``; eps or seed."""
    # [BM]; int64, as a cell begins B * G elements away
    o_m = tl.arange(0, BM)
    o_b = tl.program_id(0).to(tl.int64) * (BM // BT) + o_m // BT
    o_n = tl.program_id(1) * BT + o_m % BT
    m_m = (o_b < B) & (o_n < N)
    o_r = o_b * N + o_n
    # [BM, BK]
    o_k = tl.arange(0, BK)
    o_g = o_n[:, None] * P + o_k[None, :]
    m = m_m[:, None] & (o_k < P)[None, :] & (o_g < G)
    p = o_b[:, None] * G + o_g
    if eps is None:
        QUADS: tl.constexpr = (P + 3) // 4
        o_q = o_r[:, None] * QUADS + tl.arange(0, BK // 4)[None, :]
        b_eps = normal_quads(tl.load(seed), o_q, BM, BK // 4)
    else:
        b_eps = load_wide(eps + p, m)
    b_signal = load_wide(signal + o_b, m_m)
    b_noise = load_wide(noise + o_b, m_m)
    b_x = b_signal[:, None] * load_wide(x0 + p, m) + b_noise[:, None] * b_eps
    # the noise of padding is zero
    b_x = tl.where(m, b_x, 0.0).to(noised.dtype.element_ty)
    tl.store(noised + p, b_x, mask=m)

    for i_d in range(0, D, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = (o_d < D) if D % BD else tl.full([BD], True, tl.int1)
        # [BK, BD]
        b_w = tl.load(
            weight + o_d[None, :] * P + o_k[:, None], mask=m_d[None, :] & (o_k < P)[:, None], other=0.0
        )
        # [BM, BD]
        b_token = dot(b_x, b_w, tl.zeros([BM, BD], tl.float32))
        m_t = m_m[:, None] & m_d[None, :]
        b_token += load_wide(position + o_n[:, None].to(tl.int64) * D + o_d[None, :], m_t)
        b_token += load_wide(bias + o_d, m_d)[None, :]
        store_narrow(tokens + o_r[:, None] * D + o_d[None, :], b_token, m_t)


@triton.jit
def noise_patch_embed_bwd_kernel(
    dtokens, noised, dweight, dbias, dposition,
    B, G, N, steps,
    D: tl.constexpr, P: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
    POSITION: tl.constexpr,
):  # fmt: skip
    """Sums over `steps` tiles of cells: `dweight`, and `dposition` [slices, N, D] or else `dbias`."""
    i_n, i_s = tl.program_id(1), tl.program_id(2).to(tl.int64)
    BC: tl.constexpr = BM // BT
    # [BM], [BD], [BK]
    o_m = tl.arange(0, BM)
    o_n = i_n * BT + o_m % BT
    o_d = tl.program_id(0) * BD + tl.arange(0, BD)
    o_k = tl.arange(0, BK)
    m_d = o_d < D
    # [BM, BK]
    o_g = o_n[:, None] * P + o_k[None, :]
    m_g = (o_k < P)[None, :] & (o_g < G) & (o_n < N)[:, None]
    b_sum = tl.zeros([BM, BD], tl.float32)
    b_dweight = tl.zeros([BD, BK], tl.float32)

    last = tl.minimum((i_s + 1) * steps * BC, B)
    for i_b in range(i_s * steps * BC, last, BC):
        o_b = i_b + o_m // BT
        m_m = (o_b < B) & (o_n < N)
        # [BM, BD], [BM, BK]
        b_dtoken = tl.load(
            dtokens + (o_b * N + o_n)[:, None] * D + o_d[None, :], mask=m_m[:, None] & m_d[None, :], other=0.0
        )
        b_x = tl.load(noised + o_b[:, None] * G + o_g, mask=m_g & (o_b < B)[:, None], other=0.0)
        b_sum += b_dtoken.to(tl.float32)
        b_dweight = dot(tl.trans(b_dtoken), b_x, b_dweight)

    i_program = i_s * tl.num_programs(1) + i_n
    p = (i_program * D + o_d)[:, None] * P + o_k[None, :]
    tl.store(dweight + p, b_dweight, mask=m_d[:, None] & (o_k < P)[None, :])
    if POSITION:
        # [BT, BD]
        b_sum = tl.sum(tl.reshape(b_sum, [BC, BT, BD]), 0)
        o_n = i_n * BT + tl.arange(0, BT)
        p = (i_s * N + o_n)[:, None] * D + o_d[None, :]
        tl.store(dposition + p, b_sum, mask=(o_n < N)[:, None] & m_d[None, :])
    else:
        tl.store(dbias + i_program * D + o_d, tl.sum(b_sum, 0), mask=m_d)


@triton.jit
def noise_patch_embed_dx_kernel(
    dtokens, signal, weight, dx0,
    B, G, N,
    D: tl.constexpr, P: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """``dx0 = signal (dtokens @ weight)``, each patch where its genes are."""
    # [BM]
    o_m = tl.arange(0, BM)
    o_b = tl.program_id(0).to(tl.int64) * (BM // BT) + o_m // BT
    o_n = tl.program_id(1) * BT + o_m % BT
    m_m = (o_b < B) & (o_n < N)
    o_k = tl.arange(0, BK)
    b_dx = tl.zeros([BM, BK], tl.float32)
    for i_d in range(0, D, BD):
        o_d = i_d + tl.arange(0, BD)
        # [BM, BD], [BD, BK]
        m = m_m[:, None] & (o_d < D)[None, :]
        b_dtoken = tl.load(dtokens + (o_b * N + o_n)[:, None] * D + o_d[None, :], mask=m, other=0.0)
        m = (o_d < D)[:, None] & (o_k < P)[None, :]
        b_w = tl.load(weight + o_d[:, None] * P + o_k[None, :], mask=m, other=0.0)
        b_dx = dot(b_dtoken, b_w, b_dx)
    b_dx *= load_wide(signal + o_b, m_m)[:, None]
    o_g = o_n[:, None] * P + o_k[None, :]
    m = m_m[:, None] & (o_k < P)[None, :] & (o_g < G)
    store_narrow(dx0 + o_b[:, None] * G + o_g, b_dx, m)


def noise_patch_embed_forward(
    x0: Tensor, signal: Tensor, noise: Tensor, weight: Tensor, bias: Tensor, position: Tensor,
    seed: Tensor | None, eps: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the forward kernel; see `reference.noise_patch_embed_forward`."""
    cells, genes = x0.shape
    patches, width = position.shape
    tokens = torch.empty((cells, patches, width), dtype=weight.dtype, device=x0.device)
    noised = torch.empty((cells, genes), dtype=weight.dtype, device=x0.device)
    if noised.numel():
        tile = tiles.choose(cells, width, weight.element_size())
        with on_device_of(x0):
            noise_patch_embed_fwd_kernel[_grid(tile, cells, patches)](
                x0, signal, noise, weight, bias, position, seed, eps, tokens, noised,
                cells, genes, patches, **_sizes(tile, weight), num_warps=tile.num_warps,
            )  # fmt: skip
    return tokens, noised


def noise_patch_embed_backward(
    dtokens: Tensor, noised: Tensor, weight: Tensor, with_position: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel of the sums and add its parts; see `reference.noise_patch_embed_backward`."""
    cells, patches, width = dtokens.shape
    tile = tiles.choose(cells, width, weight.element_size())
    plan = tiles.schedule(cells, patches, width, tile)
    grid = (triton.cdiv(width, tile.width), triton.cdiv(patches, tile.tokens), plan.slices)
    wide: dict[str, Any] = {"dtype": torch.float32, "device": weight.device}
    dweight = torch.empty((grid[1] * grid[2], *weight.shape), **wide)
    dbias = None if with_position else torch.empty((grid[1] * grid[2], width), **wide)
    dposition = torch.empty((plan.slices, patches, width), **wide) if with_position else None
    with on_device_of(dtokens):
        noise_patch_embed_bwd_kernel[grid](
            dtokens, noised, dweight, dbias, dposition,
            cells, noised.shape[1], patches, plan.steps,
            **_sizes(tile, weight), POSITION=with_position, num_warps=tile.num_warps,
        )  # fmt: skip
    if dposition is None:
        assert dbias is not None
        return dweight.sum(0).to(weight.dtype), dbias.sum(0).to(weight.dtype), weight.new_empty(0)
    total = dposition.sum(0)
    return dweight.sum(0).to(weight.dtype), total.sum(0).to(weight.dtype), total.to(weight.dtype)


def noise_patch_embed_input_gradient(dtokens: Tensor, signal: Tensor, weight: Tensor, genes: int) -> Tensor:
    """Launch the kernel of `dx0`; see `reference.noise_patch_embed_input_gradient`."""
    cells, patches, width = dtokens.shape
    dx0 = torch.empty((cells, genes), dtype=torch.float32, device=dtokens.device)
    if dx0.numel():
        tile = tiles.choose(cells, width, weight.element_size())
        with on_device_of(dtokens):
            noise_patch_embed_dx_kernel[_grid(tile, cells, patches)](
                dtokens, signal, weight, dx0,
                cells, genes, patches, **_sizes(tile, weight), num_warps=tile.num_warps,
            )  # fmt: skip
    return dx0


def _grid(tile: tiles.Tile, cells: int, patches: int) -> tuple[int, int]:
    return triton.cdiv(cells, tile.cells), triton.cdiv(patches, tile.tokens)


def _sizes(tile: tiles.Tile, weight: Tensor) -> dict[str, int]:
    """What the kernels know of the sizes when they are compiled."""
    width, patch = weight.shape
    rows = tile.tokens * tile.cells
    return {
        "D": width, "P": patch, "BT": tile.tokens, "BM": rows, "BK": tiles.patch_width(patch), "BD":
        tile.width,
    }  # fmt: skip
