from __future__ import annotations

import numpy as np
import pytest

from scdd.errors import InputError
from scdd.evaluation.neighbours import CosineNeighbours
from scdd.evaluation.panel import CLASSIFIERS, choose_classifiers, fit_and_predict

EVERY = pytest.mark.parametrize("recipe", CLASSIFIERS.values(), ids=list(CLASSIFIERS))


def clouds(n, *, n_classes=3, n_genes=30, noise=0.3, seed=0):
    """Well separated classes, ``n`` rows each."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(n_classes), n)
    centre = np.kron(np.eye(n_classes), np.full(n_genes // n_classes, 4.0))
    return (centre[y] + rng.normal(0, noise, (len(y), n_genes))).clip(0).astype(np.float32), y


@EVERY
def test_separable_classes_are_learnt_from_forty_rows_a_class(recipe):
    x, y = clouds(40)
    x_test, y_test = clouds(20, seed=1)
    assert (fit_and_predict(recipe, x, y, None, x_test, seed=0) == y_test).all()


@EVERY
def test_ten_rows_a_class_are_enough_for_every_recipe(recipe):
    """Boosting with scikit-learn's 20 rows a leaf would score 1/3 here."""
    x, y = clouds(10)
    x_test, y_test = clouds(20, seed=1)
    assert (fit_and_predict(recipe, x, y, None, x_test, seed=0) == y_test).mean() > 0.9


@EVERY
def test_one_row_a_class_works(recipe):
    x, y = clouds(1)
    got = fit_and_predict(recipe, x, y, np.ones(3), clouds(5)[0], seed=0)
    assert got.shape == (15,)
    assert set(got) <= {0, 1, 2}


@EVERY
def test_shuffled_labels_give_chance(recipe):
    x, y = clouds(40, n_classes=2)
    x_test, y_test = clouds(100, n_classes=2, noise=4.0, seed=1)
    hits = [
        (
            fit_and_predict(recipe, x, np.random.default_rng(s).permutation(y), None, x_test, seed=s)
            == y_test
        ).mean()
        for s in range(4)
    ]
    assert 0.2 < np.mean(hits) < 0.8


@EVERY
def test_a_class_absent_from_training_is_never_predicted(recipe):
    x, y = clouds(10)
    kept = y != 1
    got = fit_and_predict(recipe, x[kept], y[kept], None, x, seed=0)
    assert set(got) == {0, 2}


@EVERY
def test_same_seed_same_predictions(recipe):
    x, y = clouds(12, noise=3.0)
    x_test = clouds(60, noise=3.0, seed=1)[0]
    first, again = (fit_and_predict(recipe, x, y, None, x_test, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = fit_and_predict(recipe, x, y, None, x_test, seed=4)
    assert (other == first).all() == (not recipe.seeded)


@EVERY
def test_weights_decide_between_contradicting_rows(recipe):
    """The same rows with both labels: only the weights tell which label is meant."""
    x, y = clouds(30, n_classes=2)
    both, labels = np.vstack([x, x]), np.concatenate([y, 1 - y])
    weight = np.repeat([1.0, 1e-3], len(y))
    x_test, y_test = clouds(20, n_classes=2, seed=1)
    assert (fit_and_predict(recipe, both, labels, weight, x_test, seed=0) == y_test).mean() > 0.9
    flipped = fit_and_predict(recipe, both, labels, weight[::-1], x_test, seed=0)
    assert (flipped == y_test).mean() < 0.1


@pytest.mark.parametrize("name", ["logistic regression", "linear SVM"])
def test_only_relative_weights_matter(name):
    x, y = clouds(10, noise=3.0)
    weight = np.random.default_rng(0).gamma(1.0, 1.0, len(y)) + 0.1
    x_test = clouds(60, noise=3.0, seed=1)[0]
    small, large = (fit_and_predict(CLASSIFIERS[name], x, y, weight * f, x_test, seed=0) for f in (1e-3, 1e3))
    np.testing.assert_array_equal(small, large)


def test_neighbours_add_up_weights():
    """One heavy neighbour outvotes two light ones, and not when all weigh alike."""
    x = np.array([[1.0, 0.02], [1.0, 0.03], [1.0, 0.04], [-1.0, 0.0]])
    y, query = np.array([0, 0, 1, 1]), np.array([[1.0, 0.03]])
    assert CosineNeighbours(3).fit(x, y).predict(query) == 0
    assert CosineNeighbours(3).fit(x, y, sample_weight=np.array([1.0, 1.0, 5.0, 1.0])).predict(query) == 1


def test_neighbours_break_ties_by_distance_not_by_class():
    x = np.array([[1.0, 0.5], [1.0, 0.01], [-1.0, -0.3], [-1.0, -0.2]])
    y = np.array([0, 1, 0, 1])
    assert CosineNeighbours(2).fit(x, y).predict(np.array([[1.0, 0.0]])) == 1


def test_bad_training_sets_are_refused():
    x, y = clouds(4)
    recipe = CLASSIFIERS["logistic regression"]
    with pytest.raises(InputError, match="fewer than two classes"):
        fit_and_predict(recipe, x[:4], y[:4], None, x, seed=0)
    with pytest.raises(InputError, match="shapes disagree"):
        fit_and_predict(recipe, x, y, None, x[:, 1:], seed=0)
    with pytest.raises(InputError, match="NaN"):
        fit_and_predict(recipe, np.where(x > 4, np.nan, x), y, None, x, seed=0)
    for weight in (np.zeros(len(y)), np.ones(2), np.full(len(y), np.inf)):
        with pytest.raises(InputError, match="weights"):
            fit_and_predict(recipe, x, y, weight, x, seed=0)


def test_choose_classifiers():
    assert [r.name for r in choose_classifiers(None)] == list(CLASSIFIERS)
    assert [r.name for r in choose_classifiers(["MLP", "kNN"])] == ["kNN", "MLP"]
    assert [r.name for r in choose_classifiers("kNN")] == ["kNN"]
    for bad in (["svm"], []):
        with pytest.raises(InputError, match="choose from logistic regression"):
            choose_classifiers(bad)


def test_no_classifier_stops_by_a_validation_part():
    for recipe in CLASSIFIERS.values():
        assert not recipe.make(0, 100, 3).get_params().get("early_stopping")
        assert recipe.description.endswith(".")
