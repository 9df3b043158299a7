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
    "embed_genes",
    "ista",
    "modulate",
    "sample_distance",
    "subspace_attention",
)


def every_build(operators: tuple[str, ...] = OPERATORS) -> dict[str, Build]:
    """Every build of `operators`, by name; needs Triton and a process without TRITON_INTERPRET."""
    builds: dict[str, Build] = {}
    for operator in operators:
        module = importlib.import_module(f"scdd.kernels.{operator}.builds")
        for name, build in module.builds().items():
            builds[f"{operator}/{name}"] = build
    return builds
