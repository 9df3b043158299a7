"""Cells drawn uniformly from their class: the floor that every other rule must clear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scdd.distillation.selectors.base import ClassCells, Selection, real, selector

if TYPE_CHECKING:
    import numpy as np


@selector
def random(cells: ClassCells, k: int, rng: np.random.Generator) -> Selection:
    """Draw min(k, n) cells uniformly without replacement.

    Called class by class with one k this is class-balanced sampling; with k proportional to the size of
    each class it is stratified sampling.
    """
    n = len(cells.rows)
    return real(cells, rng.choice(n, size=min(k, n), replace=False))
