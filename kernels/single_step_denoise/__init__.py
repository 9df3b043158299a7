"""The whole conditional denoiser of latent codes in one launch, with a gradient for the codes alone."""

from __future__ import annotations

from .api import single_step_denoise
from .weights import DenoiserWeights, pack_denoiser

__all__ = ["DenoiserWeights", "pack_denoiser", "single_step_denoise"]
