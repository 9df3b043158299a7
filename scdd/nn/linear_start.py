"""The best linear denoiser of cells around the mean of their class: what a transformer starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from scdd.diffusion.parameterisation import Parameterisation


class Centred(NamedTuple):
    """Noised cells less the noised mean of their class [B, G], signal, noise [B, 1], that mean [B, G]."""

    x_t: Tensor
    signal: Tensor
    noise: Tensor
    anchor: Tensor


class LinearStart(nn.Module):
    """``E[x0 | x_t]`` for ``x0 ~ N(anchor[class], U diag(spread) U^T + diag(rest))``, exact along ``U``.

    ``x0^ = anchor + U s spread / (s^2 spread + n^2) U^T r + s rest / (s^2 rest + n^2) (r - U U^T r)`` with
    ``r = x_t - s anchor``. A transformer that is added to it begins as the Gaussian model of every class,
    and learns what is left. ``anchor`` [C + 1, G] (last: zeros, for no class), ``basis`` U [G, R], ``spread``
    [R], ``rest`` [G]; ``alpha_bar`` [T + 1] is the schedule.
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
        self.register_buffer("spread", torch.ones(rank))
        self.register_buffer("rest", torch.ones(genes))
        self.register_buffer("alpha_bar", alpha_bar.clone(), persistent=False)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise [B, 1] of times [B] in [0, 1]."""
        share = self.alpha_bar[(t * (len(self.alpha_bar) - 1)).round().long()]
        return share.sqrt()[:, None], (1 - share).sqrt()[:, None]

    def anchors(self, codes: Tensor) -> Tensor:
        """Means [B, G] of the classes that conditions [B, F] say."""
        label = codes[:, 0]
        return self.anchor[torch.where(label < 0, len(self.anchor) - 1, label)]

    def centre(self, x_t: Tensor, t: Tensor, codes: Tensor) -> Centred:
        """Noised cells [B, G] at times [B] with conditions [B, F]."""
        signal, noise = self.levels(t)
        anchor = self.anchors(codes)
        return Centred(x_t - signal * anchor, signal, noise, anchor)

    def scores(self, cells: Centred) -> Tensor:
        """Posterior means [B, R] of the coordinates along the basis, in standard deviations of a class."""
        gain = cells.signal * self.spread.sqrt() / (cells.signal**2 * self.spread + cells.noise**2)
        return gain * (cells.x_t @ self.basis)

    def estimate(self, cells: Centred) -> Tensor:
        """The clean estimate [B, G] less the anchor."""
        along = cells.x_t @ self.basis
        gain = cells.signal * self.spread / (cells.signal**2 * self.spread + cells.noise**2)
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
