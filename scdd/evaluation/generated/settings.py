"""How much is measured, and which families of metrics."""

from __future__ import annotations

from dataclasses import dataclass

from scdd.errors import InputError

FAMILIES = (
    "two-sample",
    "transport",
    "support",
    "genes",
    "co-expression",
    "markers",
    "conditions",
    "memorising",
    "composition",
)
COMPAT = ("scrdit", "scdiffusion", "cfgen-2025", "cfgen-2026", "groundgan")


@dataclass(frozen=True)
class Settings:
    """Numbers of cells, genes, trees and draws.

    Attributes
    ----------
    max_cells
        Cells of each side in a draw.
    draws
        How many draws; each holds four fifths of the cells there are, or ``max_cells``.
    n_genes, n_components
        The metric space.
    min_class_cells
        Classes with fewer cells in a draw have no rows of their own.
    expression
        Kind of the generated values, see ``Atlas``.
    published_trees
        Trees of the published random forests: 1,000 in their papers.
    """

    max_cells: int = 2_000
    draws: int = 3
    seed: int = 0
    families: tuple[str, ...] = FAMILIES
    compat: tuple[str, ...] = ()
    expression: str = "auto"
    n_genes: int = 2_000
    n_components: int = 50
    folds: int = 5
    trees: int = 100
    published_trees: int = 1_000
    permutations: int = 200
    projections: int = 200
    k: int = 5
    correlated_genes: int = 500
    min_class_cells: int = 20
    max_reference: int = 5_000
    max_fitting: int = 10_000
    threads: int = 1

    def __post_init__(self) -> None:
        for name, least in (("max_cells", 40), ("draws", 1), ("n_genes", 2), ("permutations", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}; give at least {least}")
        for name, known in (("families", FAMILIES), ("compat", COMPAT)):
            odd = [item for item in getattr(self, name) if item not in known]
            if odd:
                option = "metrics" if name == "families" else name
                raise InputError(f"{option}={odd[0]!r}; choose from {', '.join(known)}")
