"""From tidy scores to one row a set, one cell a classifier, and one honest sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdd.evaluation.contest import DISTILLED, RANDOM, WEIGHTED, WHOLE
from scdd.evaluation.scores import Interval, interval, recovery

if TYPE_CHECKING:
    from collections.abc import Callable


def seed_table(scores: pd.DataFrame, name: str, metric: str = "macro_f1") -> pd.DataFrame:
    """One metric of one set: seeds by classifiers."""
    chosen = scores[(scores["set"] == name) & (scores["metric"] == metric)]
    order = list(dict.fromkeys(scores["classifier"]))
    return chosen.pivot(index="seed", columns="classifier", values="value")[order]


def recoveries(scores: pd.DataFrame, name: str, metric: str = "macro_f1") -> pd.DataFrame | None:
    """Score over the mean score of whole data, seeds by classifiers; None without whole data."""
    if not (scores["set"] == WHOLE).any():
        return None
    own, whole = seed_table(scores, name, metric), seed_table(scores, WHOLE, metric).mean()
    return own.apply(lambda column: column.map(lambda value: recovery(value, whole[column.name])))


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a set, indexed by it.

    ``macro_f1`` and ``recovery`` are means over classifiers with 95 % intervals over seeds;
    ``worst_recovery`` is the lowest mean recovery of any classifier, ``worst_classifier`` its name.
    """
    names = list(dict.fromkeys(scores["set"]))
    return pd.DataFrame([_row(scores, name) for name in names], index=pd.Index(names, name="set"))


def classifier_table(scores: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """Macro-F1 with its interval over seeds: classifier -> set -> interval."""
    names = list(dict.fromkeys(scores["set"]))
    tables = {name: seed_table(scores, name) for name in names}
    return {c: {name: interval(tables[name][c]) for name in names} for c in tables[names[0]].columns}


def class_table(per_class: pd.DataFrame, metric: str = "f1") -> pd.DataFrame:
    """Mean over classifiers and seeds: classes by sets, most frequent class of the test set first."""
    size = per_class.groupby("class")["test_cells"].first()
    order = size.sort_values(ascending=False, kind="stable").index
    table = per_class.pivot_table(index="class", columns="set", values=metric, aggfunc="mean")
    return table.loc[order, list(dict.fromkeys(per_class["set"]))]


def headline(summary: pd.DataFrame, n_classifiers: int) -> list[str]:
    """Sentences that say what was recovered and, first of all, whether anything simpler did better."""
    own = summary.loc[DISTILLED]
    panel = "the one classifier" if n_classifiers == 1 else f"{n_classifiers} classifiers"
    rows = f"{own['rows']:,} distilled rows ({own['rows_per_class']} a class)"
    if np.isnan(own["recovery"]):
        first = (
            f"{rows} reach a macro-F1 of {own['macro_f1']:.3f}, the mean of {panel} (no whole data given)."
        )
    else:
        first = (
            f"{rows} recover {_percent(own['recovery'])} of the whole-data macro-F1, the mean of {panel}, "
            f"and {_percent(own['worst_recovery'])} with the worst of them ({own['worst_classifier']})."
        )
    return [first, *_rivals(summary), *_balance(summary)]


def _row(scores: pd.DataFrame, name: str) -> dict[str, object]:
    first = scores[scores["set"] == name].iloc[0]
    f1 = interval(seed_table(scores, name).mean(axis=1))
    row: dict[str, object] = {"rows": int(first["rows"]), "rows_per_class": first["rows_per_class"]}
    row |= {"macro_f1": f1.mean, "macro_f1_low": f1.low, "macro_f1_high": f1.high}
    kept = recoveries(scores, name)
    share = Interval(np.nan, np.nan, np.nan) if kept is None else interval(kept.mean(axis=1))
    row |= {"recovery": share.mean, "recovery_low": share.low, "recovery_high": share.high}
    worst = None if kept is None or kept.isna().all(axis=None) else kept.mean()
    row |= {
        "worst_recovery": np.nan if worst is None else float(worst.min()),
        "worst_classifier": "" if worst is None else str(worst.idxmin()),
    }
    return row | {
        metric: float(seed_table(scores, name, metric).to_numpy().mean())
        for metric in ("accuracy", "balanced_accuracy", "rarest_recall")
    }


def _rivals(summary: pd.DataFrame) -> list[str]:
    """One sentence for every set of the same kind that scores higher by mean or by worst classifier."""
    own, said = summary.loc[DISTILLED], []
    for name, rival in summary.drop(index=[DISTILLED, WHOLE, WEIGHTED], errors="ignore").iterrows():
        reasons = [_by_mean(own, rival), _by_worst(own, rival)]
        if any(reasons):
            said.append(f"The baseline “{name}” does better: {'; '.join(filter(None, reasons))}.")
    if not said and RANDOM in summary.index:
        said = ["No baseline does better, by mean or by worst classifier."]
    return said


def _by_mean(own: pd.Series, rival: pd.Series) -> str:
    say: Callable[[float], str] = _percent
    column = name = "recovery"
    if np.isnan(own["recovery"]):
        column, name, say = "macro_f1", "macro-F1", "{:.3f}".format
    if not rival[column] > own[column]:
        return ""
    level = rival[f"{column}_low"] <= own[f"{column}_high"]
    aside = " (the intervals overlap)" if level else ""
    return f"mean {name} {say(rival[column])} against {say(own[column])}{aside}"


def _by_worst(own: pd.Series, rival: pd.Series) -> str:
    column = "worst_recovery"
    if not rival[column] > own[column]:
        return ""
    return f"worst classifier {_percent(rival[column])} against {_percent(own[column])}"


def _balance(summary: pd.DataFrame) -> list[str]:
    if WHOLE not in summary.index:
        return []
    own, whole, weighted = (summary.loc[name, "macro_f1"] for name in (DISTILLED, WHOLE, WEIGHTED))
    if not own > whole:
        return []
    verdict = (
        "so re-balancing alone explains it"
        if weighted >= own
        else "which re-balancing alone does not explain"
    )
    return [f"It scores above whole data; whole data with class weights reaches {weighted:.3f}, {verdict}."]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
