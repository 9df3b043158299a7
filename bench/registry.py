"""All operators that can be benchmarked, one module of `operators` each."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from operators.case import Operator

# Those that matter most come first, so that a deadline cuts the others.
MODULES = (
    "segment_attention",
    "single_step_denoise",
    "modulate",
    "ista",
    "noise_patch_embed",
    "subspace_attention",
    "denoise_loss",
    "linear_cross_entropy",
    "embed_genes",
    "attention_map",
    "token_statistics",
    "white_box_block",
    "denoise_step",
    "coding_rate",
    "sample_distance",
)


def operators(modules: tuple[str, ...] = MODULES) -> tuple[Operator, ...]:
    """Every operator of `modules`."""
    return tuple(
        operator
        for module in modules
        for operator in importlib.import_module(f"operators.{module}").OPERATORS
    )
