"""Who is compared, and the fits: every set, every classifier, every seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scdd.errors import InputError
from scdd.evaluation.inputs import RESERVED, CellSet, Inputs
from scdd.evaluation.panel import Recipe, fit_and_predict
from scdd.evaluation.scores import class_scores, score
from scdd.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DISTILLED, WHOLE, WEIGHTED, RANDOM = RESERVED


@dataclass(frozen=True)
class Contestant:
    """A named training set; where ``redrawn``, ``rows_of`` gives other rows for every seed."""

    name: str
    cells: CellSet
    sizes: np.ndarray | None = None

    @property
    def redrawn(self) -> bool:
        """Whether every seed draws its own rows."""
        return self.sizes is not None

    def rows_of(self, seed: int) -> CellSet:
        """Return the training rows of a seed."""
        return self.cells if self.sizes is None else draw(self.cells, self.sizes, seed)

    def class_sizes(self, n_classes: int) -> np.ndarray:
        """Rows of every class [n_classes]."""
        own = self.cells.class_sizes(n_classes)
        return own if self.sizes is None else np.minimum(own, self.sizes)


class Results(NamedTuple):
    """Tidy tables: one row a set, classifier, seed and metric; and one a set, class, classifier and seed."""

    scores: pd.DataFrame
    per_class: pd.DataFrame


def contestants(inputs: Inputs) -> tuple[Contestant, ...]:
    """Whole data, class-weighted whole data and random draws where there is train; distilled; baselines."""
    sets = [Contestant(DISTILLED, inputs.distilled), *(Contestant(b.name, b) for b in inputs.baselines)]
    train = inputs.train
    if train is None:
        return tuple(sets)
    n_classes = len(inputs.classes)
    sizes = train.class_sizes(n_classes)
    balanced = len(train.codes) / (np.count_nonzero(sizes) * sizes[train.codes])
    weighted = CellSet(WEIGHTED, train.x, train.codes, balanced, train.n_total)
    random = Contestant(RANDOM, train, inputs.distilled.class_sizes(n_classes))
    return (Contestant(WHOLE, train), Contestant(WEIGHTED, weighted), random, *sets)


def draw(cells: CellSet, sizes: np.ndarray, seed: int) -> CellSet:
    """``sizes[c]`` rows of every class c, all where it has fewer, without replacement."""
    rng = np.random.default_rng(seed)
    kept = []
    for code, size in enumerate(sizes):
        members = np.flatnonzero(cells.codes == code)
        kept.append(rng.choice(members, size=min(int(size), len(members)), replace=False))
    return cells.take(np.sort(np.concatenate(kept)))


def rows_per_class(sizes: np.ndarray) -> str:
    """Fewest and most rows of the classes that have any: ``"10"`` or ``"2–10"``."""
    present = sizes[sizes > 0]
    low, high = int(present.min()), int(present.max())
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def rarest_class(inputs: Inputs) -> int:
    """Code of the class with fewest training cells among those in test; the first by name in a tie."""
    n_classes = len(inputs.classes)
    sizes = inputs.real.class_sizes(n_classes).astype(float)
    sizes[inputs.test.class_sizes(n_classes) == 0] = np.inf
    # A class that training lacks cannot be learnt, so it is not the rarest one.
    sizes[sizes == 0] = np.inf
    if not np.isfinite(sizes).any():
        raise InputError(
            "train and test have no label in common; check label_key and the spelling of the labels"
        )
    return int(np.argmin(sizes))


def run(
    sets: Sequence[Contestant],
    inputs: Inputs,
    recipes: Sequence[Recipe],
    seeds: Sequence[int],
    *,
    progress: bool,
) -> Results:
    """Fit every classifier on every set for every seed and score it on test."""
    tables: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    with progress_bar("Classifiers", len(sets) * len(recipes) * len(seeds), enabled=progress) as advance:
        for contestant, recipe, seed, predicted in _predictions(sets, inputs, recipes, seeds):
            tables.append(_scored(contestant, recipe, seed, predicted, inputs))
            advance(note=f"{contestant.name}: {recipe.name}")
    return Results(*(pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True)))


def _predictions(
    sets: Sequence[Contestant], inputs: Inputs, recipes: Sequence[Recipe], seeds: Sequence[int]
) -> Iterator[tuple[Contestant, Recipe, int, np.ndarray]]:
    for contestant in sets:
        for recipe in recipes:
            predicted: np.ndarray | None = None
            for seed in seeds:
                if predicted is None or recipe.seeded or contestant.redrawn:
                    predicted = _predict(contestant, recipe, seed, inputs.test.x)
                yield contestant, recipe, seed, predicted


def _predict(contestant: Contestant, recipe: Recipe, seed: int, x_test: np.ndarray) -> np.ndarray:
    cells = contestant.rows_of(seed)
    try:
        return fit_and_predict(recipe, cells.x, cells.codes, cells.weight, x_test, seed=seed)
    except InputError as error:
        raise InputError(f"{contestant.name}: {error}") from error


def _scored(
    contestant: Contestant, recipe: Recipe, seed: int, predicted: np.ndarray, inputs: Inputs
) -> tuple[pd.DataFrame, pd.DataFrame]:
    n_classes, truth = len(inputs.classes), inputs.test.codes
    sizes = contestant.class_sizes(n_classes)
    values = score(truth, predicted, n_classes, rarest=rarest_class(inputs))
    each = class_scores(truth, predicted, n_classes)
    who = {"set": contestant.name, "rows": int(sizes.sum()), "rows_per_class": rows_per_class(sizes)}
    run_of = {"classifier": recipe.name, "seed": seed}
    total = pd.DataFrame({**who, **run_of, "metric": list(values._fields), "value": list(values)})
    per_class = pd.DataFrame(
        {
            "set": contestant.name,
            "class": list(inputs.classes),
            **run_of,
            "rows": sizes,
            "test_cells": each.support,
            "recall": each.recall,
            "f1": each.f1,
        }
    )
    return total, per_class[per_class["test_cells"] > 0]
