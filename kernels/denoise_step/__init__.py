"""One update of a sampler: estimate of the clean cells, guidance, solver and noise in one pass."""

from __future__ import annotations

from .api import DenoisedStep, denoise_step, denoise_step_with_estimate
from .coefficients import ddim_coefficients, ddpm_coefficients, dpm_solver_coefficients

__all__ = [
    "DenoisedStep",
    "ddim_coefficients",
    "ddpm_coefficients",
    "denoise_step",
    "denoise_step_with_estimate",
    "dpm_solver_coefficients",
]
