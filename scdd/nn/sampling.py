"""A network as a sampler calls it: what weights and conditions fix is computed once for all its calls."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scdd.kernels import ista_operator
from scdd.nn.branches import SparseCoding

if TYPE_CHECKING:
    from scdd.nn.transformer import Clean, DiffusionTransformerNet


def prepared_for_sampling(
    net: DiffusionTransformerNet, dtype: torch.dtype = torch.float32
) -> DiffusionTransformerNet:
    """A copy of ``net`` whose blocks compute in ``dtype``, each dictionary known by ``eta (D^T - D^T D)``.

    That operator is formed in float32 once, and not in every call. The copy belongs to one draw: training
    goes on with ``net``, so nothing here outlives the weights it was made of. Tokens and what time and
    conditions say stay as they are, for in 16 bits times would fall together.
    """
    ready = copy.deepcopy(net).requires_grad_(False).eval()
    for part in ready.blocks.modules():
        if isinstance(part, SparseCoding):
            part.operator = ista_operator(part.dictionary, part.step_size).to(dtype)
    heads = [] if ready.zero is None else [ready.zero]
    for part in (ready.blocks, ready.leave, *heads):
        part.to(dtype)
    return ready


class Conditioned:
    """``net`` under fixed conditions [B, F], [B, K], called with cells [B, G] that all have one time.

    The rows of the modulation, two thirds of the weights of a published white-box block, are computed once
    for every distinct condition and not for every cell.
    """

    def __init__(
        self, net: DiffusionTransformerNet, codes: Tensor, numbers: Tensor, dtype: torch.dtype = torch.float32
    ):
        self.net, self.dtype = net, dtype
        # NaN, a number that is not given, is no equal of itself: told apart by a column of its own
        absent = numbers.isnan().to(numbers.dtype)
        # and a column of zeros, for a network without conditions
        parts = [absent.new_zeros(len(codes), 1), codes.to(absent.dtype), numbers.nan_to_num(), absent]
        _, self.place = torch.unique(torch.cat(parts, 1), dim=0, return_inverse=True)
        first = torch.empty(int(self.place.max()) + 1, dtype=torch.long, device=codes.device)
        first[self.place] = torch.arange(len(codes), device=codes.device)
        self.codes, self.numbers = codes[first], numbers[first]

    def __call__(self, x: Tensor, t: Tensor) -> Clean:
        """What the network says of ``x`` [B, G] at times ``t`` [B], all the same."""
        return self.net.clean(x, self._rows(x, t), t, self.codes[self.place])

    def _rows(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        rows = self.net.rows(t[: len(self.codes)], self.codes, self.numbers, self.dtype)
        if len(self.codes) == 1:
            return tuple(row.expand(len(x), -1) for row in rows)
        return tuple(row[self.place] for row in rows)


@torch.no_grad()
def refresh(ready: DiffusionTransformerNet, net: DiffusionTransformerNet) -> None:
    """Bring what :func:`prepared_for_sampling` made up to the weights of ``net``, at the same addresses."""
    held = ready.state_dict()
    for name, value in net.state_dict().items():
        held[name].copy_(value)
    for mine, theirs in zip(ready.blocks.modules(), net.blocks.modules(), strict=True):
        if isinstance(mine, SparseCoding) and isinstance(theirs, SparseCoding):
            assert mine.operator is not None
            mine.operator.copy_(ista_operator(theirs.dictionary, theirs.step_size))
