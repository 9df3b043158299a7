"""One network call from a code to a clean latent, and K calls for comparison."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from scdd.diffusion.parameterisation import clean_estimate

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from scdd.diffusion.schedule import NoiseSchedule

    # Maps (z_t [B, d], t / T [B]) to the network's output [B, d]; the condition is bound already.
    Denoise = Callable[[Tensor, Tensor], Tensor]


def code_then_noise(
    denoise: Denoise, schedule: NoiseSchedule, kind: str, code: Tensor, eps: Tensor, t_star: int
) -> Tensor:
    """``z0^(sqrt(a) code + sqrt(1 - a) eps)`` at t*: the code lies in clean latent space.

    ``eps`` is drawn once per code and frozen, so that the map is deterministic and differentiable.
    The gain of the output on the code is about ``a L / (a L + 1 - a)`` for within-class variance L.
    """
    t = torch.full((len(code),), t_star, dtype=torch.long, device=code.device)
    z_t = schedule.add_noise(code, eps, t)
    output = denoise(z_t, t / schedule.steps)
    return clean_estimate(kind, output, z_t, schedule.signal(t), schedule.noise(t))


def ddim(
    denoise: Denoise,
    schedule: NoiseSchedule,
    kind: str,
    noise: Tensor,
    steps: int,
    *,
    start: int | None = None,
    skip: bool = False,
) -> Tensor:
    """Deterministic DDIM (Song et al. 2021) from ``noise`` at ``start`` (default T) in ``steps`` calls.

    ``skip`` blends every clean estimate with the starting code, ``(1 - i/T) z0^ + (i/T) z_T``, the
    remedy of LD3M (Moser et al. 2024) against gradients that fade over many steps.
    """
    first = schedule.steps if start is None else start
    times = torch.linspace(first, 0, steps + 1).round().long().tolist()
    z, clean = noise, noise
    for now, after in itertools.pairwise(times):
        t = torch.full((len(z),), now, dtype=torch.long, device=z.device)
        signal, sigma = schedule.signal(t), schedule.noise(t)
        clean = clean_estimate(kind, denoise(z, t / schedule.steps), z, signal, sigma)
        eps = (z - signal * clean) / sigma
        if skip:
            clean = (1 - now / first) * clean + (now / first) * noise
        later = torch.full_like(t, after)
        z = schedule.signal(later) * clean + schedule.noise(later) * eps
    return z
