"""Optimise latent codes through the frozen one-step generator, in chunks with recomputation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scdd.distillation.matching import OBJECTIVES, MatchingNetwork
from scdd.errors import InputError
from scdd.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable

    from scdd.distillation.candidates import Candidates
    from scdd.distillation.rendering import Renderer


@dataclass(frozen=True)
class MatchingConfig:
    """How codes are optimised; see :mod:`scdd.distillation.matching` for the objectives.

    ``depth`` counts the hidden layers of the matching network. With 0 (default) DM matches class means in
    gene space. The mean ReLU features of sparse cells are *not* those of any denoised row, and chasing
    them mostly drove codes off the data on validation cells (figures in ``docs/scdd.md``).
    ``support`` weighs the penalty on leaving the class's typical set, ``max(0, m^2 / d - 1)`` with m the
    Mahalanobis distance.
    """

    objective: str = "dm"
    iterations: int = 150
    lr: float = 0.03
    support: float = 1.0
    batch_real: int = 256
    width: int = 256
    depth: int = 0
    chunk: int = 1_024
    refresh: int = 25

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective={self.objective!r}; choose one of {', '.join(OBJECTIVES)}")
        if self.iterations < 0 or self.chunk < 1 or self.batch_real < 1:
            raise InputError(
                f"iterations={self.iterations}, chunk={self.chunk}, batch_real={self.batch_real}: too small"
            )


class Codes(NamedTuple):
    """What is optimised and what stays fixed: ``z`` [M, d], class [M] and the map to clean latents."""

    z: Tensor
    label: Tensor
    latent: Callable[[Tensor, Tensor], Tensor]  # (z[rows], rows) -> clean latent, differentiable in z
    excess: Callable[[Tensor], Tensor]  # z -> how far each code lies outside the support of its class


def optimise(
    codes: Codes, renderer: Renderer, candidates: Candidates, scale: tuple[Tensor, Tensor],
    config: MatchingConfig, *, seed: int, progress: bool = True,
) -> tuple[Tensor, list[float]]:  # fmt: skip
    """Adam on the codes alone; returns them with the objective at every iteration.

    Each iteration draws a fresh network psi and fresh real cells. What psi sees is what is written: the
    rendered rows. Their residual over the expectation is held fixed between refreshes and the gradient
    passes through the expectation (straight-through).
    """
    rng, stream = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    z = codes.z.clone().requires_grad_()
    optimiser = torch.optim.Adam([z], lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(config.iterations, 1))
    # Half-way between z-scores, which make rare genes loud, and raw values, which make them mute.
    scale = (scale[0], (scale[1] * scale[1].mean()).sqrt())
    match, history = OBJECTIVES[config.objective], []
    groups = [(codes.label == k).nonzero()[:, 0] for k in range(candidates.classes)]
    residual = torch.zeros(0)
    with progress_bar("distilling", config.iterations, enabled=progress) as advance:
        for iteration in range(config.iterations):
            expected = _expected(codes, z.detach(), renderer, config.chunk)
            if iteration % config.refresh == 0:
                residual = _render(codes, z.detach(), renderer) - expected
            shown = (expected + residual).requires_grad_()
            network = MatchingNetwork(
                *scale, candidates.classes, width=config.width, depth=config.depth, generator=stream
            )
            real = [candidates.sample(k, config.batch_real, rng) for k in range(candidates.classes)]
            loss = match(network, real, [shown[rows] for rows in groups])
            (gradient,) = torch.autograd.grad(loss, shown)
            optimiser.zero_grad(set_to_none=True)
            _backward(codes, z, renderer, gradient, config.chunk)
            (config.support * codes.excess(z).sum()).backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                z.clamp_(-6, 6)  # six standard deviations: beyond, the decoder has seen nothing
            history.append(loss.item())
            advance(1, f"loss {loss.item():.3f}")
    return z.detach(), history


@torch.no_grad()
def _expected(codes: Codes, z: Tensor, renderer: Renderer, chunk: int) -> Tensor:
    rows = torch.arange(len(z)).split(chunk)
    return torch.cat([renderer.expected(codes.latent(z[r], r), r) for r in rows])


@torch.no_grad()
def _render(codes: Codes, z: Tensor, renderer: Renderer) -> Tensor:
    return renderer.rows(codes.latent(z, torch.arange(len(z))))


def _backward(codes: Codes, z: Tensor, renderer: Renderer, gradient: Tensor, chunk: int) -> None:
    """Push dL/dS into the codes a chunk at a time; the graph of one chunk is alive at once (GLaD)."""
    for rows in torch.arange(len(z)).split(chunk):
        renderer.expected(codes.latent(z[rows], rows), rows).backward(gradient[rows])
