"""What the operator computes, in plain PyTorch.

`token_statistics_attention` is the definition, written for reading. The `forward` and `backward` pair is the
same mathematics with its gradient written out; it is what a CPU runs.

Shapes, in all of them: `w`, `out` and their gradients are [B, N, H, P] or packed [T, H, P]; `square` and
`moment` are [S, H, P] and `mass` [S, H], where S is B for tokens that are not packed; `temperature` is [H].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._dispatch import outside_autocast

_LEAST_NORM = 1e-12
_LEAST_MASS = 1e-8


@outside_autocast
def token_statistics_attention(w: Tensor, temperature: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """``-w * membership / (1 + moment)``; see `api.token_statistics_attention`."""
    return forward(w, temperature, cu_seqlens)[0]


def forward(
    w: Tensor, temperature: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`out`, and the `square`, `moment` and `mass` that the gradient needs."""
    tokens = _Tokens(w, cu_seqlens)
    wide = _wide(w)
    squared = wide.square()
    square = tokens.sum(squared)
    _, membership = _memberships(tokens, squared, square, _wide_as(temperature, wide))
    mass = tokens.sum(membership) + _LEAST_MASS
    moment = tokens.sum(membership.unsqueeze(-1) * squared) / mass.unsqueeze(-1)
    out = -wide * membership.unsqueeze(-1) / (1 + tokens.spread(moment))
    return out.to(w.dtype), square, moment, mass


def backward(
    dout: Tensor, w: Tensor, temperature: Tensor, cu_seqlens: Tensor | None,
    square: Tensor, moment: Tensor, mass: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`dw` and `dtemperature`."""
    tokens = _Tokens(w, cu_seqlens)
    wide, dout = _wide(w), _wide(dout)
    squared, weight = wide.square(), _weight(square)
    tau = _wide_as(temperature, wide)
    alignment, membership = _memberships(tokens, squared, square, tau)

    gain = 1 / (1 + moment)
    # the moment is a quotient: its numerator, the weighted sum of squares, and `mass`
    dmoment = gain.square() * tokens.sum(dout * wide * membership.unsqueeze(-1))
    dnumerator = dmoment / mass.unsqueeze(-1)
    dmass = -(dnumerator * moment).sum(-1)

    spread_gain, spread_dnumerator = tokens.spread(gain), tokens.spread(dnumerator)
    dmembership = (wide * (spread_dnumerator * wide - spread_gain * dout)).sum(-1) + tokens.spread(dmass)
    dlogit = membership * (dmembership - (membership * dmembership).sum(-1, keepdim=True))
    dtemperature = (dlogit * alignment).flatten(0, -2).sum(0)
    dalignment = (dlogit * tau).unsqueeze(-1)

    # of 1 / square, which is constant where the norm is at its least
    dsquare = torch.where(square > _LEAST_NORM**2, -weight * (weight * tokens.sum(dalignment * squared)), 0)
    through_square = spread_dnumerator * membership.unsqueeze(-1)
    through_square += dalignment * tokens.spread(weight) + tokens.spread(dsquare)
    dw = 2 * wide * through_square - dout * membership.unsqueeze(-1) * spread_gain
    return dw.to(w.dtype), dtemperature.to(temperature.dtype)


def _weight(square: Tensor) -> Tensor:
    """``1 / max(sqrt(square), 1e-12)^2``."""
    return 1 / square.clamp_min(_LEAST_NORM**2)


def _memberships(
    tokens: _Tokens, squared: Tensor, square: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """How far each token aligns with each head, and its membership of the heads: [..., H]."""
    alignment = (squared * tokens.spread(_weight(square))).sum(-1)
    return alignment, (temperature * alignment).softmax(-1)


class _Tokens:
    """Sums over the tokens of each segment, and segments spread over their tokens, packed or not."""

    def __init__(self, w: Tensor, cu_seqlens: Tensor | None) -> None:
        self.segment: Tensor | None = None
        if cu_seqlens is not None:
            self.segments = cu_seqlens.shape[0] - 1
            token = torch.arange(w.shape[0], device=w.device, dtype=cu_seqlens.dtype)
            # of equal starts, those of empty segments, the last is meant
            self.segment = torch.searchsorted(cu_seqlens[1:].contiguous(), token, right=True)

    def sum(self, values: Tensor) -> Tensor:
        """[B, N, ...] or [T, ...] to [S, ...]."""
        if self.segment is None:
            return values.sum(1)
        return values.new_zeros((self.segments, *values.shape[1:])).index_add(0, self.segment, values)

    def spread(self, statistic: Tensor) -> Tensor:
        """[S, ...] to what broadcasts against the tokens."""
        return statistic.unsqueeze(1) if self.segment is None else statistic[self.segment]


def _wide(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype that it is computed in: float64 as it is, all else in float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _wide_as(tensor: Tensor, wide: Tensor) -> Tensor:
    return tensor.to(wide.dtype)
