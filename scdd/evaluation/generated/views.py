"""What the figures show: gene curves and distances to train, of one draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scdd.evaluation.generated.gene_statistics import curve, curve_edges, gene_statistics

if TYPE_CHECKING:
    from scdd.evaluation.generated.gathering import Draw, World

SIDES = ("generated", "test", "floor")


@dataclass(frozen=True, eq=False)
class View:
    """By side (generated, test, floor): gene means, variances, zeros [G] and both curves over ``bins``.

    ``nearest`` holds distances to the nearest train cell of generated and of test cells, if measured.
    """

    mean: dict[str, np.ndarray]
    variance: dict[str, np.ndarray]
    zero: dict[str, np.ndarray]
    bins: np.ndarray
    variance_curve: dict[str, np.ndarray]
    zero_curve: dict[str, np.ndarray]
    nearest: dict[str, np.ndarray]


def view(draw: Draw, world: World) -> View:
    """Collect what the figures need from one draw."""
    kept = world.space.expressed
    by = {side: gene_statistics(getattr(draw, side).x, kept) for side in SIDES}
    edges = curve_edges(by["test"].mean)
    near = {side: getattr(draw, side).to_train for side in SIDES[:2]}
    return View(
        mean={side: found.mean for side, found in by.items()},
        variance={side: found.variance for side, found in by.items()},
        zero={side: found.zero for side, found in by.items()},
        bins=np.sqrt(np.maximum(edges[1:] * edges[:-1], 1e-12)),
        variance_curve={side: curve(found, edges, "variance") for side, found in by.items()},
        zero_curve={side: curve(found, edges, "zero") for side, found in by.items()},
        nearest={side: found for side, found in near.items() if found is not None},
    )
