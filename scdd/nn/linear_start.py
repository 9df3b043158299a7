"""The best linear denoiser of cells around the mean of their class: what a transformer starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from scdd.diffusion.parameterisation import Parameterisation


class Centred(NamedTuple):
    """Noised cells less the noised mean of their class [B, G], signal, noise [B, 1].

    Of the class: its mean [B, G], and its variance along the basis [B, R].
    """

    x_t: Tensor
    signal: Tensor
    noise: Tensor
    anchor: Tensor
    spread: Tensor


class LinearStart(nn.Module):
    """``E[x0 | x_t]`` for ``x0 ~ N(anchor[c], U diag(spread[c]) U^T + diag(rest))``, exact along ``U``.

    ``x0^ = anchor + U s spread / (s^2 spread + n^2) U^T r + s rest / (s^2 rest + n^2) (r - U U^T r)`` with
    ``r = x_t - s anchor``. A transformer that is added to it begins as the Gaussian model of every class,
    and learns what is left. ``anchor`` [C + 1, G] (last: zeros, for no class), ``basis`` U [G, R], ``spread``
    [C + 1, R] (last: for no class), ``rest`` [G]; ``alpha_bar`` [T + 1] is the schedule.
    """

    anchor: Tensor
    basis: Tensor
    spread: Tensor
    rest: Tensor
    alpha_bar: Tensor

    def __init__(self, genes: int, classes: int, rank: int, alpha_bar: Tensor, kind: Parameterisation):
        super().__init__()
        self.kind = kind
        self.register_buffer("anchor", torch.zeros(classes + 1, genes))
        self.register_buffer("basis", torch.zeros(genes, rank))
        self.register_buffer("spread", torch.ones(classes + 1, rank))
        self.register_buffer("rest", torch.ones(genes))
        self.register_buffer("alpha_bar", alpha_bar.clone(), persistent=False)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise [B, 1] of times [B] in [0, 1]."""
        share = self.alpha_bar[(t * (len(self.alpha_bar) - 1)).round().long()]
        return share.sqrt()[:, None], (1 - share).sqrt()[:, None]

    def centre(self, x_t: Tensor, t: Tensor, codes: Tensor) -> Centred:
        """Noised cells [B, G] at times [B], of the class that conditions [B, F] say first."""
        signal, noise = self.levels(t)
        of_class = torch.where(codes[:, 0] < 0, len(self.anchor) - 1, codes[:, 0])
        anchor = self.anchor[of_class]
        return Centred(x_t - signal * anchor, signal, noise, anchor, self.spread[of_class])

    def scores(self, cells: Centred) -> Tensor:
        """Posterior means [B, R] of the coordinates along the basis, in standard deviations of a class."""
        gain = cells.signal * cells.spread.sqrt() / (cells.signal**2 * cells.spread + cells.noise**2)
        return gain * (cells.x_t @ self.basis)

    def estimate(self, cells: Centred) -> Tensor:
        """The clean estimate [B, G] less the anchor."""
        along = cells.x_t @ self.basis
        gain = cells.signal * cells.spread / (cells.signal**2 * cells.spread + cells.noise**2)
        across = cells.signal * self.rest / (cells.signal**2 * self.rest + cells.noise**2)
        return (gain * along) @ self.basis.mT + across * (cells.x_t - along @ self.basis.mT)

    def prediction(self, cells: Centred) -> Tensor:
        """The same as eps, v or x0 of the centred cells [B, G]."""
        clean = self.estimate(cells)
        if self.kind == "x0":
            return clean
        if self.kind == "v":
            return (cells.signal * cells.x_t - clean) / cells.noise
        return (cells.x_t - cells.signal * clean) / cells.noise

    def uncentred(self, prediction: Tensor, cells: Centred) -> Tensor:
        """A prediction of centred cells [B, G] as one of whole cells."""
        if self.kind == "v":
            return prediction - cells.noise * cells.anchor
        return prediction + cells.anchor if self.kind == "x0" else prediction
