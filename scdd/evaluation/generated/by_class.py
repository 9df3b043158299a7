"""Metrics class by class, and those that are about classes: purity, markers, training on generated cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scdd.evaluation.generated import conditions, gene_statistics, markers
from scdd.evaluation.generated.families import pcs_name
from scdd.evaluation.generated.memorising import memorising
from scdd.evaluation.generated.readings import ALL, Reading, measured
from scdd.evaluation.generated.support import support
from scdd.evaluation.generated.transport import exact_wasserstein
from scdd.evaluation.generated.two_sample import discrepancy, nearest_neighbour_accuracy
from scdd.evaluation.inputs import sample_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scdd.evaluation.generated.gathering import Draw, World


def classes_of(draw: Draw, world: World) -> Iterator[tuple[int, str]]:
    """Classes with enough cells in the draw, by code and name; none where there is no label."""
    if len(world.classes) < 2:
        return
    for code in np.flatnonzero(world.sizes >= world.settings.min_class_cells):
        yield int(code), world.classes[code]


def distances(draw: Draw, world: World) -> list[Reading]:
    """MMD, 1-NN accuracy and exact W2 within every class."""
    found, name = [], pcs_name(world)
    for code, group in classes_of(draw, world):
        made, test, floor = (cells.of_class(code).pcs for cells in draw[:3])
        sides, n = (made, floor), len(made)
        mmd = [discrepancy(side, test, unit=world.units["PCs"]).value for side in sides]
        one = [nearest_neighbour_accuracy(side, test) for side in sides]
        w2 = [exact_wasserstein(side, test) for side in sides]
        for aspect, metric, values in (
            ("two-sample", "MMD²", mmd),
            ("two-sample", "1-NN accuracy", one),
            ("transport", "W2, exact", w2),
        ):
            found.append(measured(aspect, metric, name, values, group=group, cells=n))
    return found


def filled(draw: Draw, world: World) -> list[Reading]:
    """Recall and coverage within every class."""
    found, name = [], pcs_name(world)
    for code, group in classes_of(draw, world):
        made, test, floor = (cells.of_class(code).pcs for cells in draw[:3])
        values, floors = (support(test, side, k=world.settings.k) for side in (made, floor))
        for metric in ("recall", "coverage"):
            pair = getattr(values, metric), getattr(floors, metric)
            found.append(measured("support", metric, name, pair, group=group, cells=len(made)))
    return found


def genes(draw: Draw, world: World) -> list[Reading]:
    """Means, variances and zeros of genes within every class."""
    found, kept = [], world.space.expressed
    name = f"{int(kept.sum()):,} expressed genes"
    for code, group in classes_of(draw, world):
        made, test, floor = (
            gene_statistics.gene_statistics(cells.of_class(code).x, kept) for cells in draw[:3]
        )
        values, floors = (gene_statistics.agreement(side, test) for side in (made, floor))
        n = len(made.detected)
        found += [Reading("genes", m, name, values[m], floors[m], group=group, cells=n) for m in values]
    return found


def fold_changes(draw: Draw, world: World) -> list[Reading]:
    """Every class against the rest: fold changes of generated on real cells, and top markers."""
    found, kept = [], world.space.expressed
    name = f"{int(kept.sum()):,} expressed genes"
    metrics = ("log-fold-change slope", "log-fold-change Spearman", "top-100 markers shared")
    for code, group in classes_of(draw, world):
        made, test, floor = (markers.contrast(cells.x, cells.codes == code, kept) for cells in draw[:3])
        values, floors = (markers.agreement(side, test) for side in (made, floor))
        n = int(world.sizes[code])
        for metric, value, real in zip(metrics, values, floors, strict=True):
            found.append(Reading("markers", metric, name, value, real, group=group, cells=n))
    return found


def purity(draw: Draw, world: World) -> list[Reading]:
    """Share of cells that a classifier trained on train puts in their class; the floor is that of test."""
    scale, n_classes = world.space.pc_scale, len(world.classes)
    fit = world.fitting
    model = conditions.class_classifier(
        "logistic regression", fit.pcs / scale, fit.codes, threads=world.settings.threads
    )
    if model is None:
        return []
    own, real = (
        conditions.purity(model, cells.pcs / scale, cells.codes, n_classes)
        for cells in (draw.generated, draw.test)
    )
    name, weight = pcs_name(world), world.sizes / world.sizes.sum()
    overall = [float(np.nansum(side * weight)) for side in (own, real)]
    found = [measured("conditions", "purity", name, overall, ceiling=overall[1])]
    for code, group in classes_of(draw, world):
        pair, n = (float(own[code]), float(real[code])), int(world.sizes[code])
        found.append(measured("conditions", "purity", name, pair, group=group, ceiling=pair[1], cells=n))
    return found


def learning(draw: Draw, world: World) -> list[Reading]:
    """Train on generated, test on real; the ceiling trains on all of train.

    The floor trains on as many real cells in the proportions of train, so that a class that was never
    generated is missed.
    """
    scale, n_classes, options = world.space.pc_scale, len(world.classes), world.settings
    test, pool, found = world.pools["test"], world.pools["floor"], []
    real_cells = pool.take(sample_rows(pool.codes, len(draw.generated), draw.seed))
    for learner in conditions.LEARNERS:
        scores = []
        for cells in (draw.generated, real_cells, world.fitting):
            model = conditions.class_classifier(
                learner, cells.pcs / scale, cells.codes, trees=options.trees, seed=draw.seed,
                threads=options.threads,
            )  # fmt: skip
            scores.append(conditions.macro_f1(model, test.pcs / scale, test.codes, n_classes))
        metric, name = f"macro-F1 trained on it, {learner}", pcs_name(world)
        (made, own), (floor, real), (whole, best) = scores
        found.append(Reading("conditions", metric, name, made, floor, ceiling=whole))
        for code, group in classes_of(draw, world):
            three = (float(side[code]) for side in (own, real, best))
            value, least, most = three
            n = int(world.sizes[code])
            found.append(Reading("conditions", metric, name, value, least, group, most, cells=n))
    return found


def copied(draw: Draw, world: World) -> list[Reading]:
    """Distances to the nearest of all train cells, of all cells and by class."""
    made, held_out = draw.generated.to_train, draw.test.to_train
    assert made is not None
    assert held_out is not None
    groups = [(ALL, np.ones(len(made), dtype=bool), np.ones(len(held_out), dtype=bool))]
    for code, group in classes_of(draw, world):
        groups.append((group, draw.generated.codes == code, draw.test.codes == code))
    found, name = [], pcs_name(world)
    for group, own, other in groups:
        seen, n = memorising(made[own], held_out[other]), int(own.sum())
        middle = float(np.median(held_out[other]))
        for metric, value, floor in (
            ("distance to nearest train cell", seen.distance, middle),
            ("AUROC nearer to train than held-out", seen.auroc, 0.5),
            ("nearer to train than 1 % of held-out", seen.near, seen.near_expected),
            ("copies of train cells", seen.copies, 0.0),
        ):
            found.append(Reading("memorising", metric, name, value, floor, group=group, cells=n))
    return found
