"""The verb: judge a distilled set by what classifiers trained on it do on held-out cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scdd.errors import InputError
from scdd.evaluation.contest import contestants, rarest_class, rows_per_class, run
from scdd.evaluation.embedding import components
from scdd.evaluation.fidelity import measure
from scdd.evaluation.inputs import gather, provenance_of
from scdd.evaluation.panel import choose_classifiers
from scdd.evaluation.report import Details, Report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scdd.evaluation.inputs import Inputs
    from scdd.evaluation.panel import Recipe


def evaluate(
    distilled: Any,
    *,
    test: Any,
    train: Any = None,
    label_key: str,
    baselines: Mapping[str, Any] | None = None,
    classifiers: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 5,
    expression: str = "auto",
    max_cells: int = 20_000,
    progress: bool = True,
) -> Report:
    """Train every classifier on the distilled set, score on ``test`` and set it beside whole data.

    ``recovery = macro-F1 of the set / macro-F1 of whole data``, classifier by classifier. The same
    classifiers are trained on the whole of ``train``, on it with class weights, on a stratified random
    sample of the same size (another one for every seed) and on every baseline.

    Parameters
    ----------
    distilled
        AnnData, path or Atlas: log1p CP10k rows with ``obs[label_key]`` and, if any, ``obs["weight"]``.
    train, test
        Real cells, as AnnData, path or Atlas. ``train=None``: no whole data, no recovery. ``test`` cells
        must never have been seen by whatever made the distilled set.
    label_key
        Column of ``obs`` with the classes.
    baselines
        Other small sets by name, judged alike.
    classifiers
        Names from ``scdd.evaluation.panel.CLASSIFIERS``; all for None.
    seeds
        How many seeds (0, 1, …), or which.
    expression
        Kind of expression of train and test, see ``Atlas``.
    max_cells
        Of train and of test, at most about so many cells are used, drawn within classes; the report says so.
    progress
        Show a progress bar where there is a terminal.

    Returns
    -------
    Report
        Scores, tables and the HTML page. They depend on the arguments alone.

    Raises
    ------
    InputError
        No gene or label in common, a missing column, a bad weight, fewer than two classes,
        an unknown classifier.
    """
    recipes = choose_classifiers(classifiers)
    numbers = _choose_seeds(seeds)
    if max_cells < 2:
        raise InputError(f"max_cells={max_cells}; give at least 2")
    inputs = gather(
        distilled,
        train=train,
        test=test,
        baselines=dict(baselines or {}),
        label_key=label_key,
        expression=expression,
        max_cells=max_cells,
    )
    results = run(contestants(inputs), inputs, recipes, numbers, progress=progress)
    details = _details(inputs, recipes, numbers, label_key, provenance_of(distilled))
    return Report(results.scores, results.per_class, details)


def _choose_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(int(seed) for seed in seeds)
    if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise InputError(
            f"seeds={seeds!r}; give a number above zero, or different seeds that are not negative"
        )
    return numbers


def _details(
    inputs: Inputs,
    recipes: Sequence[Recipe],
    seeds: tuple[int, ...],
    label_key: str,
    provenance: dict[str, Any],
) -> Details:
    sizes = inputs.distilled.class_sizes(len(inputs.classes))
    return Details(
        label_key=label_key,
        classes=inputs.classes,
        n_train=None if inputs.train is None else inputs.train.n_total,
        n_train_used=None if inputs.train is None else len(inputs.train.codes),
        n_test=inputs.test.n_total,
        n_test_used=len(inputs.test.codes),
        n_genes=len(inputs.genes),
        rows_per_class=rows_per_class(sizes),
        weighted=inputs.distilled.weight is not None,
        rarest=inputs.classes[rarest_class(inputs)],
        seeds=seeds,
        recipes=tuple((recipe.name, recipe.description) for recipe in recipes),
        notes=inputs.notes,
        provenance=provenance,
        fidelity=measure(inputs),
        components=components(inputs),
    )
