"""Ahead-of-time builds of every kernel, for GPUs that need not be here.

``python -m scdd.kernels.aot`` prints what each tile of each operator takes on each architecture. An operator
names its builds in its module ``builds``, and its folder in :data:`OPERATORS`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .build import Build

ARCHITECTURES: Final = (80, 90, 100)

OPERATORS: Final = (
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
)


def every_build(operators: tuple[str, ...] = OPERATORS) -> dict[str, Build]:
    """Every build of `operators`, by name; needs Triton and a process without TRITON_INTERPRET."""
    builds: dict[str, Build] = {}
    for operator in operators:
        module = importlib.import_module(f"scdd.kernels.{operator}.builds")
        for name, build in module.builds().items():
            builds[f"{operator}/{name}"] = build
    return builds
