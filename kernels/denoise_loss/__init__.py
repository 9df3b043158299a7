"""The loss of a denoiser: final modulated norm, projection and weighted squared error in one pass."""

from __future__ import annotations

from .api import DenoiseLoss, denoise_loss

__all__ = ["DenoiseLoss", "denoise_loss"]
