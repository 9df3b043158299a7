"""Are generated cells copies of training cells: nearest train cells, against those of held-out cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from scdd.evaluation.generated.neighbours import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable


class Memorising(NamedTuple):
    """Of generated cells and their distances to the nearest train cell.

    ``distance`` is the median, ``auroc`` the chance that a generated cell is nearer to train than a
    held-out one, ``near`` the share below the first percentile of held-out cells, ``copies`` the share
    below a thousandth of the held-out median. ``near_expected`` is the share below that percentile of fresh
    cells: above 1 % for few held-out cells.
    """

    distance: float
    auroc: float
    near: float
    copies: float
    near_expected: float


def nearest_train(query: np.ndarray, train: Iterable[np.ndarray]) -> np.ndarray:
    """Distance of every query [n, d] to the nearest of all train cells, which come in blocks [*, d]."""
    found = np.full(len(query), np.inf)
    for block in train:
        if len(block):
            np.minimum(found, nearest(query, block, 1)[0][:, 0], out=found)
    return found


def memorising(made: np.ndarray, held_out: np.ndarray) -> Memorising:
    """Compare distances to the nearest train cell, [n] of generated and [m] of held-out cells.

    The test of Meehan et al. (AISTATS 2020): a model that generalises is no nearer to train than fresh
    cells are. Of donor-disjoint splits held-out cells lie farther off by nature; then ``auroc`` above 0.5
    is no proof.
    """
    if not len(made) or not len(held_out):
        return Memorising(*[np.nan] * 5)
    u = stats.mannwhitneyu(held_out, made).statistic / (len(made) * len(held_out))
    middle = float(np.median(held_out))
    return Memorising(
        float(np.median(made)),
        float(u),
        float(np.mean(made < np.quantile(held_out, 0.01))),
        float(np.mean(made <= 1e-3 * middle)),
        (1 + 0.01 * (len(held_out) - 1)) / (len(held_out) + 1),
    )
