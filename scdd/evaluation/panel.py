"""The panel: six classifiers with fixed recipes, from one row a class to tens of thousands of rows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from scdd.errors import InputError
from scdd.evaluation.boosting import VariableGeneBoosting
from scdd.evaluation.neighbours import CosineNeighbours

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


# Below so many rows a fit ends sooner than its threads would agree, on a busy machine by far.
_ROWS_WORTH_THREADS = 5_000


@dataclass(frozen=True)
class Recipe:
    """One classifier of the panel.

    Attributes
    ----------
    name
        As printed in tables.
    make
        ``(seed, n_train, n_classes) -> estimator``: settings follow the size of the training set alone.
    description
        The whole recipe in one sentence; printed in the report.
    seeded
        Whether the fit depends on the seed; if not, one fit serves all seeds.
    """

    name: str
    make: Callable[[int, int, int], Any]
    description: str
    seeded: bool = True


def _logistic_regression(seed: int, n_train: int, n_classes: int) -> Any:
    return LogisticRegression(C=1.0, solver="lbfgs", max_iter=300, random_state=seed)


def _linear_svm(seed: int, n_train: int, n_classes: int) -> Any:
    # liblinear's dual solver shuffles rows; a fixed seed keeps the single fit that serves all seeds.
    return LinearSVC(C=0.01, dual="auto", max_iter=5_000, random_state=0)


def _neighbours(seed: int, n_train: int, n_classes: int) -> Any:
    k = int(np.clip(np.sqrt(n_train / n_classes), 1, 5))
    return CosineNeighbours(n_neighbours=k, n_components=30, seed=0)


def _random_forest(seed: int, n_train: int, n_classes: int) -> Any:
    return RandomForestClassifier(n_estimators=200, max_features=0.05, n_jobs=-1, random_state=seed)


def _gradient_boosting(seed: int, n_train: int, n_classes: int) -> Any:
    # The usual 20 cells a leaf would refuse every split of a set of ten rows a class.
    leaf = int(np.clip(n_train // (10 * n_classes), 1, 20))
    return VariableGeneBoosting(min_samples_leaf=leaf, n_genes=500, seed=seed)


def _mlp(seed: int, n_train: int, n_classes: int) -> Any:
    batch = min(64, n_train)
    epochs = int(np.clip(400 * batch // n_train, 10, 200))
    return MLPClassifier(
        hidden_layer_sizes=(128,),
        alpha=1.0,
        learning_rate_init=1e-3,
        batch_size=batch,
        max_iter=epochs,
        # Never stop before the last epoch, whatever the training loss does.
        n_iter_no_change=epochs + 1,
        random_state=seed,
    )


_RECIPES = (
    Recipe(
        "logistic regression",
        _logistic_regression,
        "Multinomial logistic regression, L2 penalty with C = 1, L-BFGS, at most 300 iterations.",
        seeded=False,
    ),
    Recipe(
        "linear SVM",
        _linear_svm,
        "One-against-rest linear support vector machine (liblinear), squared hinge loss, C = 0.01.",
        seeded=False,
    ),
    Recipe(
        "kNN",
        _neighbours,
        "Cosine nearest neighbours on at most 30 principal components of the training rows, "
        "k = the square root of the rows a class, from 1 to 5; votes weighted by sample weight.",
        seeded=False,
    ),
    Recipe(
        "random forest",
        _random_forest,
        "200 fully grown trees on bootstrap samples, a twentieth of the genes tried at each split.",
    ),
    Recipe(
        "gradient boosting",
        _gradient_boosting,
        "Histogram gradient boosting on the 500 genes that vary most among the training rows: 50 rounds, "
        "trees of at most 15 leaves, learning rate 0.1, 16 bins, a tenth of these genes tried at each split, "
        "a tenth of the rows a class (1 to 20) at least in a leaf.",
    ),
    Recipe(
        "MLP",
        _mlp,
        "One hidden layer of 128 ReLU units, Adam at 0.001, batches of 64, about 400 steps "
        "(10 to 200 epochs), L2 penalty 1, no early stopping.",
    ),
)

CLASSIFIERS: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _RECIPES})
"""Recipes by name, in the order of every table."""


def choose_classifiers(names: Sequence[str] | None) -> tuple[Recipe, ...]:
    """Recipes of the given names, in panel order; all for ``None``.

    Raises
    ------
    InputError
        An unknown name, or none at all.
    """
    if names is None:
        return tuple(CLASSIFIERS.values())
    wanted = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if name not in CLASSIFIERS]
    if unknown or not wanted:
        raise InputError(f"classifiers={wanted!r}; choose from {', '.join(CLASSIFIERS)}")
    return tuple(recipe for name, recipe in CLASSIFIERS.items() if name in wanted)


def fit_and_predict(
    recipe: Recipe, x: np.ndarray, y: np.ndarray, weight: np.ndarray | None, x_test: np.ndarray, *, seed: int
) -> np.ndarray:
    """Train one classifier from scratch and predict: ``x`` [n, G], ``y`` [n], ``x_test`` [m, G] -> codes [m].

    ``weight`` [n] (None: all equal) is scaled to mean 1 and given to the fit. A class absent from ``y``
    is never predicted.

    Raises
    ------
    InputError
        Fewer than two classes, shapes that disagree, values that are not finite, weights not above zero.
    """
    weight = _check(x, y, weight, x_test)
    estimator = recipe.make(seed, len(y), len(np.unique(y)))
    with threadpool_limits(1 if len(y) < _ROWS_WORTH_THREADS else None), warnings.catch_warnings():
        # The iteration limits are part of the recipes.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # One row a class is a fair question here, not a sign of regression.
        warnings.filterwarnings("ignore", message="The number of unique classes")
        estimator.fit(x, y, sample_weight=weight)
        if "n_jobs" in estimator.get_params():
            # Threads would add the votes of trees in any order, and the last bit could settle a tie.
            estimator.set_params(n_jobs=1)
        return np.asarray(estimator.predict(x_test), dtype=np.int64)


def _check(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None, x_test: np.ndarray) -> np.ndarray | None:
    if x.ndim != 2 or x_test.ndim != 2 or x.shape[1] != x_test.shape[1] or len(x) != len(y):
        raise InputError(f"shapes disagree: x {x.shape}, y {y.shape}, x_test {x_test.shape}")
    if len(np.unique(y)) < 2:
        raise InputError(
            f"the training set of {len(y)} rows has fewer than two classes; a classifier needs two"
        )
    if not (np.isfinite(x).all() and np.isfinite(x_test).all()):
        raise InputError("the expression holds NaN or infinity; repair or drop those rows")
    if weight is None:
        return None
    weight = np.asarray(weight, dtype=np.float64)
    if weight.shape != y.shape or not np.isfinite(weight).all() or (weight <= 0).any():
        raise InputError("weights must be one finite number above zero for every row")
    return weight / weight.mean()
