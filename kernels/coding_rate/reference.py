"""What the operators compute, in plain PyTorch.

`coding_rate` and `subspace_coding_rate` are the definitions, written for reading. The second is the `forward`
of what a CPU runs, whose `backward` is its gradient written out.

Shapes, in all of them: `z` is [B, N, d]; `w` is [B, N, H, P] or packed [T, H, P]; `rate` is [S, H] and
`factor` [S, H, P, P], where S is B for tokens that are not packed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dispatch import outside_autocast

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAST_NORM = 1e-12


@outside_autocast
def coding_rate(z: Tensor, eps: float, normalise: bool) -> Tensor:
    """``1/2 logdet(I + d / (N eps^2) Z Z^T)`` on the smaller side, [B]."""
    _, tokens, width = z.shape
    x = _unit(_wide(z)) if normalise else _wide(z)
    gram = x @ x.mT if tokens < width else x.mT @ x
    return half_log_determinant(_regularised(gram, width / (max(tokens, 1) * eps**2)))[0]


@outside_autocast
def subspace_coding_rate(w: Tensor, cu_seqlens: Tensor | None, eps: float, normalise: bool) -> Tensor:
    """``1/2 logdet(I + P / (N eps^2) W_h^T W_h)`` of every head, [S, H]."""
    return forward(w, cu_seqlens, eps, normalise)[0]


def forward(w: Tensor, cu_seqlens: Tensor | None, eps: float, normalise: bool) -> tuple[Tensor, Tensor]:
    """`rate`, and the Cholesky `factor` that the gradient needs."""
    matrices = []
    for part in _batches(w, cu_seqlens):
        matrices.append(_regularised(_gram(_heads(part, normalise)), _weight(part, eps)))
    if not matrices:
        matrices.append(_wide(w).new_zeros((0, w.shape[-2], w.shape[-1], w.shape[-1])))
    return half_log_determinant(torch.cat(matrices))


def backward(
    drate: Tensor, w: Tensor, cu_seqlens: Tensor | None, factor: Tensor, eps: float, normalise: bool
) -> Tensor:
    """`dw`: of half a log-determinant it is the inverse, times the weight and the tokens."""
    inverse = inverse_of(factor) * drate[..., None, None]
    gradients, first = [], 0
    for part in _batches(w, cu_seqlens):
        x = _heads(part, normalise)
        own = inverse[first : first + part.shape[0]]
        first += part.shape[0]
        few = part.shape[1]
        dx = own[..., :few, :few] @ x if few < part.shape[-1] else x @ own
        dx *= _weight(part, eps)
        if normalise:
            norm = _norm(_wide(part).transpose(1, 2))
            # of a token shorter than the least norm the length is constant
            along = torch.where(norm > _LEAST_NORM, (x * dx).sum(-1, keepdim=True), 0)
            dx = (dx - x * along) / norm
        gradients.append(dx.transpose(1, 2).reshape(-1, *w.shape[-2:]))
    dw = torch.cat(gradients) if gradients else torch.zeros_like(w)
    return dw.reshape(w.shape).to(w.dtype)


def half_log_determinant(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Half the log-determinant of matrices [..., P, P], NaN where they are not positive; their factors."""
    # unlike `cholesky` this does not ask the device whether it went well
    factor, info = torch.linalg.cholesky_ex(matrix)
    half = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.where(info == 0, half, torch.nan), factor


def inverse_of(factor: Tensor) -> Tensor:
    """The inverse of ``factor @ factor.mT``, by the inverse of the factor."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    half = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    return half.mT @ half


def _batches(w: Tensor, cu_seqlens: Tensor | None) -> Iterator[Tensor]:
    """The segments as [B, N, H, P]: all at once where they are of one length."""
    if cu_seqlens is None:
        yield w
        return
    bounds = cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        yield w[start:end].unsqueeze(0)


def _heads(w: Tensor, normalise: bool) -> Tensor:
    """[B, N, H, P] to [B, H, N, P], wide and normalised."""
    x = _wide(w).transpose(1, 2)
    return _unit(x) if normalise else x


def _gram(x: Tensor) -> Tensor:
    """Products of the channels of [..., N, P], or of the tokens where they are fewer, [..., P, P].

    Of few tokens the products of the channels have eigenvalues of zero, which become ones beside very large
    numbers, and the rounding of those would swamp them. Those of the tokens, padded, have the same others.
    """
    missing = x.shape[-1] - x.shape[-2]
    return F.pad(x @ x.mT, (0, missing, 0, missing)) if missing > 0 else x.mT @ x


def _weight(w: Tensor, eps: float) -> float:
    """``P / (N eps^2)`` of [B, N, H, P]."""
    return w.shape[-1] / (max(w.shape[1], 1) * eps**2)


def _regularised(gram: Tensor, weight: float) -> Tensor:
    """``I + weight * gram``."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return identity + weight * gram


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(_LEAST_NORM)


def _unit(x: Tensor) -> Tensor:
    """Each token scaled to length one."""
    return x / _norm(x)


def _wide(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype that it is computed in: float64 as it is, all else in float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
