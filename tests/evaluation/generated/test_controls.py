"""Negative controls: each is caught by the metric that is meant for it, and held-out real cells pass."""

from __future__ import annotations

import numpy as np
import pytest

from scdd.evaluation.generated.readings import ALL, MEAN

from .conftest import LABEL, cells


@pytest.fixture(scope="module")
def labels(real):
    return real["held out"].obs[LABEL].astype(str).to_numpy()


@pytest.fixture(scope="module")
def counts(real):
    return real["held out"].X.toarray()


def test_held_out_real_cells_pass(real, score):
    report = score(real["held out"])
    table = report.to_frame()
    worse, by_class = table["verdict"] == "worse", ~table["group"].isin((ALL, MEAN))
    assert not worse[~by_class].any(), table[worse]
    # Each row by itself is wrong now and then.
    assert worse[by_class].mean() <= 0.05, table[worse]
    assert "and 0 worse" in report.headline()[0]
    p = table.loc[table["p"].notna(), "p"]
    assert len(p) == 2
    assert p.min() > 0.01


def test_genes_shuffled_within_classes(score, counts, labels):
    """Every gene keeps its distribution in every class; only what goes together is lost."""
    rng, made = np.random.default_rng(0), counts.copy()
    for name in np.unique(labels):
        rows = np.flatnonzero(labels == name)
        for gene in range(made.shape[1]):
            made[rows, gene] = made[rng.permutation(rows), gene]
    report = score(cells(made, labels), "two-sample", "genes", "co-expression", "conditions")
    assert report.verdict("correlation of correlations") == "worse"
    assert report.verdict("AUC, boosting", space="15 PCs") == "worse"
    assert report.verdict("MMD²", space="15 PCs") == "worse"
    assert report.verdict("zero–mean curve") == "as real"
    assert report.verdict("purity") != "worse"
    table = report.to_frame()
    assert table.loc[(table["metric"] == "MMD²") & table["p"].notna(), "p"].max() < 0.05


def test_classes_shuffled(score, counts, labels):
    """The cells are real, and none is what was asked for."""
    made = cells(counts, np.random.default_rng(0).permutation(labels))
    report = score(made, "two-sample", "markers", "conditions", "composition")
    assert report.verdict("purity") == "worse"
    assert report.verdict("macro-F1 trained on it, logistic regression") == "worse"
    assert report.verdict("log-fold-change slope", group=MEAN) == "worse"
    assert report.verdict("MMD²", space="15 PCs", group=MEAN) == "worse"
    assert report.verdict("AUC, boosting") != "worse"
    assert report.verdict("class frequencies, total variation") == "as real"


def test_one_mean_cell_repeated(score, counts, labels):
    means = {name: counts[labels == name].mean(axis=0) for name in np.unique(labels)}
    made = np.log1p(np.stack([1e4 * means[name] / means[name].sum() for name in labels]))
    report = score(cells(made, labels), "two-sample", "support", "genes")
    for metric in ("recall", "coverage", "variance, log-MSE", "mean–variance curve", "AUC, random forest"):
        assert report.verdict(metric) == "worse", metric
    # What fails to see it, and why it is never read alone: mean cells lie where real cells are dense.
    row = report.table[(report.table["metric"] == "precision")].iloc[0]
    assert row["value"] >= row["floor"]


def test_copies_of_train(real, score):
    rows = np.arange(real["train"].n_obs) % 3 > 0
    report = score(real["train"][rows].copy(), "two-sample", "memorising")
    for metric in (
        "copies of train cells",
        "AUROC nearer to train than held-out",
        "distance to nearest train cell",
    ):
        assert report.verdict(metric) == "worse", metric
        assert report.verdict(metric, group="type 1") == "worse", metric
    assert report.verdict("AUC, random forest") != "worse"


def test_train_cells_with_noise_are_caught_too(real, score):
    made = real["train"][:300].copy()
    x = made.X.toarray()
    x = np.log1p(1e4 * x / x.sum(axis=1, keepdims=True))
    made.X = np.clip(x + 0.1 * np.random.default_rng(0).standard_normal(x.shape) * (x > 0), 0, None)
    report = score(made, "memorising")
    assert report.verdict("nearer to train than 1 % of held-out") == "worse"


def test_a_class_never_generated(real, score):
    made = real["held out"]
    report = score(made[made.obs[LABEL] != "type 2"].copy(), "conditions", "composition")
    assert report.verdict("classes generated") == "worse"
    assert report.verdict("class frequencies, total variation") == "worse"
    assert report.verdict("macro-F1 trained on it, random forest") == "worse"
    assert any("Never generated: 'type 2'" in note for note in report.details.notes)
