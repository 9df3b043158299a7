"""Is a cell of the class that was asked for, and can one learn the classes from generated cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from scdd.evaluation.scores import class_scores

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

LEARNERS = ("logistic regression", "random forest")


def class_classifier(
    name: str, x: np.ndarray, codes: np.ndarray, *, trees: int = 200, seed: int = 0, threads: int = 1
) -> ClassifierMixin | None:
    """Learn the classes from scaled components x [n, d]; None where there is but one class."""
    if len(np.unique(codes)) < 2:
        return None
    if name == "logistic regression":
        return LogisticRegression(C=1.0, max_iter=300, tol=1e-3, class_weight="balanced").fit(x, codes)
    model = RandomForestClassifier(
        trees, class_weight="balanced_subsample", random_state=seed, n_jobs=threads
    )
    return model.fit(x, codes)


def purity(model: ClassifierMixin, x: np.ndarray, codes: np.ndarray, n_classes: int) -> np.ndarray:
    """Share of cells given their own class by an external classifier, [n_classes]; NaN without cells."""
    if not len(x):
        return np.full(n_classes, np.nan)
    return class_scores(codes, model.predict(x), n_classes).recall


def macro_f1(
    model: ClassifierMixin | None, x: np.ndarray, codes: np.ndarray, n_classes: int
) -> tuple[float, np.ndarray]:
    """Mean F1 of the classes of real test cells, and that of each [n_classes]; NaN without a model.

    Train on synthetic, test on real: Esteban et al. (arXiv 1706.02633, 2017).
    """
    if model is None:
        return np.nan, np.full(n_classes, np.nan)
    f1 = class_scores(codes, model.predict(x), n_classes).f1
    return float(np.nanmean(f1)), f1
