"""The kernels, and the functions that launch them.

Both samples are centred into one buffer z of N rows, x before y, padded with zeros to whole steps of the
loop over features, so that no load needs a mask. A tile holds rows of one sample on each side; rows past the
end are read again from the last one and masked where they are counted.

The squared lengths of the rows are the diagonal of the very product that the distances are made of. So equal
rows are at distance exactly zero, and what the tensor cores cut off each sum cancels between near rows.

The naming system is described in `scdd.kernels._triton`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import dot, on_device_of
from . import tiles
from .reference import ROUNDING, derivative_factors, joint_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

# Room for the rows of the matrix of pairs that are multiplied with the samples at a time.
MATRIX_BYTES = 64 * 2**20

# Rows of the matrix of pairs begin on a multiple of this many elements, so that stores are wide.
_ALIGNED = 16

_ROUNDING = tl.constexpr(ROUNDING)


@triton.jit
def gram(z, r_m, r_n, G, BM: tl.constexpr, BN: tl.constexpr, BG: tl.constexpr):
    """Inner products of the rows `r_m` and `r_n` of z, [BM, BN]."""
    o_g = tl.arange(0, BG)
    # [BM, BG], [BG, BN]
    p_m = r_m.to(tl.int64)[:, None] * G + o_g[None, :]
    p_n = r_n.to(tl.int64)[None, :] * G + o_g[:, None]
    b_gram = tl.zeros([BM, BN], tl.float32)
    for i_g in range(0, G, BG):
        b_gram = dot(tl.load(z + p_m + i_g), tl.load(z + p_n + i_g), b_gram, "tf32x3")
    return b_gram


@triton.jit
def squared_distances(z, lengths, r_m, r_n, G, BM: tl.constexpr, BN: tl.constexpr, BG: tl.constexpr):
    """``|z_i - z_j|^2`` of the rows `r_m` and `r_n`, [BM, BN]; rounding counts as zero, NaN stays."""
    b_gram = gram(z, r_m, r_n, G, BM, BN, BG)
    b_lengths = tl.load(lengths + r_m)[:, None] + tl.load(lengths + r_n)[None, :]
    b_d2 = b_lengths - 2.0 * b_gram
    return tl.where(b_d2 <= b_lengths * _ROUNDING, 0.0, b_d2)


@triton.jit
def rows_of_tile(i_t, tiles_x, n, N, B: tl.constexpr):
    """The rows of tile `i_t` of the joint sample, [B], and the end of its sample."""
    if i_t < tiles_x:
        first = i_t * B
        end = n
    else:
        first = n + (i_t - tiles_x) * B
        end = N
    return first + tl.arange(0, B), end


@triton.jit
def lengths_kernel(z, lengths, N, G, B: tl.constexpr, BG: tl.constexpr):
    """Squared length of each row of z, from the diagonal of its tile of the Gram matrix."""
    # [B]
    o_m = tl.program_id(0) * B + tl.arange(0, B)
    r_m = tl.minimum(o_m, N - 1)
    b_gram = gram(z, r_m, r_m, G, B, B, BG)
    diagonal = tl.arange(0, B)[:, None] == tl.arange(0, B)[None, :]
    tl.store(lengths + o_m, tl.sum(tl.where(diagonal, b_gram, 0.0), 1), mask=o_m < N)


@triton.jit
def pair_sums_kernel(
    z, lengths, weights, rates, sums, n, N, G, tiles_x, tiles, height, width,
    K: tl.constexpr, B: tl.constexpr, BG: tl.constexpr, GROUP: tl.constexpr,
    DOUBLING: tl.constexpr, DISTANCE: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Sums over the pairs i < j of one tile: ``sums[tile i, tile j, k]``, [tiles, tiles, K]."""
    # columns of the folded triangle, `GROUP` rows of it at a time: neighbours in time share rows of z
    i_p = tl.program_id(0)
    i_first = i_p // (GROUP * width) * GROUP
    grouped = tl.minimum(height - i_first, GROUP)
    i_r = i_first + i_p % (GROUP * width) % grouped
    i_c = i_p % (GROUP * width) // grouped
    i_m = tl.where(i_c > i_r, i_r, width - 2 - i_r)
    i_n = tl.where(i_c > i_r, i_c - 1, width - 2 - i_c)
    if i_n >= tiles:
        return
    # [B]
    o_m, end_m = rows_of_tile(i_m, tiles_x, n, N, B)
    o_n, end_n = rows_of_tile(i_n, tiles_x, n, N, B)
    r_m, r_n = tl.minimum(o_m, end_m - 1), tl.minimum(o_n, end_n - 1)
    # [B, B]; a pair that does not count is at the distance where all functions are zero
    b_d2 = squared_distances(z, lengths, r_m, r_n, G, B, B, BG)
    m = (o_m[:, None] < o_n[None, :]) & (o_m < end_m)[:, None] & (o_n < end_n)[None, :]
    b_d2 = tl.where(m, b_d2, 0.0 if DISTANCE else float("inf"))
    if WEIGHTED:
        b_w = tl.load(weights + r_m)[:, None] * tl.load(weights + r_n)[None, :]
    p = (i_m.to(tl.int64) * tiles + i_n) * K
    if DISTANCE:
        b_kernel = tl.sqrt(b_d2)
        tl.store(sums + p, tl.sum(b_kernel * b_w if WEIGHTED else b_kernel))
    elif DOUBLING:
        b_kernel = tl.exp2(-tl.load(rates) * b_d2)
        for k in tl.static_range(K):
            tl.store(sums + p + k, tl.sum(b_kernel * b_w if WEIGHTED else b_kernel))
            b_kernel *= b_kernel
    else:
        for k in range(K):
            b_kernel = tl.exp2(-tl.load(rates + k) * b_d2)
            tl.store(sums + p + k, tl.sum(b_kernel * b_w if WEIGHTED else b_kernel))


@triton.jit
def pair_matrix_kernel(
    z, lengths, rates, factors, matrix, first, last, n, N, G, stride, tiles_x, rows_of_tiles,
    K: tl.constexpr, B: tl.constexpr, BG: tl.constexpr, DOUBLING: tl.constexpr, DISTANCE: tl.constexpr,
    RECIPROCAL: tl.constexpr,
):  # fmt: skip
    """Rows `first` to `last`, of one sample, of ``sum_k factors[kind, k] k(|z_i - z_j|^2)``."""
    i_m, i_n = tl.program_id(0) % rows_of_tiles, tl.program_id(0) // rows_of_tiles
    # [B]
    o_m = first + i_m * B + tl.arange(0, B)
    o_n, end_n = rows_of_tile(i_n, tiles_x, n, N, B)
    r_m, r_n = tl.minimum(o_m, last - 1), tl.minimum(o_n, end_n - 1)
    # [B, B]
    b_d2 = squared_distances(z, lengths, r_m, r_n, G, B, B, BG)
    kind = tl.where(first >= n, 1, 0) + tl.where(i_n >= tiles_x, 1, 0)
    factors += kind * K
    if DISTANCE:
        b_kernel = tl.where(b_d2 == 0, 0.0, tl.rsqrt(b_d2)) if RECIPROCAL else tl.sqrt(b_d2)
        b_matrix = tl.load(factors) * b_kernel
    elif DOUBLING:
        b_kernel = tl.exp2(-tl.load(rates) * b_d2)
        b_matrix = tl.load(factors) * b_kernel
        for k in tl.static_range(1, K):
            b_kernel *= b_kernel
            b_matrix += tl.load(factors + k) * b_kernel
    else:
        b_matrix = tl.zeros([B, B], tl.float32)
        for k in range(K):
            b_matrix += tl.load(factors + k) * tl.exp2(-tl.load(rates + k) * b_d2)
    b_matrix = tl.where(o_m[:, None] == o_n[None, :], 0.0, b_matrix)
    p = (o_m - first).to(tl.int64)[:, None] * stride + o_n[None, :]
    m = (o_m < last)[:, None] & (o_n < end_n)[None, :]
    tl.store(matrix + p, b_matrix.to(matrix.dtype.element_ty), mask=m)


class _Joint(NamedTuple):
    """Both samples, centred and padded [N, G], their squared lengths and weights [N], and their cut.

    `z` is the first N rows of `padded`, whose rows are a multiple of 16; zeros fill it.
    """

    padded: Tensor
    z: Tensor
    lengths: Tensor
    weights: Tensor | None
    rows_x: int
    tile: tiles.Tile
    plan: tiles.Triangle


def forward(
    x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None, rates: Tensor, form: str
) -> Tensor:
    """Launch the sums of all tiles and add them in float64; see `reference.pair_sums`."""
    joint = _join(x, y, weights_x, weights_y)
    plan, tile = joint.plan, joint.tile
    # the half below the diagonal is never written
    sums = torch.zeros((plan.tiles, plan.tiles, len(rates)), dtype=torch.float32, device=x.device)
    with on_device_of(x):
        pair_sums_kernel[(plan.height * plan.width,)](
            joint.z, joint.lengths, joint.weights, rates, sums,
            len(x), len(joint.z), joint.z.shape[1], plan.tiles_x, plan.tiles, plan.height, plan.width,
            K=len(rates), B=tile.block, BG=tile.depth, GROUP=tiles.GROUP,
            DOUBLING=form == "doubling", DISTANCE=form == "distance", WEIGHTED=joint.weights is not None,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    t = plan.tiles_x
    quarters = (sums[:t, :t], sums[:t, t:], sums[t:, t:])
    return torch.stack([quarter.sum((0, 1), dtype=torch.float64) for quarter in quarters])


def backward(
    dsums: Tensor, x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None,
    rates: Tensor, form: str, need_x: bool, need_y: bool, need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch rows of the matrix of slopes and multiply them with the samples; see `blocks.backward`."""
    joint = _join(x, y, weights_x, weights_y)
    factors = derivative_factors(dsums, rates, form).float()
    # slopes have the range of bfloat16, not of float16
    dtype = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
    # with the rows of zeros beside the last: those columns of the matrix are zeros too
    z = joint.padded[:, : x.shape[1]].to(dtype)
    grads = []
    for rows, needed in ((slice(0, len(x)), need_x), (slice(len(x), len(joint.z)), need_y)):
        dz = torch.empty(
            (rows.stop - rows.start if needed else 0, x.shape[1]), dtype=x.dtype, device=x.device
        )
        for part, matrix in _matrices(joint, rates, factors, form, rows if needed else slice(0, 0), dtype):
            if joint.weights is not None:
                matrix[:, : len(joint.z)] *= joint.weights
            # of the rounded slopes, so that what is rounded away can not push a row
            push = matrix.sum(1, keepdim=True, dtype=torch.float32)
            moved = torch.addcmul(-(matrix @ z).float(), push, z[part].float())
            if joint.weights is not None:
                moved *= joint.weights[part, None]
            dz[part.start - rows.start : part.stop - rows.start] = moved
        grads.append(dz if needed else x.new_empty(0))
    dweights = _weight_gradient(dsums.float(), joint, rates, form) if need_weights else x.new_empty(0)
    dweights_x, dweights_y = dweights.split([len(x), len(y)] if need_weights else [0, 0])
    return grads[0], grads[1], dweights_x.clone(), dweights_y.clone()


def products(x: Tensor, y: Tensor, rates: Tensor, form: str, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Launch rows of the matrix of pairs and multiply them with `labels`; see `reference.products`."""
    joint = _join(x, y, None, None)
    factors = torch.ones((3, len(rates)), dtype=torch.float32, device=x.device)
    out, columns = torch.empty_like(labels), labels.new_zeros(len(labels))
    for rows in (slice(0, len(x)), slice(len(x), len(labels))):
        for part, matrix in _matrices(joint, rates, factors, form, rows, torch.float32, slopes=False):
            square = matrix[:, : len(labels)].to(labels.dtype)
            torch.mm(square, labels, out=out[part])
            columns += square.sum(0)
    return out, columns


def _join(x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None) -> _Joint:
    tile = tiles.choose(x.element_size())
    genes, rows = x.shape[1], len(x) + len(y)
    shape = (triton.cdiv(rows, _ALIGNED) * _ALIGNED, triton.cdiv(genes, tile.depth) * tile.depth)
    z = torch.empty(shape, dtype=x.dtype, device=x.device)
    centre = joint_mean(x, y)
    torch.sub(x, centre, out=z[: len(x), :genes])
    torch.sub(y, centre, out=z[len(x) : rows, :genes])
    z[:, genes:] = 0
    z[rows:] = 0
    lengths = torch.empty(rows, dtype=torch.float32, device=x.device)
    with on_device_of(x):
        lengths_kernel[(triton.cdiv(rows, tile.block),)](
            z, lengths, rows, z.shape[1], B=tile.block, BG=tile.depth,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    weights = None if weights_x is None or weights_y is None else torch.cat((weights_x, weights_y))
    return _Joint(z, z[:rows], lengths, weights, len(x), tile, tiles.triangle(len(x), len(y), tile))


def _matrices(
    joint: _Joint, rates: Tensor, factors: Tensor, form: str, rows: slice, dtype: torch.dtype,
    *, slopes: bool = True,
) -> Iterator[tuple[slice, Tensor]]:  # fmt: skip
    """Some of `rows` at a time and their part of the matrix, [rows, N], overwritten by the next."""
    tile, total = joint.tile, len(joint.z)
    stride = len(joint.padded)
    share = MATRIX_BYTES // (stride * dtype.itemsize * tile.block) * tile.block
    share = max(tile.block, min(share, triton.cdiv(rows.stop - rows.start, tile.block) * tile.block))
    buffer = torch.empty((share, stride), dtype=dtype, device=joint.z.device)
    buffer[:, total:] = 0
    for first in range(rows.start, rows.stop, share):
        last = min(first + share, rows.stop)
        height = triton.cdiv(last - first, tile.block)
        with on_device_of(buffer):
            pair_matrix_kernel[(height * joint.plan.tiles,)](
                joint.z, joint.lengths, rates, factors, buffer,
                first, last, joint.rows_x, total, joint.z.shape[1], stride, joint.plan.tiles_x, height,
                K=len(rates), B=tile.block, BG=tile.depth, DOUBLING=form == "doubling",
                DISTANCE=form == "distance", RECIPROCAL=slopes,
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
        yield slice(first, last), buffer[: last - first]


def _weight_gradient(dsums: Tensor, joint: _Joint, rates: Tensor, form: str) -> Tensor:
    """``sum_j w_j sum_k dsums[kind, k] k(|z_i - z_j|^2)``, [N]."""
    assert joint.weights is not None
    dweights = torch.empty_like(joint.weights)
    for rows in (slice(0, joint.rows_x), slice(joint.rows_x, len(dweights))):
        for part, matrix in _matrices(joint, rates, dsums, form, rows, torch.float32, slopes=False):
            torch.mv(matrix[:, : len(dweights)], joint.weights, out=dweights[part])
    return dweights
