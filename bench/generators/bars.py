"""What a run scores on the bars, as ratios to real cells where real cells do not reach the number themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scdd.evaluation.generated.readings import RULES, excess
from scdd.evaluation.scores import interval

if TYPE_CHECKING:
    from collections.abc import Callable

Runs = pd.DataFrame


class Bar(NamedTuple):
    """A column of the table: what is asked, and how a run's rows give it, of made cells and of real ones."""

    title: str
    asked: str
    met: Callable[[float], bool]
    of: Callable[[pd.DataFrame], float]
    real: Callable[[pd.DataFrame], float] = lambda _: 1.0


def _one(rows: pd.DataFrame, metric: str, group: str, column: str = "value", space: str = "") -> float:
    found = rows[(rows["metric"] == metric) & (rows["group"] == group) & rows["space"].str.endswith(space)]
    return float(found[column].iloc[0]) if len(found) else np.nan


def _auc(space: str, column: str = "value") -> Callable[[pd.DataFrame], float]:
    return lambda rows: _one(rows, "AUC, random forest", "all", column, space)


def _ratio(rows: pd.DataFrame, metric: str, group: str, below: str = "floor") -> float:
    return _one(rows, metric, group) / _one(rows, metric, group, below)


def _learned(rows: pd.DataFrame) -> float:
    names = [f"macro-F1 trained on it, {name}" for name in ("logistic regression", "random forest")]
    made, real = ([_one(rows, name, "all", column) for name in names] for column in ("value", "floor"))
    return float(np.mean(made) / np.mean(real))


def _worst(rows: pd.DataFrame, metric: str, below: str, pick: Callable[[pd.Series], float]) -> float:
    classes = rows[(rows["metric"] == metric) & ~rows["group"].isin(["all", "mean of classes"])]
    return float(pick(classes["value"] / classes[below])) if len(classes) else np.nan


_NEAREST, _FOLD = "distance to nearest train cell", "log-fold-change"
BARS = (
    Bar("AUC, 50 PCs", "≤ 0.60", lambda v: v <= 0.60, _auc("PCs"), _auc("PCs", "floor")),
    Bar("AUC, genes", "≤ 0.75", lambda v: v <= 0.75, _auc("genes"), _auc("genes", "floor")),
    Bar("learnt, ÷ real", "≥ 0.97", lambda v: v >= 0.97, _learned),
    Bar("slope, ÷ real", "0.95–1.05", lambda v: abs(v - 1) <= 0.05, lambda r: _ratio(r, f"{_FOLD} slope", "mean of classes")),
    Bar("Spearman, ÷ real", "≥ 0.95", lambda v: v >= 0.95, lambda r: _ratio(r, f"{_FOLD} Spearman", "mean of classes")),
    Bar("purity, ÷ ceiling", "≥ 0.98", lambda v: v >= 0.98, lambda r: _ratio(r, "purity", "all", "ceiling")),
    Bar("nearest train, ÷ held-out", "0.90–1.10", lambda v: abs(v - 1) <= 0.10, lambda r: _ratio(r, _NEAREST, "all")),
)  # fmt: skip
FURTHER = (
    ("slope", f"{_FOLD} slope", "mean of classes", ""),
    ("Spearman", f"{_FOLD} Spearman", "mean of classes", ""),
    ("top 100", "top-100 markers shared", "mean of classes", ""),
    ("MMD²", "MMD²", "all", "PCs"),
    ("1-NN", "1-NN accuracy", "all", "PCs"),
    ("W2", "W2, exact", "all", "PCs"),
    ("precision", "precision", "all", ""),
    ("recall", "recall", "all", ""),
    ("coverage", "coverage", "all", ""),
    ("iLISI", "iLISI", "all", ""),
    ("corr. of corr.", "correlation of correlations", "all", ""),
    ("detected, KS", "genes detected, KS", "all", ""),
    ("nearer to train", "AUROC nearer to train than held-out", "all", ""),
)


class Level(NamedTuple):
    """Mean over seeds, and half its 95 % interval (NaN of one seed)."""

    mean: float
    half: float


def level(values: list[float]) -> Level:
    """Over seeds."""
    found = interval(values)
    return Level(found.mean, found.high - found.mean)


def bars_of(runs: Runs) -> list[Level]:
    """All bars of one method on one task."""
    each = [rows for _, rows in runs.groupby("seed")]
    return [level([bar.of(rows) for rows in each]) for bar in BARS]


def real_of(runs: Runs) -> list[Level]:
    """What a second sample of real cells scores on the same bars."""
    each = [rows for _, rows in runs.groupby("seed")]
    return [level([bar.real(rows) for rows in each]) for bar in BARS]


def further_of(runs: Runs, column: str = "value") -> list[Level]:
    """The other metrics of one method on one task; of real cells by ``column="floor"``."""
    each = [rows for _, rows in runs.groupby("seed")]
    return [level([_one(rows, m, group, column, space) for rows in each]) for _, m, group, space in FURTHER]


def worst_classes(runs: Runs) -> tuple[Level, Level]:
    """The class of least purity over its ceiling, and the one nearest to train against held-out cells."""
    each = [rows for _, rows in runs.groupby("seed")]
    purity = level([_worst(rows, "purity", "ceiling", pd.Series.min) for rows in each])
    return purity, level([_worst(rows, _NEAREST, "floor", pd.Series.min) for rows in each])


def wins(ours: Runs, other: Runs) -> tuple[int, int]:
    """On how many of the metrics both have ours is nearer to real cells, by mean excess over seeds."""
    mine, theirs = (_excesses(runs) for runs in (ours, other))
    both = mine.index.intersection(theirs.index)
    better = mine[both] < theirs[both]
    return int(better.sum()), int((mine[both] != theirs[both]).sum())


def _excesses(runs: Runs) -> pd.Series:
    """Mean excess by metric and space: of all cells, or of classes where that is all there is."""
    known = runs[runs["metric"].isin(RULES) & (runs["aspect"] != "composition")]
    overall = known[known["group"] == "all"]
    by_class = known[(known["group"] == "mean of classes") & ~known["metric"].isin(overall["metric"])]
    rows = pd.concat([overall, by_class]).copy()
    rows["excess"] = [
        excess(v, f, RULES[m].better)
        for m, v, f in rows[["metric", "value", "floor"]].itertuples(index=False)
    ]
    return rows.groupby(["metric", "space"])["excess"].mean().dropna()
