from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics

from scdd.evaluation.scores import class_scores, interval, recovery, score
from scdd.evaluation.summary import headline, recoveries, summarise


@pytest.fixture
def prediction():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, size=400)
    predicted = np.where(rng.random(400) < 0.6, truth, rng.integers(0, 7, size=400))
    return truth, predicted


def test_scores_equal_scikit_learn(prediction):
    truth, predicted = prediction
    got = score(truth, predicted, 7, rarest=2)
    present = np.unique(truth)
    assert got.accuracy == pytest.approx(metrics.accuracy_score(truth, predicted))
    expected = metrics.f1_score(truth, predicted, labels=present, average="macro")
    assert got.macro_f1 == pytest.approx(expected)
    expected = metrics.recall_score(truth, predicted, labels=present, average="macro")
    assert got.balanced_accuracy == pytest.approx(expected)
    assert got.rarest_recall == pytest.approx((predicted[truth == 2] == 2).mean())


def test_class_scores_equal_scikit_learn_and_are_nan_without_test_cells(prediction):
    truth, predicted = prediction
    got = class_scores(truth, predicted, 7)
    np.testing.assert_allclose(got.f1[:5], metrics.f1_score(truth, predicted, labels=range(5), average=None))
    np.testing.assert_allclose(
        got.recall[:5], metrics.recall_score(truth, predicted, labels=range(5), average=None)
    )
    assert np.isnan(got.f1[5:]).all()
    assert got.support.sum() == len(truth)


def test_a_class_never_predicted_scores_zero():
    got = class_scores(np.array([0, 0, 1]), np.array([0, 0, 0]), 2)
    assert got.f1[1] == got.recall[1] == 0.0


def test_interval_is_student_t():
    values = [0.7, 0.8, 0.75, 0.9]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert interval(values) == pytest.approx((np.mean(values), low, high))


def test_interval_of_one_value_has_no_bounds():
    mean, low, high = interval([0.5])
    assert mean == 0.5
    assert np.isnan([low, high]).all()


def test_recovery():
    assert recovery(0.6, 0.8) == pytest.approx(0.75)
    assert np.isnan(recovery(0.6, 0.0))


def tidy(values: dict[str, dict[str, list[float]]]) -> pd.DataFrame:
    """Scores by set, classifier and seed; every metric gets the same value."""
    return pd.DataFrame(
        [
            {"set": s, "rows": 9, "rows_per_class": "3", "classifier": c, "seed": i, "metric": m, "value": v}
            for s, by_classifier in values.items()
            for c, seeds in by_classifier.items()
            for i, v in enumerate(seeds)
            for m in ("accuracy", "macro_f1", "balanced_accuracy", "rarest_recall")
        ]
    )


RANDOM, WEIGHTED = "stratified random (same size)", "whole data, class-weighted"
WHOLE_SCORES = {"LR": [0.8, 1.0], "RF": [0.8, 0.8]}


def test_summary_by_hand():
    scores = tidy({"whole data": WHOLE_SCORES, "distilled": {"LR": [0.81, 0.63], "RF": [0.4, 0.6]}})
    row = summarise(scores).loc["distilled"]
    assert row["macro_f1"] == pytest.approx((0.72 + 0.5) / 2)
    # Whole data means 0.9 and 0.8: recoveries 0.8 and 0.625.
    assert row["recovery"] == pytest.approx((0.8 + 0.625) / 2)
    assert row["worst_recovery"] == pytest.approx(0.625)
    assert row["worst_classifier"] == "RF"
    by_seed = [(0.81 / 0.9 + 0.4 / 0.8) / 2, (0.63 / 0.9 + 0.6 / 0.8) / 2]
    assert tuple(row[["recovery", "recovery_low", "recovery_high"]]) == pytest.approx(interval(by_seed))
    assert recoveries(scores, "whole data").mean().tolist() == pytest.approx([1.0, 1.0])


def sentences(**sets: list[float]) -> str:
    names = {"whole": "whole data", "weighted": WEIGHTED, "random": RANDOM}
    scores = tidy({names.get(k, k): {"LR": [v, v], "RF": [w, w]} for k, (v, w) in sets.items()})
    return " ".join(headline(summarise(scores), 2))


def test_headline_says_which_baseline_wins():
    base = {"whole": [0.9, 0.9], "weighted": [0.9, 0.9], "random": [0.5, 0.5], "distilled": [0.81, 0.45]}
    text = sentences(**base, mine=[0.72, 0.72])
    assert "recover 70.0 % of the whole-data macro-F1" in text
    assert "50.0 % with the worst of them (RF)" in text
    assert (
        "“mine” does better: mean recovery 80.0 % against 70.0 %; worst classifier 80.0 % against 50.0 %"
        in text
    )
    # Random loses by mean (55.6 %) and wins by worst classifier: that is said too.
    assert f"“{RANDOM}” does better: worst classifier 55.6 % against 50.0 %" in text


def test_headline_says_when_no_baseline_wins():
    text = sentences(whole=[0.9, 0.9], weighted=[0.9, 0.9], random=[0.4, 0.4], distilled=[0.81, 0.72])
    assert "No baseline does better" in text
    assert "above whole data" not in text


@pytest.mark.parametrize(("weighted", "verdict"), [(0.95, "alone explains it"), (0.85, "does not explain")])
def test_headline_does_not_sell_rebalancing_as_distillation(weighted, verdict):
    sets = {"whole": [0.8, 0.8], "weighted": [weighted] * 2, "random": [0.4, 0.4], "distilled": [0.9, 0.9]}
    assert verdict in sentences(**sets)
