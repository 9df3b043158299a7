"""A trained denoiser with its weights packed, read at one time for all codes: one launch on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from scdd.kernels import pack_denoiser, single_step_denoise

if TYPE_CHECKING:
    from torch import Tensor

    from scdd.nn.denoiser import Denoiser


class FrozenDenoiser:
    """``f(z, t, condition)`` [B, d] of a :class:`Denoiser` whose weights stay; gradients are of z.

    Shift, scale and gate depend on time and conditions alone. As a sampler reads all codes at one time, they
    are computed once for every combination of conditions among the codes, and not for every code: that is
    half of the arithmetic. The rest is :func:`scdd.kernels.single_step_denoise`.
    """

    def __init__(self, denoiser: Denoiser):
        pairs = [(branch[0], branch[2]) for branch in denoiser.branches]  # type: ignore[index]
        self.weights = pack_denoiser(denoiser.enter, pairs, denoiser.leave)
        self.denoiser, self.state = denoiser, _state(denoiser)

    def is_current(self) -> bool:
        """Whether the denoiser is still what was packed: same tensors, not written to since."""
        return self.state == _state(self.denoiser)

    @torch.no_grad()
    def _rows(self, t: Tensor, codes: Tensor, span: Tensor | None) -> tuple[Tensor, Tensor]:
        """Modulation of every combination [C, (3 L + 2) W], and which of them each code has [B]."""
        seen, which = torch.unique(codes, dim=0, return_inverse=True)
        net, now = self.denoiser, t[:1].expand(len(seen))
        over = torch.zeros_like(now) if span is None else span[:1].expand(len(seen))
        context = net.time(now) + net.condition(seen) + net.span(over)
        return net.modulation(F.silu(context)), which

    def __call__(self, z: Tensor, t: Tensor, codes: Tensor, span: Tensor | None = None) -> Tensor:
        """As the denoiser, but ``t`` and ``span`` hold one value each for all rows."""
        rows, which = self._rows(t, codes, span)
        return single_step_denoise(
            z, rows, self.weights, signal=1.0, noise=0.0, condition=which, parameterisation="x0"
        )


def _state(denoiser: Denoiser) -> tuple[tuple[int, int], ...]:
    return tuple((p.data_ptr(), p._version) for p in denoiser.parameters())
