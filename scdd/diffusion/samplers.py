"""From noise to cells in K network calls: DDPM, DDIM, DPM-Solver++, flow; one fused update a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from scdd.kernels import (
    ddim_coefficients,
    ddpm_coefficients,
    denoise_step_with_estimate,
    dpm_solver_coefficients,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scdd.diffusion.parameterisation import Parameterisation
    from scdd.diffusion.schedule import NoiseSchedule

    # Maps (x_t [B, G], t / T [B]) to the network's output [B, G], and that without conditions or None.
    Guided = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]

Sampler = Literal["dpm++", "ddim", "ddpm", "flow"]


class Plan(NamedTuple):
    """What a sampler does, computed before it starts: ``times`` int64 [K + 1], ``coefficients`` [K, 6]."""

    times: Tensor
    coefficients: Tensor


def plan(
    schedule: NoiseSchedule,
    sampler: Sampler,
    steps: int,
    prediction: Parameterisation,
    *,
    eta: float = 0.0,
    last: int = 0,
) -> Plan:
    """The times that ``steps`` calls visit, noisy to clean, and the six numbers of each update.

    DDPM and DDIM space times evenly, as published; DPM-Solver++ evenly in ``log(signal / noise)`` (Lu et
    al. 2022); flow evenly in ``noise / (signal + noise)``, the time of the straight path from noise to data,
    along which Euler's step is DDIM's (Lipman et al. 2023). With ``last`` above 0 they end at that time, on
    cells that are still noised.
    """
    if sampler not in get_args(Sampler):
        raise ValueError(f"sampler is {sampler!r}; choose one of {', '.join(get_args(Sampler))}")
    if not 0 <= last < schedule.steps:
        raise ValueError(f"last is {last}; it lies in 0..{schedule.steps - 1}")
    if not 1 <= steps <= schedule.steps - last:
        raise ValueError(f"steps is {steps}; it lies in 1..{schedule.steps - last}")
    times = _times(schedule, sampler, steps, last)
    alpha = schedule.alpha_bar.double()[times]
    now, after = alpha[:-1], alpha[1:]
    if sampler == "ddpm":
        table = ddpm_coefficients(now, after, prediction=prediction)
    elif sampler == "dpm++":
        first = dpm_solver_coefficients(now[:1], after[:1], prediction=prediction)
        rest = dpm_solver_coefficients(now[1:], after[1:], now[:-1], prediction=prediction)
        table = torch.cat([first, rest])
    else:
        table = ddim_coefficients(now, after, prediction=prediction, eta=eta)
    return Plan(times, table)


def _times(schedule: NoiseSchedule, sampler: Sampler, steps: int, last: int) -> Tensor:
    """int64 [steps + 1] from T to ``last``, strictly falling."""
    if sampler in ("ddpm", "ddim"):
        return torch.linspace(schedule.steps, last, steps + 1).round().long()
    alpha = schedule.alpha_bar.double()[max(last, 1) :]
    signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
    # rises with the time; that of clean cells is no number, and is left for the last step to reach
    clock = noise / (signal + noise) if sampler == "flow" else (noise / signal).log()
    inner = steps + 1 if last else steps
    wanted = torch.linspace(clock[-1], clock[0], inner, dtype=torch.float64)
    at = torch.searchsorted(clock, wanted).clamp(max=len(clock) - 1) + max(last, 1)
    # where the schedule is coarser than the clock, neighbouring times fall together: push them apart
    floor = torch.arange(inner, 0, -1) + max(last, 1) - 1
    ceiling = schedule.steps - torch.arange(inner)
    at = torch.minimum(torch.maximum(at, floor), ceiling)
    for k in range(1, inner):
        at[k] = torch.minimum(at[k], at[k - 1] - 1)
    at = torch.maximum(at, floor)
    return at if last else torch.cat([at, torch.zeros(1, dtype=torch.long)])


@torch.no_grad()
def sample(
    denoise: Guided,
    schedule: NoiseSchedule,
    noise: Tensor,
    chosen: Plan,
    *,
    guidance: float = 1.0,
    seed: int = 0,
    clamp: tuple[float, float] | None = None,
) -> Tensor:
    """Clean cells [B, G] of pure ``noise`` [B, G]; ``chosen`` is what :func:`plan` made.

    ``clamp`` bounds the clean estimate of every step. Each step draws its noise, if it has any, from a seed
    of its own.
    """
    table = chosen.coefficients.to(noise.device)
    seeds = torch.arange(seed, seed + len(table), device=noise.device)
    times = (chosen.times[:-1] / schedule.steps).tolist()
    return run(denoise, noise, times, table, seeds, guidance=guidance, clamp=clamp)


@torch.no_grad()
def run(
    denoise: Guided,
    noise: Tensor,
    times: Sequence[float],
    table: Tensor,
    seeds: Tensor,
    *,
    guidance: float = 1.0,
    clamp: tuple[float, float] | None = None,
) -> Tensor:
    """The steps of :func:`sample`. Nothing looks at a number on the device, so a CUDA graph can hold them.

    ``times`` in (0, 1] [K], coefficients ``table`` [K, 6] and int64 ``seeds`` [K] of every step.
    """
    x, previous = noise, None
    for number, time in enumerate(times):
        t = torch.full((len(x),), time, device=x.device)
        output, unconditional = denoise(x, t)
        x, previous = denoise_step_with_estimate(
            x, output, table[number], unconditional=unconditional, guidance=guidance,
            previous=previous, seed=seeds[number], clamp=clamp,
        )  # fmt: skip
    return x
