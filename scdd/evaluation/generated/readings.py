"""One measured number with its floor, what is good about it, and the table over draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

Better = Literal["lower", "higher", "half", "chance", "floor"]
ALL, MEAN = "all", "mean of classes"
KEYS = ["aspect", "metric", "space", "group", "variant"]


class Reading(NamedTuple):
    """One metric on one draw: generated against test (`value`), real against test (`floor`).

    `ceiling` is the best that can be had where that is known, `p` a permutation p-value, `cells` the
    generated cells it was measured on.
    """

    aspect: str
    metric: str
    space: str
    value: float
    floor: float
    group: str = ALL
    ceiling: float = np.nan
    p: float = np.nan
    cells: int = 0
    variant: str = "house"


def measured(
    aspect: str,
    metric: str,
    space: str,
    pair: Sequence[float],
    *,
    group: str = ALL,
    ceiling: float = np.nan,
    cells: int = 0,
) -> Reading:
    """A reading from the pair of its value and its floor."""
    value, floor = pair
    return Reading(aspect, metric, space, value, floor, group, ceiling, cells=cells)


class Rule(NamedTuple):
    """Which direction is better, and how much worse than real is too small to matter in practice.

    ``"half"``: 0.5 is best. ``"chance"``: 0.5 or less is best, as classifiers that find nothing score a
    little below when cross-validated. ``"floor"``: as real cells do; more is as wrong as less. The margin
    is a share of the floor where `relative`.
    """

    better: Better
    margin: float
    relative: bool = False


RULES = {
    "AUC, logistic regression": Rule("chance", 0.05),
    "AUC, random forest": Rule("chance", 0.05),
    "AUC, boosting": Rule("chance", 0.05),
    "1-NN accuracy": Rule("half", 0.05),
    "MMD²": Rule("lower", 0.002),
    "W2, exact": Rule("lower", 0.01, True),
    "W2, sliced": Rule("lower", 0.25, True),
    "precision": Rule("floor", 0.05),
    "recall": Rule("higher", 0.05),
    "density": Rule("floor", 0.10),
    "coverage": Rule("higher", 0.05),
    "iLISI": Rule("higher", 0.05),
    "mean, Spearman": Rule("higher", 0.01),
    "variance, Spearman": Rule("higher", 0.02),
    "zero fraction, Spearman": Rule("higher", 0.01),
    "mean, log-MSE": Rule("lower", 1.0, True),
    "variance, log-MSE": Rule("lower", 1.0, True),
    "zero fraction, log-MSE": Rule("lower", 1.0, True),
    "mean–variance curve": Rule("lower", 0.02),
    "zero–mean curve": Rule("lower", 0.01),
    "genes detected, KS": Rule("lower", 0.05),
    "correlation of correlations": Rule("higher", 0.05),
    "log-fold-change slope": Rule("floor", 0.10),
    "log-fold-change Spearman": Rule("higher", 0.05),
    "top-100 markers shared": Rule("higher", 0.05),
    "purity": Rule("higher", 0.05),
    "macro-F1 trained on it, logistic regression": Rule("higher", 0.03),
    "macro-F1 trained on it, random forest": Rule("higher", 0.03),
    "distance to nearest train cell": Rule("higher", 0.05, True),
    "AUROC nearer to train than held-out": Rule("lower", 0.05),
    "nearer to train than 1 % of held-out": Rule("lower", 0.03),
    "copies of train cells": Rule("lower", 0.002),
    "class frequencies, total variation": Rule("lower", 0.05),
    "classes generated": Rule("higher", 0.0),
}
_NO_RULE = Rule("lower", np.nan)


def excess(value: float, floor: float, better: Better) -> float:
    """How much worse than real cells; above zero is worse, whatever the direction of the metric.

    ``lower: value - floor``, ``higher: floor - value``, ``half: |value - 1/2| - |floor - 1/2|``,
    ``chance: max(value, 1/2) - max(floor, 1/2)``, ``floor: |value - floor|``.
    """
    if better == "lower":
        return value - floor
    if better == "higher":
        return floor - value
    if better == "chance":
        return max(value, 0.5) - max(floor, 0.5)
    if better == "half":
        return abs(value - 0.5) - abs(floor - 0.5)
    return abs(value - floor)


def mean_of_classes(readings: Sequence[Reading]) -> list[Reading]:
    """The plain mean over classes of every metric that was measured by class."""
    frame = pd.DataFrame([r for r in readings if r.group != ALL], columns=Reading._fields)
    found = []
    for (aspect, metric, space), part in frame.groupby(["aspect", "metric", "space"], sort=False):
        value, floor, ceiling = (_nanmean(part[c]) for c in ("value", "floor", "ceiling"))
        cells = int(part["cells"].sum())
        found.append(Reading(aspect, metric, space, value, floor, MEAN, ceiling, cells=cells))
    return found


def tabulate(draws: Sequence[Sequence[Reading]], share: float) -> pd.DataFrame:
    """One row a metric, space and group: means over draws, the interval of the excess, the verdict.

    Every draw holds a `share` f of the cells that can be used, so that the standard error of the whole is
    ``sqrt(f / (1 - f)) sd`` of the draws, the delete-d jackknife of Shao and Wu (Ann. Stat. 17, 1989).
    """
    frame = long_table(draws)
    rows = [_row(keys, part, share) for keys, part in frame.groupby(KEYS, sort=False)]
    return pd.DataFrame(rows)


def long_table(draws: Sequence[Sequence[Reading]]) -> pd.DataFrame:
    """One row a reading and draw, with its excess."""
    frames = [pd.DataFrame(part, columns=Reading._fields).assign(draw=i) for i, part in enumerate(draws)]
    frame = pd.concat(frames, ignore_index=True)
    frame["excess"] = [
        excess(value, floor, RULES.get(metric, _rule_of(metric)).better)
        for metric, value, floor in zip(frame["metric"], frame["value"], frame["floor"], strict=True)
    ]
    return frame


def _rule_of(metric: str) -> Rule:
    """Of a published variant, which has a direction but no margin of ours."""
    chance, higher = ("AUC", "accuracy"), ("LISI", "Spearman", "Pearson", "cosine")
    if any(word in metric for word in chance):
        return Rule("chance", np.nan)
    return Rule("higher", np.nan) if any(word in metric for word in higher) else _NO_RULE


def _row(keys: tuple[str, ...], part: pd.DataFrame, share: float) -> dict[str, object]:
    metric = keys[KEYS.index("metric")]
    rule = RULES.get(metric, _rule_of(metric))
    value, floor, ceiling = (_nanmean(part[c]) for c in ("value", "floor", "ceiling"))
    low, middle, high = _interval(part["excess"].to_numpy(dtype=float), share)
    margin = rule.margin * abs(floor) if rule.relative else rule.margin
    row: dict[str, object] = dict(zip(KEYS, keys, strict=True))
    row |= {"value": value, "floor": floor, "excess": middle, "low": low, "high": high}
    row |= {"ceiling": ceiling, "better": rule.better, "margin": margin, "p": _nanmean(part["p"])}
    return row | {"cells": int(part["cells"].max()), "verdict": _verdict(middle, low, margin)}


def _interval(values: np.ndarray, share: float) -> tuple[float, float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan, np.nan
    if len(values) < 2:
        return np.nan, float(values[0]), np.nan
    error = np.sqrt(share / (1 - share)) * values.std(ddof=1)
    half = float(stats.t.ppf(0.975, len(values) - 1) * error)
    middle = float(values.mean())
    return middle - half, middle, middle + half


def _verdict(middle: float, low: float, margin: float) -> str:
    """``worse``: by more than the margin, and surely; ``perhaps``: by more than the margin, not surely."""
    if np.isnan(margin) or np.isnan(middle):
        return ""
    if middle <= margin:
        return "as real"
    return "worse" if low > 0 else "perhaps worse"


def _nanmean(values: pd.Series) -> float:
    finite = values[np.isfinite(values.astype(float))]
    return float(finite.mean()) if len(finite) else np.nan
