"""A student that says in one call what a trained denoiser says in many (Luhman & Luhman 2021).

The deterministic sampler carries each noise to one clean latent (the map of the probability-flow ODE), so
that a network can be regressed on pairs of the two. There is no other loss: with enough pairs the student
*is* the map, conditions, guidance and all. Zheng et al. 2023 do the same for whole trajectories.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scdd.diffusion.parameterisation import clean_estimate
from scdd.diffusion.samplers import plan, sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from scdd.diffusion.parameterisation import Parameterisation
    from scdd.diffusion.samplers import Guided
    from scdd.diffusion.schedule import NoiseSchedule

    # Maps (z_T [B, d], t / T = 1 [B]) to the student's output [B, d].
    Student = Callable[[Tensor, Tensor], Tensor]


def teacher_map(
    denoise: Guided,
    schedule: NoiseSchedule,
    kind: Parameterisation,
    noise: Tensor,
    steps: int,
    *,
    guidance: float = 0.0,
) -> Tensor:
    """Clean latents [B, d] of pure noise [B, d] along the teacher's ODE, by DPM-Solver++ (2M), no graph.

    ``guidance`` is the w of ``(1 + w) f(c) - w f(null)``.
    """
    chosen = plan(schedule, "dpm++", steps, kind)
    return sample(denoise, schedule, noise, chosen, guidance=1 + guidance)


def student_map(student: Student, schedule: NoiseSchedule, noise: Tensor) -> Tensor:
    """``sqrt(a_T) z_T - sqrt(1 - a_T) f(z_T, 1)``: the student's output is read as the v of pure noise.

    A v-predicting teacher read at t = T is a student that knows the class means, whence it may start.
    """
    end = torch.full((len(noise),), schedule.steps, dtype=torch.long, device=noise.device)
    output = student(noise, torch.ones(len(noise), device=noise.device, dtype=noise.dtype))
    return clean_estimate("v", output, noise, schedule.signal(end), schedule.noise(end))


def student_loss(student: Student, schedule: NoiseSchedule, noise: Tensor, clean: Tensor) -> Tensor:
    """Mean squared error of the student's map on pairs of the teacher."""
    return (student_map(student, schedule, noise) - clean).square().mean()
