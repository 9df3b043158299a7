"""What the operator computes, in plain PyTorch.

`denoise_loss` is the definition, written for reading; the pair below is what a CPU runs, with the gradient
written out.

Shapes, in both: `h` is [B, N, D]; `shift` and `scale` [B, D]; `weight` [P, D]; `bias` [P]; `x0` and `eps`
[B, G]; `signal`, `noise` and `cell_weight` [B].

The gradient through the norm needs, for each row, the mean over D of ``dnormed = (r @ weight)(1 + scale)``
and of ``dnormed * normed``, where r is the weighted residual of that row. Both are sums over the few genes of
a patch of what the forward has at hand: ``r . (weight @ (1 + scale))`` and ``r . (weight @ ((1 + scale)
normed))``, the latter being the prediction less what `shift` and `bias` gave. So the forward keeps those two
means, `level` and `along`, and the backward sees each element of `h` once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _philox
from .._dispatch import outside_autocast


@outside_autocast
def denoise_loss(
    h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor,
    x0: Tensor, signal: Tensor, noise: Tensor, cell_weight: Tensor | None,
    seed: Tensor | None, eps: Tensor | None, prediction: str, norm_eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``mean_b w[b] mean_g (prediction - target)^2`` and the inner mean of each cell."""
    wide = _wide(h)
    centred = h.to(wide) - h.to(wide).mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + norm_eps)
    y = normed * (1 + scale.to(wide)[:, None]) + shift.to(wide)[:, None]
    # the dtype of a matrix product's operands
    y = y.to(h.dtype).to(wide)
    predicted = (y @ weight.to(wide).mT + bias.to(wide)).flatten(1)[:, : x0.shape[1]]
    error = predicted - target(x0, signal, noise, seed, eps, prediction, weight.shape[0], wide)
    cells = error.square().mean(1)
    loss = cells if cell_weight is None else cells * cell_weight.to(wide)
    return loss.mean(), cells.detach()


def target(
    x0: Tensor, signal: Tensor, noise: Tensor, seed: Tensor | None, eps: Tensor | None, prediction: str,
    patch: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """What the network should say, [B, G]; v as in Salimans and Ho 2022."""
    if prediction == "x0":
        return x0.to(dtype)
    if eps is None:
        assert seed is not None
        eps = _philox.patch_noise(seed, x0.shape[0], x0.shape[1], patch, dtype)
    if prediction == "eps":
        return eps.to(dtype)
    return signal.to(dtype)[:, None] * eps.to(dtype) - noise.to(dtype)[:, None] * x0.to(dtype)


def denoise_loss_forward(
    h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor,
    x0: Tensor, signal: Tensor, noise: Tensor, cell_weight: Tensor | None,
    seed: Tensor | None, eps: Tensor | None, prediction: str, norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`loss`, `cells` [B], the weighted `residual` [B, N, P] and `statistics` [4, B, N]."""
    wide = _wide(h)
    gain, matrix = 1 + scale.to(wide), weight.to(wide)
    normed, mean, rstd = torch.native_layer_norm(h.to(wide), h.shape[-1:], None, None, norm_eps)
    projected = F.linear((normed * gain[:, None]).to(h.dtype).to(wide), matrix)
    predicted = projected + (shift.to(wide) @ matrix.mT + bias.to(wide))[:, None]
    genes = x0.shape[1]
    aim = target(x0, signal, noise, seed, eps, prediction, weight.shape[0], wide)
    residual = predicted.flatten(1)[:, :genes] - aim
    of_cells = residual.square().mean(1)
    loss = of_cells
    if cell_weight is not None:
        loss = of_cells * cell_weight.to(wide)
        residual = residual * cell_weight.to(wide)[:, None]
    residual = F.pad(residual, (0, h.shape[1] * weight.shape[0] - genes)).view_as(projected).to(h.dtype)
    level = torch.einsum("bnp,bp->bn", residual.to(wide), gain @ matrix.mT) / h.shape[-1]
    along = (residual.to(wide) * projected).sum(-1) / h.shape[-1]
    statistics = torch.stack((mean.squeeze(-1), rstd.squeeze(-1), level, along))
    return loss.mean(), of_cells, residual, statistics


def denoise_loss_backward(
    dloss: Tensor, h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, residual: Tensor,
    statistics: Tensor, genes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`dh`, `dshift`, `dscale`, `dweight` and `dbias`."""
    wide = _wide(h)
    factor = dloss.to(wide) * (2 / max(1, h.shape[0] * genes))
    gain, matrix, error = 1 + scale.to(wide), weight.to(wide), residual.to(wide)
    mean, rstd, level, along = statistics.unsqueeze(-1)
    normed = (h.to(wide) - mean).mul_(rstd)
    dh = (error @ matrix).mul_(gain[:, None]).sub_(level).sub_(normed * along).mul_(rstd).mul_(factor)
    # [B, P, D] and [B, P]: all other gradients are sums of these over the genes of a patch or over cells
    outer, total = error.mT @ normed, error.sum(1)
    dscale = (outer * matrix).sum(1) * factor
    dshift = total @ matrix * factor
    dweight = ((outer * gain[:, None]).sum(0) + total.mT @ shift.to(wide)) * factor
    dbias = total.sum(0) * factor
    gradients = (dh, dshift, dscale, dweight, dbias)
    return tuple(gradient.to(h.dtype) for gradient in gradients)  # type: ignore[return-value]


def _wide(h: Tensor) -> torch.dtype:
    """The dtype that is computed in."""
    return torch.promote_types(h.dtype, torch.float32)
