from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scdd.data.atlas import Atlas
from scdd.errors import InputError
from scdd.evaluation.contest import draw
from scdd.evaluation.evaluate import evaluate
from scdd.evaluation.inputs import CellSet, sample_rows

FAST = ("logistic regression", "kNN")
RANDOM = "stratified random (same size)"


@pytest.fixture(scope="module")
def cells(make_cells):
    return make_cells(seed=1), make_cells(seed=2)


@pytest.fixture
def judge(cells):
    def run(distilled, *, train=cells[0], test=cells[1], classifiers=FAST, seeds=2, **options):
        options = {"label_key": "cell_type", "progress": False, **options}
        return evaluate(distilled, train=train, test=test, classifiers=classifiers, seeds=seeds, **options)

    return run


def values(report, name, metric="macro_f1"):
    scores = report.scores
    return scores.loc[(scores["set"] == name) & (scores["metric"] == metric), "value"].to_numpy()


def test_separable_data_scores_one_with_every_classifier(make_cells, distil):
    train, test = (make_cells(24, 3, strength=40.0, seed=s) for s in (1, 2))
    report = evaluate(
        distil(train, 12), train=train, test=test, label_key="cell_type", seeds=1, progress=False
    )
    for name in ("distilled", "whole data", "whole data, class-weighted", RANDOM):
        assert values(report, name).min() > 0.97, name
    assert report.summary().loc["distilled", "worst_recovery"] > 0.97
    assert len(report.scores) == 4 * 6 * 4


def test_shuffled_labels_score_chance(cells, distil, judge):
    made = distil(cells[0], 10)
    labels = np.random.default_rng(0).permutation(made.obs["cell_type"].astype(str))
    made.obs["cell_type"] = pd.Categorical(labels)
    report = judge(made)
    assert values(report, "distilled", "balanced_accuracy").max() < 0.5
    assert values(report, "whole data", "balanced_accuracy").min() > 0.9


def test_tables(cells, distil, judge):
    report = judge(distil(cells[0], 3), baselines={"mine": distil(cells[0], 6)}, seeds=(4, 7, 9))
    assert list(report.scores.columns) == [
        "set",
        "rows",
        "rows_per_class",
        "classifier",
        "seed",
        "metric",
        "value",
    ]
    sets = ["whole data", "whole data, class-weighted", RANDOM, "distilled", "mine"]
    assert list(report.summary().index) == sets
    assert report.summary()["rows"].tolist() == [120, 120, 12, 12, 24]
    assert report.summary()["rows_per_class"].tolist() == ["30", "30", "3", "3", "6"]
    assert report.scores["seed"].unique().tolist() == [4, 7, 9]
    assert len(report.per_class) == 5 * 2 * 3 * 4
    first = report.per_class.iloc[0]
    assert (first["class"], first["test_cells"], first["rows"]) == ("type 0", 30, 30)


def test_recovery_is_the_ratio_to_whole_data(make_cells, distil, judge):
    train, test = (make_cells(30, strength=1.6, seed=s) for s in (1, 2))
    report = judge(distil(train, 2), train=train, test=test)
    by = report.scores[report.scores["metric"] == "macro_f1"].groupby(["set", "classifier"])["value"].mean()
    expected = by["distilled"] / by["whole data"]
    row = report.summary().loc["distilled"]
    assert row["recovery"] == pytest.approx(expected.mean())
    assert row["worst_recovery"] == pytest.approx(expected.min())
    assert row["worst_classifier"] == expected.idxmin()


def test_scores_depend_on_inputs_and_seeds_alone(cells, distil, judge):
    made = distil(cells[0], 3)
    first, again = (judge(made, classifiers=("kNN", "MLP")) for _ in range(2))
    pd.testing.assert_frame_equal(first.scores, again.scores)
    other = judge(made, classifiers=("kNN", "MLP"), seeds=(5, 6))
    assert not np.array_equal(values(first, RANDOM), values(other, RANDOM))


def test_random_cells_are_drawn_anew_for_every_seed(make_cells, distil):
    train, test = (make_cells(40, strength=1.6, seed=s) for s in (1, 2))
    report = evaluate(
        distil(train, 3),
        train=train,
        test=test,
        label_key="cell_type",
        classifiers=["logistic regression"],
        progress=False,
    )
    assert len(np.unique(values(report, RANDOM))) > 1
    assert len(np.unique(values(report, "distilled"))) == 1


def test_draw_takes_the_same_rows_a_class_without_replacement():
    cells = CellSet("train", np.arange(10, dtype=np.float32)[:, None], np.array([0] * 6 + [1] * 3 + [2]))
    drawn = draw(cells, np.array([2, 5, 0]), seed=0)
    assert np.bincount(drawn.codes, minlength=3).tolist() == [2, 3, 0]
    assert len(np.unique(drawn.x)) == 5


def test_weights_reach_the_classifiers(cells, distil, judge):
    """Every cell with its own and with another label; only one of the two weighs anything."""
    right = distil(cells[0], 8)
    wrong = right.copy()
    names = wrong.obs["cell_type"].astype(str)
    wrong.obs["cell_type"] = pd.Categorical(np.roll(names, 8))
    both = ad.concat([right, wrong], index_unique="-")
    both.obs["weight"] = np.repeat([1.0, 1e-3], len(names))
    good = judge(both)
    both.obs["weight"] = np.repeat([1e-3, 1.0], len(names))
    bad = judge(both)
    assert values(good, "distilled").min() > 0.9
    assert values(bad, "distilled").max() < 0.1


def test_class_weights_help_the_rare_class(make_cells, distil):
    train = make_cells([300, 300, 12], 3, strength=1.5, seed=1, n_genes=40)
    test = make_cells([50, 50, 50], 3, strength=1.5, seed=2, n_genes=40)
    options = {
        "label_key": "cell_type",
        "classifiers": ["logistic regression"],
        "seeds": 1,
        "progress": False,
    }
    report = evaluate(distil(train, 6), train=train, test=test, **options)
    assert report.details.rarest == "type 2"
    recall = report.summary()["rarest_recall"]
    assert recall["whole data, class-weighted"] > recall["whole data"]


def test_without_train_there_is_no_recovery(cells, distil, judge):
    report = judge(distil(cells[0]), train=None)
    assert list(report.summary().index) == ["distilled"]
    assert np.isnan(report.summary().loc["distilled", "recovery"])
    assert "no whole data" in report.headline()[0]


def test_genes_are_matched_by_name(cells, distil, judge):
    made = distil(cells[0])
    mixed = made[:, np.random.default_rng(0).permutation(made.n_vars)].copy()
    np.testing.assert_allclose(values(judge(mixed), "distilled"), values(judge(made), "distilled"), atol=0.03)


def test_missing_genes_are_stated(cells, distil, judge):
    made = distil(cells[0])
    baseline = made[:, 5:].copy()
    report = judge(made, test=cells[1][:, 10:].copy(), baselines={"mine": baseline[:, 10:].copy()})
    assert report.details.n_genes == 50
    assert any("10 of the 60 genes of the distilled set" in note for note in report.details.notes)
    assert any("mine lacks 5 of the 50 genes: filled with 0" in note for note in report.details.notes)


def test_label_mismatch_is_stated(cells, distil, judge, make_cells):
    made = distil(make_cells(names=["type 0", "type 1", "odd"]))
    report = judge(made)
    notes = " ".join(report.details.notes)
    assert "distilled has no 'type 2', 'type 3': never predicted" in notes
    assert "Test has no 'odd' (distilled has)" in notes
    lost = report.per_class[
        (report.per_class["set"] == "distilled") & (report.per_class["class"] == "type 3")
    ]
    assert (lost["recall"] == 0).all()
    assert "odd" not in set(report.per_class["class"])


def test_cells_in_train_and_test_are_stated(cells, distil, judge):
    notes = judge(distil(cells[0]), test=cells[0]).details.notes
    assert any("120 cell names are in both train and test" in note for note in notes)
    assert not any("in both" in note for note in judge(distil(cells[0])).details.notes)


def test_large_atlases_are_sampled_within_classes(cells, distil, judge):
    report = judge(distil(cells[0]), max_cells=40)
    assert report.summary().loc["whole data", "rows"] == 40
    assert report.summary().loc["whole data", "rows_per_class"] == "10"
    assert any("train: 40 of 120 cells drawn" in note for note in report.details.notes)
    codes = np.repeat([0, 1], [1000, 3])
    rows = sample_rows(codes, 100, seed=0)
    assert np.bincount(codes[rows]).tolist() == [100, 1]


def test_rows_a_class_are_listed_as_they_are(cells, distil, judge):
    made = distil(cells[0], 4)
    report = judge(made[[0, 1, 2, 3, 4, 5, 8, 9, 12]].copy())
    assert report.summary().loc["distilled", "rows_per_class"] == "1–4"


def test_paths_and_atlases(cells, distil, judge, tmp_path):
    made = distil(cells[0])
    made.write_h5ad(tmp_path / "made.h5ad")
    cells[0].write_h5ad(tmp_path / "train.h5ad")
    train, test = Atlas(tmp_path / "train.h5ad"), Atlas(cells[1])
    report = judge(tmp_path / "made.h5ad", train=train, test=test)
    pd.testing.assert_frame_equal(report.scores, judge(made).scores)
    assert report.details.provenance["method"] == "first cells"
    assert judge(Atlas(made, expression="log1p")).details.provenance == {}


def test_errors_name_the_argument_and_the_remedy(cells, distil, judge, make_cells):
    made = distil(cells[0])
    renamed = made.copy()
    renamed.var_names = [f"other{g}" for g in range(made.n_vars)]
    with pytest.raises(InputError, match=r"none of the 60 genes .*'other0'.*same gene names"):
        judge(renamed)
    with pytest.raises(InputError, match=r"baseline 'mine' has none"):
        judge(made, baselines={"mine": renamed})
    with pytest.raises(InputError, match=r"no label of distilled \(e.g. 'x'\).*label_key"):
        judge(distil(make_cells(names=["x", "y"])))
    with pytest.raises(InputError, match=r"distilled: obs has no column 'celltype'"):
        judge(made, label_key="celltype")
    with pytest.raises(InputError, match=r"distilled has only the class 'type 0'"):
        judge(made[made.obs["cell_type"] == "type 0"].copy())
    for weight in (0.0, -1.0, np.nan, "heavy"):
        with pytest.raises(InputError, match=r"obs\['weight'\] of distilled"):
            judge(distil(cells[0], 5, weight=weight))
    with pytest.raises(InputError, match="'whole data', which the report needs"):
        judge(made, baselines={"whole data": made})
    with pytest.raises(InputError, match="classifiers="):
        judge(made, classifiers=["XGBoost"])
    for seeds in (0, (), (1, 1), (-1,)):
        with pytest.raises(InputError, match="seeds="):
            judge(made, seeds=seeds)
    with pytest.raises(InputError, match="max_cells=1"):
        judge(made, max_cells=1)


def test_an_unlabelled_test_cell_is_refused(cells, distil, judge):
    test = cells[1].copy()
    test.obs["cell_type"] = test.obs["cell_type"].astype(object).mask(np.arange(test.n_obs) == 3)
    with pytest.raises(InputError, match=r"test: .*no label for 1 of 120"):
        judge(distil(cells[0]), test=test)
