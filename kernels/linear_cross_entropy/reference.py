"""What the operator computes, in plain PyTorch.

`linear_cross_entropy` is the definition, written for reading, with all logits in memory. `softmax` is what a
CPU does with the logits of one chunk in `chunks`, where a GPU has a kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dispatch import outside_autocast


@outside_autocast
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int
) -> Tensor:
    """Loss of each token, [T], zero where it is ignored."""
    # a token that is not computed must not leak, whatever its numbers
    hidden = hidden.masked_fill((target == ignore_index).unsqueeze(1), 0)
    logits = F.linear(_wide(hidden), _wide(weight), None if bias is None else _wide(bias))
    return F.cross_entropy(logits, target.long(), ignore_index=ignore_index, reduction="none")


def refuse_surplus(losses: Tensor, target: Tensor, ignore_index: int, max_masked: int | None) -> Tensor:
    """`losses` with NaN for every masked token after the first `max_masked`."""
    if max_masked is None:
        return losses
    masked = target != ignore_index
    return losses.masked_fill(masked & (masked.cumsum(0) > max_masked), torch.nan)


def reduce(losses: Tensor, target: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """Mean or sum over the masked tokens, or all losses as they are."""
    if reduction == "none":
        return losses
    return losses.sum() / (target != ignore_index).sum() if reduction == "mean" else losses.sum()


def softmax(
    logits: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int,
    losses: Tensor, lse: Tensor, dlosses: Tensor | None, *, lse_known: bool, gradient: bool,
) -> None:  # fmt: skip
    """Fill the `losses` and `lse` of a chunk (unless `lse_known`), and put the gradient in place of `logits`.

    `logits` are [R, V], `bias` is [V] and the others [R]. The gradient is that of the sum of losses, each
    times its `dlosses` where they are given.
    """
    wide = _wide(logits) if bias is None else _wide(logits) + _wide(bias)
    ignored = target == ignore_index
    column = target.long().masked_fill(ignored, 0).unsqueeze(1)
    if not lse_known:
        torch.logsumexp(wide, 1, out=lse)
        losses.copy_((lse - wide.gather(1, column).squeeze(1)).masked_fill_(ignored, 0))
    if gradient:
        share = torch.exp(wide - lse.unsqueeze(1))
        share.scatter_add_(1, column, share.new_full(column.shape, -1))
        if dlosses is not None:
            share *= dlosses.unsqueeze(1)
        logits.copy_(share.masked_fill_(ignored.unsqueeze(1), 0))


def _wide(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype that it is computed in: float64 as it is, all else in float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
