"""MeanFlow (Geng et al. 2025): a flow map trained to go from noise to data in one true step.

With ``z_t = (1 - t) z_0 + t eps`` and velocity ``v = eps - z_0``, the network u(z_t, t, t - r) learns the
*average* velocity over [r, t], which satisfies ``u = v - (t - r) du/dt`` along the path. One step is then
``z_0 = z_1 - u(z_1, 1, 1)``. Unlike a denoiser read at t = T, it does not collapse to the class mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    # Maps (z [B, d], t [B], span t - r [B]) to the average velocity [B, d].
    AverageVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]

# Step of the central difference: its error falls as h^2 and float32 rounding grows as 1/h.
_STEP = 5e-3


def total_derivative(u: AverageVelocity, z: Tensor, t: Tensor, span: Tensor, v: Tensor) -> Tensor:
    """``du/dt = v . grad_z u + d u/dt`` (r fixed), by central differences and without a graph.

    It only enters a target that is detached, so two plain forward passes serve; they run through the
    same fused kernels as training, which need no forward-mode rule.
    """
    with torch.no_grad():
        ahead = u(z + _STEP * v, t + _STEP, span + _STEP)
        behind = u(z - _STEP * v, t - _STEP, span - _STEP)
        return (ahead - behind) / (2 * _STEP)


def sample_times(n: int, generator: torch.Generator, instantaneous: float = 0.5) -> tuple[Tensor, Tensor]:
    """``t`` and ``span = t - r`` [n], logit-normal; a share ``instantaneous`` has span 0 (flow matching)."""
    draws = torch.sigmoid(torch.randn(2, n, generator=generator) - 0.4)
    t, r = draws.max(0).values, draws.min(0).values
    keep = torch.rand(n, generator=generator) >= instantaneous
    return t, (t - r) * keep


def mean_flow_target(u: AverageVelocity, z: Tensor, t: Tensor, span: Tensor, v: Tensor) -> Tensor:
    """``v - (t - r) du/dt``, detached [B, d]."""
    return (v - span[:, None] * total_derivative(u, z, t, span, v)).detach()


def adaptive_loss(error: Tensor, power: float = 1.0, floor: float = 1e-3) -> Tensor:
    """Mean over the batch of ``|e|^2 / sg(|e|^2 + floor)^power``: damps the rare huge target."""
    square = error.square().mean(1)
    return (square / (square.detach() + floor).pow(power)).mean()


def mean_flow_step(u: AverageVelocity, noise: Tensor) -> Tensor:
    """``z_0 = z_1 - u(z_1, 1, 1)``: one call."""
    one = torch.ones(len(noise), device=noise.device, dtype=noise.dtype)
    return noise - u(noise, one, one)
