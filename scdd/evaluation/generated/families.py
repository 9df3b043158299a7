"""The families of metrics on all cells of a draw: generated against test, and real against test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scdd.evaluation.generated import coexpression, gene_statistics
from scdd.evaluation.generated.readings import Reading, measured
from scdd.evaluation.generated.support import mixing, support
from scdd.evaluation.generated.transport import exact_wasserstein, sliced_wasserstein
from scdd.evaluation.generated.two_sample import (
    CLASSIFIERS,
    classifier_auc,
    discrepancy,
    nearest_neighbour_accuracy,
)

if TYPE_CHECKING:
    from scdd.evaluation.generated.gathering import Draw, World
    from scdd.evaluation.generated.settings import Settings


class Place(NamedTuple):
    """A space by name: features of the three samples, their scale in reference, the unit of kernels."""

    name: str
    made: np.ndarray
    test: np.ndarray
    floor: np.ndarray
    scale: np.ndarray
    unit: float


def places(draw: Draw, world: World) -> list[Place]:
    """Components and variable genes."""
    space, units = world.space, world.units
    made, test, floor, _ = draw
    return [
        Place(pcs_name(world), made.pcs, test.pcs, floor.pcs, space.pc_scale, units["PCs"]),
        Place(genes_name(world), made.genes, test.genes, floor.genes, space.scale, units["genes"]),
    ]


def pcs_name(world: World) -> str:
    """Name of the space of components."""
    return f"{len(world.space.components)} PCs"


def genes_name(world: World) -> str:
    """Name of the space of variable genes."""
    return f"{len(world.space.variable):,} genes"


def two_sample(draw: Draw, world: World) -> list[Reading]:
    """Classifier two-sample tests, 1-NN accuracy and MMD in both spaces."""
    found, permutations = [], world.settings.permutations
    for place in places(draw, world):
        found += _classifiers(place, draw.seed, world.settings)
        values = [nearest_neighbour_accuracy(side, place.test) for side in (place.made, place.floor)]
        found.append(measured("two-sample", "1-NN accuracy", place.name, values))
        apart = discrepancy(
            place.made, place.test, unit=place.unit, permutations=permutations, seed=draw.seed
        )
        none = discrepancy(place.floor, place.test, unit=place.unit).value
        found.append(Reading("two-sample", "MMD²", place.name, apart.value, none, p=apart.p))
    return found


def _classifiers(place: Place, seed: int, options: Settings) -> list[Reading]:
    # Scaled by the reference: nothing is fitted on what is compared.
    made, test, floor = (side / place.scale for side in (place.made, place.test, place.floor))
    how: Any = {"folds": options.folds, "trees": options.trees, "seed": seed, "threads": options.threads}
    return [
        measured(
            "two-sample",
            f"AUC, {name}",
            place.name,
            [classifier_auc(side, test, name, **how) for side in (made, floor)],
        )
        for name in CLASSIFIERS
    ]


def transport(draw: Draw, world: World) -> list[Reading]:
    """Exact and sliced W2 in components."""
    name, test = pcs_name(world), draw.test.pcs
    pairs = [(draw.generated.pcs, test), (draw.floor.pcs, test)]
    exact = [exact_wasserstein(*pair) for pair in pairs]
    sliced = [
        sliced_wasserstein(*pair, projections=world.settings.projections, seed=draw.seed) for pair in pairs
    ]
    return [
        measured("transport", "W2, exact", name, exact),
        measured("transport", "W2, sliced", name, sliced),
    ]


def filled(draw: Draw, world: World) -> list[Reading]:
    """Precision, recall, density, coverage and mixing in components."""
    name, test, k = pcs_name(world), draw.test.pcs, world.settings.k
    made, floor = (support(test, sample.pcs, k=k) for sample in (draw.generated, draw.floor))
    found = [
        Reading("support", metric, name, value, real)
        for metric, value, real in zip(made._fields, made, floor, strict=True)
    ]
    mixed = [mixing(sample.pcs, test) for sample in (draw.generated, draw.floor)]
    return [*found, measured("support", "iLISI", name, mixed)]


def genes(draw: Draw, world: World) -> list[Reading]:
    """Per-gene statistics over all genes expressed in reference, their curves, genes detected in a cell."""
    kept = world.space.expressed
    made, test, floor = (
        gene_statistics.gene_statistics(cells.x, kept) for cells in (draw.generated, draw.test, draw.floor)
    )
    values, floors = (gene_statistics.agreement(sample, test) for sample in (made, floor))
    values |= gene_statistics.curve_distances(made, test)
    floors |= gene_statistics.curve_distances(floor, test)
    name = f"{int(kept.sum()):,} expressed genes"
    found = [Reading("genes", metric, name, values[metric], floors[metric]) for metric in values]
    detected = [gene_statistics.detected_distance(sample, test) for sample in (made, floor)]
    return [*found, measured("genes", "genes detected, KS", name, detected)]


def co_expression(draw: Draw, world: World) -> list[Reading]:
    """Correlation of gene–gene correlations on the most variable genes; the ceiling is split-half."""
    top = np.sort(world.space.ranked[: world.settings.correlated_genes])
    made, test, floor = (cells.genes[:, top] for cells in (draw.generated, draw.test, draw.floor))
    values = [coexpression.correlation_of_correlations(sample, test) for sample in (made, floor)]
    ceiling = coexpression.split_half_reliability(test, seed=draw.seed)
    metric, name = "correlation of correlations", f"top {len(top)} genes"
    return [measured("co-expression", metric, name, values, ceiling=ceiling)]


def composition(draw: Draw, world: World) -> list[Reading]:
    """Class frequencies as given, before draws of the same classes were made."""
    made, train, test = (world.frequencies[name] for name in ("generated", "train", "test"))
    apart = [0.5 * float(np.abs(side - test).sum()) for side in (made, train)]
    wanted = test > 0
    share = float(np.mean(made[wanted] > 0))
    name = "labels"
    return [
        measured("composition", "class frequencies, total variation", name, apart),
        Reading("composition", "classes generated", name, share, 1.0, ceiling=1.0),
    ]
