"""Scores of one prediction, recovery against whole data, and intervals over seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Iterable


class Scores(NamedTuple):
    """Scores of one prediction, each between 0 and 1.

    ``macro_f1`` is the mean F1 and ``balanced_accuracy`` the mean recall of the classes in the test
    set; ``rarest_recall`` is the recall of the class that is rarest in training.
    """

    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    rarest_recall: float


class ClassScores(NamedTuple):
    """Of every class: test cells, recall and F1, each [n_classes]; NaN for classes without test cells."""

    support: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


class Interval(NamedTuple):
    """A mean and its 95 % t-interval; the bounds are NaN for fewer than two values."""

    mean: float
    low: float
    high: float


def class_scores(truth: np.ndarray, predicted: np.ndarray, n_classes: int) -> ClassScores:
    """Recall ``hits / cells`` and ``F1 = 2 hits / (cells + predictions)`` of every class.

    ``truth`` and ``predicted`` are codes [n] below ``n_classes``.
    """
    support = np.bincount(truth, minlength=n_classes)
    claimed = np.bincount(predicted, minlength=n_classes)
    hits = np.bincount(truth[truth == predicted], minlength=n_classes)
    absent = support == 0
    recall = np.where(absent, np.nan, hits / np.maximum(support, 1))
    f1 = np.where(absent, np.nan, 2.0 * hits / np.maximum(support + claimed, 1))
    return ClassScores(support, recall, f1)


def score(truth: np.ndarray, predicted: np.ndarray, n_classes: int, *, rarest: int) -> Scores:
    """All scores of one prediction; ``rarest`` is the code of the class rarest in training."""
    per_class = class_scores(truth, predicted, n_classes)
    return Scores(
        accuracy=float(np.mean(truth == predicted)),
        macro_f1=float(np.nanmean(per_class.f1)),
        balanced_accuracy=float(np.nanmean(per_class.recall)),
        rarest_recall=float(per_class.recall[rarest]),
    )


def recovery(score: float, whole: float) -> float:
    """Share of the whole-data score that is kept, ``score / whole``; NaN if whole data scores nothing."""
    return score / whole if whole > 0 else float("nan")


def interval(values: Iterable[float]) -> Interval:
    """Mean and 95 % interval of Student's t: ``mean ± t(0.975, n - 1) s / sqrt(n)``."""
    sample = np.asarray(list(values), dtype=np.float64)
    mean = float(sample.mean()) if len(sample) else float("nan")
    if len(sample) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = stats.t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample))
    return Interval(mean, mean - float(half), mean + float(half))
