"""`scdd.fidelity` and `scdd fidelity` as a user meets them: inputs, errors, tables, files."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import scdd
from scdd.errors import InputError

from .conftest import LABEL

if TYPE_CHECKING:
    import anndata as ad

CHEAP = ("genes", "transport")


@pytest.fixture(scope="module")
def report(real, score):
    return score(real["held out"], "transport", "support", "genes", "conditions", "memorising")


def log1p(cells: ad.AnnData) -> ad.AnnData:
    made = cells.copy()
    x = made.X.toarray()
    made.X = np.log1p(1e4 * x / x.sum(axis=1, keepdims=True)).astype(np.float32)
    return made


def test_the_table_is_tidy(report):
    table = report.to_frame()
    expected = "aspect metric space group variant value floor excess low high ceiling better margin p cells"
    assert list(table.columns) == [*expected.split(), "verdict"]
    keys = ["metric", "space", "group", "variant"]
    assert not table.duplicated(keys).any()
    assert {"all", "mean of classes", "type 0", "type 1", "type 2"} == set(table["group"])
    assert table[["value", "floor", "excess"]].notna().all(axis=None)
    assert report.draws["draw"].nunique() == 3
    purity = table[(table["metric"] == "purity") & (table["group"] == "all")].iloc[0]
    assert purity["floor"] == purity["ceiling"] > 0.8


def test_the_same_arguments_give_the_same_table(real, score, report):
    again = score(real["held out"], "transport", "support", "genes", "conditions", "memorising")
    pd.testing.assert_frame_equal(again.table, report.table)


def test_counts_or_log1p_on_either_side(real, score):
    counts = score(real["held out"], *CHEAP)
    for options in ({}, {"train": log1p(real["train"]), "test": log1p(real["test"])}):
        other = score(log1p(real["held out"]), *CHEAP, **options)
        same = counts.table[counts.table["aspect"] == "transport"]["value"].to_numpy()
        found = other.table[other.table["aspect"] == "transport"]["value"].to_numpy()
        np.testing.assert_allclose(found, same, rtol=0.02)
    assert any("generated log1p" in note for note in other.details.notes)


def test_another_scale_is_remarked_on(real, score):
    made = log1p(real["held out"])
    assert not any("scaled alike" in note for note in score(made, "transport").details.notes)
    made.X = np.log1p(np.expm1(made.X) / 4)
    assert any("scaled alike" in note for note in score(made, "transport").details.notes)


def test_small_references_are_remarked_on(real, score):
    few = score(real["held out"], "transport", reference=real["reference"][:100].copy())
    assert any("100 reference cells are few for 15 components" in note for note in few.details.notes)


def test_fractional_counts_are_named_as_such(real, score):
    made = real["held out"].copy()
    made.X = made.X * 1.01
    with pytest.raises(InputError, match=r"generated: .*fractional"):
        score(made, "transport")
    same = score(real["held out"], "transport").table["value"]
    np.testing.assert_allclose(
        score(made, "transport", expression="fractional").table["value"], same, rtol=1e-4
    )


def test_genes_are_matched_by_name(real, score):
    made = real["held out"]
    mixed = made[:, np.random.default_rng(0).permutation(made.n_vars)].copy()
    pd.testing.assert_frame_equal(score(mixed, *CHEAP).table, score(made, *CHEAP).table)
    fewer = score(made[:, :90].copy(), *CHEAP)
    assert len(fewer.details.genes) == 90
    assert any("cover 75.0 % of the 120 real genes" in note for note in fewer.details.notes)
    renamed = made.copy()
    renamed.var_names = [f"x{g}" if g > 50 else f"g{g}" for g in range(made.n_vars)]
    with pytest.raises(InputError, match=r"51 of its 120 genes .*fewer than half"):
        score(renamed, *CHEAP)


def test_without_a_reference_a_part_of_train_is_set_aside(real, score):
    report = score(real["held out"], "transport", reference=None)
    assert any("of 500 train cells are set aside" in note for note in report.details.notes)


def test_without_labels(real, score):
    report = score(real["held out"], label_key=None)
    assert set(report.table["group"]) == {"all"}
    assert not set(report.table["aspect"]) & {"markers", "conditions", "composition"}
    with pytest.raises(InputError, match="label_key"):
        score(real["held out"], "markers", label_key=None)


def test_classes_are_compared_in_the_same_proportions(real, score):
    made = real["held out"]
    few = made[np.flatnonzero((made.obs[LABEL] != "type 0") | (np.arange(made.n_obs) % 3 == 0))].copy()
    report = score(few, "transport", "composition")
    row = report.table.set_index("metric")
    assert row.loc["class frequencies, total variation", "verdict"] == "worse"
    assert report.details.cells < 0.8 * few.n_obs + 3


def test_errors_name_the_argument(real, score):
    made = real["held out"]
    odd = made.copy()
    odd.obs[LABEL] = odd.obs[LABEL].astype(str).replace("type 2", "type Z")
    with pytest.raises(InputError, match=r"generated: .*'type Z'.*train .*does not have"):
        score(odd)
    with pytest.raises(InputError, match=r"generated: obs has no column 'celltype'"):
        score(made, label_key="celltype")
    with pytest.raises(InputError, match=r"generated has 30 cells, too few"):
        score(made[:30].copy())
    with pytest.raises(InputError, match=r"test has 12 cells"):
        score(made, test=made[:12].copy())
    with pytest.raises(InputError, match="metrics='speed'"):
        score(made, "speed")
    with pytest.raises(InputError, match="compat='fid'"):
        score(made, compat=("fid",))
    with pytest.raises(InputError, match="max_cells=10"):
        score(made, max_cells=10)


def test_bad_values_are_refused(real, score):
    broken = log1p(real["held out"])
    broken.X[3, 5] = np.nan
    with pytest.raises(InputError, match=r"generated: .*NaN"):
        score(broken)
    broken.X[3, 5] = -0.5
    with pytest.raises(InputError, match=r"generated: .*negative.*clip\(0\)"):
        score(broken)
    mixed = log1p(real["held out"])
    mixed.X[100:] = np.minimum(real["held out"].X.toarray()[100:], 10)
    with pytest.raises(InputError, match="rows, first row 100, hold counts among log1p data"):
        score(mixed)


def test_published_variants_stand_apart(real, score):
    names = ("scrdit", "scdiffusion", "cfgen-2025", "cfgen-2026", "groundgan")
    report = score(real["held out"], "transport", compat=names, max_cells=100)
    table = report.table
    assert set(table["variant"]) == {"house", *names}
    own = table[table["variant"] != "house"]
    assert set(own["aspect"]) == {"as published"}
    assert (own["verdict"] == "").all()
    w2 = table[table["metric"] == "W2, mean of classes"].set_index("variant")["value"]
    assert w2["cfgen-2025"] > 1.5 * w2["cfgen-2026"]  # the mean that is not taken away
    assert "W2, mean of classes" not in report.headline()[-1]


def test_save(report, tmp_path):
    for suffix in (".csv", ".md", ".html"):
        path = report.save(tmp_path / f"fidelity{suffix}")
        assert "W2, exact" in path.read_text(encoding="utf-8")
    table = pd.read_csv(tmp_path / "fidelity.csv", keep_default_na=False)
    assert len(table) == len(report.table)
    page = (tmp_path / "fidelity.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert page == report.save(tmp_path / "again.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"\.csv or \.html or \.md"):
        report.save(tmp_path / "fidelity.pdf")
    assert "metrics, " in str(report)
    assert "FidelityReport(" in repr(report)


def test_the_public_verb(real, tmp_path):
    real["held out"].write_h5ad(tmp_path / "made.h5ad")
    report = scdd.fidelity(
        tmp_path / "made.h5ad",
        train=scdd.Atlas(real["train"]),
        test=real["test"],
        label_key=LABEL,
        metrics=["transport"],
        n_genes=50,
        progress=False,
    )
    assert isinstance(report, scdd.FidelityReport)
    assert len(report.details.variable_genes) == 50
    with pytest.raises(InputError, match=r"metrics='genes'; give a list"):
        scdd.fidelity(real["test"], train=real["train"], test=real["test"], metrics="genes", progress=False)


def test_the_command(real, tmp_path, monkeypatch, capsys):
    from scdd.cli import main

    for name in ("train", "test", "held out"):
        real[name].write_h5ad(tmp_path / f"{name}.h5ad")
    words = [str(tmp_path / "held out.h5ad"), "--label", LABEL, "--metrics", "transport", "--no-progress"]
    words += ["--train", str(tmp_path / "train.h5ad"), "--test", str(tmp_path / "test.h5ad")]
    words += ["--out", str(tmp_path / "f.csv"), "--report", str(tmp_path / "f.html"), "--draws", "1"]
    monkeypatch.setattr(sys, "argv", ["scdd", "fidelity", *words])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 0, said.err
    assert "W2, sliced" in said.out
    assert (tmp_path / "f.csv").exists()
    assert (tmp_path / "f.html").exists()
