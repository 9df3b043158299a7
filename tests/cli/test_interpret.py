"""`scdd interpret` as a user meets it."""

from __future__ import annotations

import pandas as pd
import pytest

from scdd.models.transformer import DiffusionTransformer, WhiteBoxDiffusionTransformer

SMALL = {"patch": 6, "width": 16, "heads": 2, "depth": 2, "steps": 5, "batch_size": 64, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(make_atlas, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "white"
    WhiteBoxDiffusionTransformer(make_atlas(), **SMALL).fit(progress=False).save(path)
    return path


def test_table_and_plot(command, folder, h5ad, adata, tmp_path):
    out, plot = tmp_path / "found.csv", tmp_path / "found.svg"
    code, said, error = command(
        "interpret",
        folder,
        h5ad,
        "-o",
        out,
        "--plot",
        plot,
        "--times",
        3,
        "--max-cells",
        30,
        "--epsilon",
        0.5,
    )
    assert code == 0, error
    assert "R^c falls over the attention in" in said
    assert "epsilon 0.5 (squared 0.25)" in said
    assert f"wrote {out}" in said
    assert f"wrote {plot}" in said
    loaded = WhiteBoxDiffusionTransformer.load(folder)
    expected = loaded.interpret(adata, n_times=3, max_cells=30, epsilon=0.5).table
    pd.testing.assert_frame_equal(pd.read_csv(out), expected, check_dtype=False)
    assert "<svg" in plot.read_text()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--out", "found.txt"], 2, "ends in .csv"),
        (["--plot", "found.gif"], 2, "ends in .png"),
        (["--tokens", "unit"], 2, "tokens='unit'"),
        (["--epsilon", "-1"], 2, "epsilon=-1.0"),
    ],
)
def test_refuses_and_writes_nothing(command, folder, h5ad, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    found = command("interpret", folder, h5ad, *words)
    assert found[0] == code
    assert message in found[2]
    assert found[2].startswith("scdd: ")
    assert set(tmp_path.iterdir()) == before


def test_no_model_and_another_kind_of_model(command, h5ad, make_atlas, tmp_path):
    assert command("interpret", tmp_path / "none", h5ad, "-o", tmp_path / "a.csv")[0] == 3
    DiffusionTransformer(make_atlas(), **SMALL).fit(progress=False).save(tmp_path / "black")
    code, _, error = command("interpret", tmp_path / "black", h5ad, "-o", tmp_path / "a.csv")
    assert code == 2
    assert "holds a DiffusionTransformer" in error
    assert "scdd train whitebox" in error


def test_a_model_without_its_weights_says_what_to_do(command, folder, h5ad, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((folder / "config.json").read_text())
    code, _, error = command("interpret", tmp_path / "model", h5ad, "-o", tmp_path / "a.csv")
    assert code == 3
    assert "copy the folder again" in error
