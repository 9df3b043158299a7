"""All operators that can be benchmarked, one module of `operators` each."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from operators.case import Operator

MODULES = (
    "attention_map",
    "coding_rate",
    "denoise_loss",
    "denoise_step",
    "embed_genes",
    "ista",
    "linear_cross_entropy",
    "modulate",
    "noise_patch_embed",
    "sample_distance",
    "segment_attention",
    "single_step_denoise",
    "subspace_attention",
    "token_statistics",
    "white_box_block",
)


def operators(modules: tuple[str, ...] = MODULES) -> tuple[Operator, ...]:
    """Every operator of `modules`."""
    return tuple(
        operator
        for module in modules
        for operator in importlib.import_module(f"operators.{module}").OPERATORS
    )
