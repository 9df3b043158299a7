"""How many rows each class gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.data.atlas import Labels


def rows_per_class(
    labels: Labels,
    *,
    cells_per_class: int | None = None,
    total: int | None = None,
    allocation: str = "balanced",
) -> np.ndarray:
    """Rows of every class, int64 [C].

    ``cells_per_class`` gives each class as many. ``total`` shares a number of rows out evenly
    (``"balanced"``) or by class size (``"proportional"``), at least one each.

    Raises
    ------
    InputError
        A class has a single cell, the budget is below one row a class, or both or no budget is given.
    """
    sizes = np.bincount(labels.codes, minlength=len(labels.names))
    refuse_single_cells(labels, sizes)
    if (cells_per_class is None) == (total is None):
        raise InputError("give either cells_per_class (--cells-per-class) or total (--cells), not both")
    if cells_per_class is not None:
        if cells_per_class < 1:
            raise InputError(f"cells_per_class={cells_per_class}; it must be at least 1")
        return np.full(len(sizes), cells_per_class, dtype=np.int64)
    assert total is not None
    if total < len(sizes):
        raise InputError(f"total={total} is below one row for each of the {len(sizes)} classes")
    if allocation not in ("balanced", "proportional"):
        raise InputError(f"allocation={allocation!r}; choose balanced or proportional")
    share = np.ones(len(sizes)) if allocation == "balanced" else sizes.astype(float)
    return _largest_remainder(share / share.sum(), total)


def _largest_remainder(share: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers, at least 1 each, that sum to ``total`` and lie nearest to ``share * total``."""
    rows = np.maximum(np.floor(share * total).astype(np.int64), 1)
    while rows.sum() != total:
        gap = share * total - rows
        if rows.sum() < total:
            rows[np.argmax(gap)] += 1
        else:
            rows[np.argmin(np.where(rows > 1, gap, np.inf))] -= 1
    return rows


def refuse_single_cells(labels: Labels, sizes: np.ndarray) -> None:
    """A class of one cell can be neither split nor learnt."""
    single = np.flatnonzero(sizes == 1)
    if len(single):
        names = ", ".join(repr(labels.names[k]) for k in single[:3])
        raise InputError(
            f"{len(single)} classes have one cell only ({names}); merge them into others or leave them out: "
            "atlas.drop_rare(key, min_cells=2) (--min-class-cells 2)"
        )
