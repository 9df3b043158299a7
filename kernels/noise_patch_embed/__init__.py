"""Noise on the cells, patches of genes and their tokens, in one pass."""

from __future__ import annotations

from .api import NoisedTokens, noise_patch_embed, noise_patch_embed_with_input, patch_noise

__all__ = ["NoisedTokens", "noise_patch_embed", "noise_patch_embed_with_input", "patch_noise"]
