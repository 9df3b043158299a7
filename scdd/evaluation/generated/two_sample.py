"""Can generated cells be told from real ones: classifiers, nearest neighbours, kernel discrepancy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from scdd.evaluation.generated.neighbours import nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from sklearn.base import ClassifierMixin

CLASSIFIERS = ("logistic regression", "random forest", "boosting")


class MMD(NamedTuple):
    """Squared maximum mean discrepancy and the p-value of its permutation test (NaN if none was made)."""

    value: float
    p: float


def classifier_auc(
    x: np.ndarray, y: np.ndarray, classifier: str, *, folds: int = 5, trees: int = 200, seed: int = 0,
    threads: int = 1,
) -> float:  # fmt: skip
    """``AUC`` of out-of-fold scores that tell x [n, d] from y [m, d]; 0.5 where they are alike.

    The classifier two-sample test of Lopez-Paz and Oquab (ICLR 2017). Features are expected on one scale;
    trees do not mind.
    """
    z = np.vstack([x, y])
    truth = np.repeat([0, 1], [len(x), len(y)])
    score = np.zeros(len(z))
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for train, test in parts.split(z, truth):
        model = two_sample_classifier(classifier, z.shape[1], trees=trees, seed=seed, threads=threads)
        model.fit(z[train], truth[train])
        score[test] = model.predict_proba(z[test])[:, 1]
    return float(roc_auc_score(truth, score))


def two_sample_classifier(
    name: str, n_features: int, *, trees: int, seed: int, threads: int
) -> ClassifierMixin:
    """The classifier of that name; on many features with a stronger penalty and coarser histograms."""
    wide = n_features > 200
    make: dict[str, Callable[[], ClassifierMixin]] = {
        "logistic regression": lambda: LogisticRegression(C=0.01 if wide else 1.0, max_iter=200, tol=1e-3),
        "random forest": lambda: RandomForestClassifier(trees, random_state=seed, n_jobs=threads),
        "boosting": lambda: HistGradientBoostingClassifier(
            max_iter=60,
            max_leaf_nodes=15,
            max_bins=32 if wide else 128,
            max_features=0.1 if wide else 1.0,
            early_stopping=False,
            random_state=seed,
        ),
    }
    return make[name]()


def nearest_neighbour_accuracy(x: np.ndarray, y: np.ndarray) -> float:
    """Share of cells whose nearest other cell is of their own sample; 0.5 where the samples are alike.

    Lopez-Paz and Oquab (ICLR 2017); below 0.5 one sample holds near copies of the other.
    """
    z, truth = np.vstack([x, y]), np.repeat([0, 1], [len(x), len(y)])
    _, index = nearest(z, z, 1, without_self=True)
    return float(np.mean(truth[index[:, 0]] == truth))


def discrepancy(x: np.ndarray, y: np.ndarray, *, unit: float, permutations: int = 0, seed: int = 0) -> MMD:
    """Unbiased ``MMD² = E k(x,x') + E k(y,y') - 2 E k(x,y)``, mean of Gaussian kernels of five widths.

    Squared widths are ``unit · (1/8, 1/4, 1/2, 1, 2)``; Gretton et al. (JMLR 13, 2012). The p-value is of
    relabelled samples.
    """
    import torch

    from scdd.kernels import maximum_mean_discrepancy, mmd_permutation_test

    a, b = (torch.from_numpy(np.ascontiguousarray(z, dtype=np.float32)) for z in (x, y))
    if not permutations:
        return MMD(float(maximum_mean_discrepancy(a, b, unit=unit, reduction="mean")), np.nan)
    test = mmd_permutation_test(a, b, permutations=permutations, unit=unit, seed=seed)
    return MMD(float(test.mmd2) / 5, float(test.p_value))


def median_distance(x: np.ndarray, seed: int = 0) -> float:
    """Median squared distance between cells x [n, d], the unit of the kernels."""
    import torch

    from scdd.kernels import bandwidth_heuristic

    return float(
        bandwidth_heuristic(torch.from_numpy(np.ascontiguousarray(x)), statistic="median", seed=seed)
    )
