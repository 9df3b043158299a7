"""What the operator computes, in plain PyTorch.

`single_step_denoise` is the definition, written for reading. `denoise_forward` and `denoise_backward` are the
same mathematics with the gradient to the codes written out; they are what a CPU runs. What a CPU spends its
time on are the matrix products, so the forward keeps the hidden layer and the normed rows of every block, and
the backward multiplies only by transposed weights: no product is computed twice, and none for a weight.

Shapes, in all of them: `z`, `eps` and the results are [B, d]; `condition` is [B] or None, where row `i` has
modulation `i`; `modulation` is [C, (3 L + 2) W]: shift, scale and gate of each of the L blocks, then shift
and scale of the last norm; `signal` and `noise` are numbers or [B]; `mean` and `std` are [d].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .._dispatch import outside_autocast
from .._philox import philox_normal
from .weights import DenoiserWeights

if TYPE_CHECKING:
    from collections.abc import Sequence


@outside_autocast
def single_step_denoise(
    z: Tensor, eps: Tensor | None, seed: Tensor | None, condition: Tensor | None, modulation: Tensor,
    weights: DenoiserWeights, signal_rows: Tensor | None, noise_rows: Tensor | None,
    signal: float, noise: float, mean: Tensor | None, std: Tensor | None, kind: str, norm_eps: float,
) -> Tensor:  # fmt: skip
    """The clean latent of each code, in one call of the network."""
    latent, (depth, _, width) = z.shape[1], weights.w1.shape
    rows = modulation if condition is None else modulation[condition.long()]
    piece = [_wide(row) for row in rows.split(width, dim=1)]
    w = DenoiserWeights(*(_wide(part) for part in weights))
    level, share = _levels(signal_rows, noise_rows, signal, noise)
    z_t = _noised(z, eps, seed, level, share)
    h = F.linear(z_t, w.w_in[:, :latent], w.b_in)
    for block in range(depth):
        shift, scale, gate = piece[3 * block : 3 * block + 3]
        y = _normed(h, norm_eps) * (1 + scale) + shift
        hidden = F.silu(F.linear(y, w.w1[block], w.b1[block]))
        h = h + gate * F.linear(hidden, w.w2[block], w.b2[block])
    y = _normed(h, norm_eps) * (1 + piece[-1]) + piece[-2]
    x = _clean(kind, F.linear(y, w.w_out[:latent], w.b_out[:latent]), z_t, level, share)
    if std is not None and mean is not None:
        x = x * _wide(std) + _wide(mean)
    return x.to(z.dtype)


def denoise_forward(
    z: Tensor, eps: Tensor | None, seed: Tensor | None, condition: Tensor | None, modulation: Tensor,
    weights: Sequence[Tensor], signal_rows: Tensor | None, noise_rows: Tensor | None,
    signal: float, noise: float, mean: Tensor | None, std: Tensor | None, kind: str, norm_eps: float,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """The clean latents and, if `keep`, what the gradient needs.

    That is, in this order: the normed rows [B, W] and their reciprocal deviation [B, 1] for each of the L + 1
    norms, and the hidden layer before its activation [B, H] for each block.
    """
    w, latent, dtype = DenoiserWeights(*weights), z.shape[1], weights[0].dtype
    depth, _, width = w.w1.shape
    level, share = _levels(signal_rows, noise_rows, signal, noise)
    z_t = _noised(z, eps, seed, level, share)
    piece = _Pieces(modulation, condition, width)
    norms, before = [], []
    h = F.linear(z_t.to(dtype), w.w_in[:, :latent], w.b_in)
    for block in range(depth + 1):
        normed, _, rstd = torch.native_layer_norm(_wide(h), (width,), None, None, norm_eps)
        y = torch.addcmul(normed, normed, piece(3 * block + 1)).add_(piece(3 * block)).to(dtype)
        norms.append((normed.to(dtype), rstd))
        if block < depth:
            hidden = F.linear(y, w.w1[block], w.b1[block])
            before.append(hidden)
            branch = F.linear(F.silu(hidden, inplace=not keep), w.w2[block], w.b2[block])
            h = torch.addcmul(_wide(h), _wide(branch), piece(3 * block + 2)).to(dtype)
    x = _clean(kind, _wide(F.linear(y, w.w_out[:latent], w.b_out[:latent])), z_t, level, share)
    if std is not None and mean is not None:
        x = x * _wide(std) + _wide(mean)
    kept = [*(rows for rows, _ in norms), *(rstd for _, rstd in norms), *before] if keep else []
    return x.to(z.dtype), kept


def denoise_backward(
    dout: Tensor, condition: Tensor | None, modulation: Tensor, weights: Sequence[Tensor],
    signal_rows: Tensor | None, noise_rows: Tensor | None, std: Tensor | None,
    signal: float, noise: float, kind: str, norm_eps: float,
    kept: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """Gradient of the codes."""
    w, latent, dtype = DenoiserWeights(*weights), dout.shape[1], weights[0].dtype
    depth, _, width = w.w1.shape
    level, share = _levels(signal_rows, noise_rows, signal, noise)
    dx = _wide(dout) if std is None else _wide(dout) * _wide(std)
    piece = _Pieces(modulation, condition, width)
    rstd, before = kept[depth + 1 :], kept[2 * depth + 2 :]
    dy = (_share_of_output(kind, level, share) * dx).to(dtype) @ w.w_out[:latent]
    dh = torch.zeros((), dtype=dx.dtype)
    for block in range(depth, -1, -1):
        dnormed, normed = torch.addcmul(_wide(dy), _wide(dy), piece(3 * block + 1)), _wide(kept[block])
        zero = torch.zeros_like(rstd[block])
        # rows that are normed already have mean 0; their own deviation enters as a factor
        through, _, _ = torch.ops.aten.native_layer_norm_backward(
            dnormed, normed, (width,), zero, torch.ones_like(zero), None, None, [True, False, False]
        )
        dh = torch.addcmul(dh, through, rstd[block])
        if block:
            branch = (dh * piece(3 * block - 1)).to(dtype) @ w.w2[block - 1]
            dy = torch.ops.aten.silu_backward(branch, before[block - 1]) @ w.w1[block - 1]
    dz = _wide(dh.to(dtype) @ w.w_in[:, :latent])
    return (level * (dz + _share_of_noised(kind, level) * dx)).to(dout.dtype)


def _noised(
    z: Tensor, eps: Tensor | None, seed: Tensor | None, level: Tensor | float, share: Tensor | float
) -> Tensor:
    if eps is not None:
        return level * _wide(z) + share * _wide(eps)
    if seed is not None:
        return level * _wide(z) + share * philox_normal(seed, 0, z.shape, _wide(z).dtype)
    return level * _wide(z)


def _normed(h: Tensor, norm_eps: float) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + norm_eps)


def _clean(kind: str, output: Tensor, z_t: Tensor, signal: Tensor | float, noise: Tensor | float) -> Tensor:
    if kind == "v":
        return signal * z_t - noise * output
    return (z_t - noise * output) / signal if kind == "eps" else output


def _share_of_output(kind: str, signal: Tensor | float, noise: Tensor | float) -> Tensor | float:
    """Derivative of the clean latent in what the network says."""
    return {"v": -noise, "eps": -noise / signal, "x0": 1.0}[kind]


def _share_of_noised(kind: str, signal: Tensor | float) -> Tensor | float:
    """Derivative of the clean latent in `z_t`, the network held fixed."""
    return {"v": signal, "eps": 1 / signal, "x0": 0.0}[kind]


def _levels(
    signal_rows: Tensor | None, noise_rows: Tensor | None, signal: float, noise: float
) -> tuple[Tensor | float, Tensor | float]:
    if signal_rows is None or noise_rows is None:
        return signal, noise
    return _wide(signal_rows)[:, None], _wide(noise_rows)[:, None]


class _Pieces:
    """Piece `number` of the modulation of every row, [B, W], gathered when it is asked for."""

    def __init__(self, modulation: Tensor, condition: Tensor | None, width: int):
        self.pieces, self.condition = modulation.split(width, dim=1), condition

    def __call__(self, number: int) -> Tensor:
        piece = _wide(self.pieces[number])
        return piece if self.condition is None else piece.index_select(0, self.condition)


def _wide(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype that it is computed in: float64 as it is, all else in float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
