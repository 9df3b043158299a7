"""`scdd generate` as a user meets it."""

from __future__ import annotations

import os

import anndata as ad
import numpy as np
import pytest

import scdd


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_atlas):
    """A saved transformer, conditioned on class, condition and a number."""
    adata = make_atlas()
    adata.obs["age"] = np.random.default_rng(0).random(240) * 60 + 20
    settings = {
        "patch": 6, "width": 32, "heads": 2, "depth": 1, "batch_size": 64, "steps": 20, "sampling_steps": 3,
        "device": "cpu",
    }  # fmt: skip
    model = scdd.DiffusionTransformer(adata, conditions=["condition", "age"], **settings)
    path = tmp_path_factory.mktemp("models") / "dit"
    model.fit(progress=False).save(path)
    return path


def refused(result, code, *words):
    assert result[0] == code, result
    assert len(result[2].strip().splitlines()) == 1, result[2]
    assert result[2].startswith("scdd: ")
    assert all(word in result[2] for word in words), result[2]


def test_it_finds_out_what_the_folder_holds(command, folder, generator, tmp_path):
    """A transformer and an SCDG by the same words."""
    generator.save(tmp_path / "scdg")
    for path, method in ((folder, "DiffusionTransformer"), (tmp_path / "scdg", "SCDG")):
        out = tmp_path / f"{method}.h5ad"
        code, said, error = command(
            "generate", path, "-n", 12, "-c", "cell_type=type 1", "--seed", 3, "-o", out
        )
        assert code == 0, error
        assert "condition is filled from the training composition" in said
        assert f"wrote {out}" in said
        cells = ad.read_h5ad(out)
        assert cells.shape == (12, 60)
        assert set(cells.obs["cell_type"]) == {"type 1"}
        assert cells.uns["scdd"]["method"] == method


def test_every_option_arrives(command, folder, tmp_path, h5ad):
    (tmp_path / "wanted.csv").write_text("cell_type,age,n\ntype 0,30,3\ntype 2,,2\n")
    out = tmp_path / "cells.zarr"
    words = ["--table", tmp_path / "wanted.csv", "--steps", 2, "--guidance", 1.5, "--sampler", "ddim"]
    code, _, error = command("generate", folder, *words, "--eta", 0.5, "--batch-size", 4, "-o", out)
    assert code == 0, error
    cells = ad.read_zarr(out)
    assert list(cells.obs["cell_type"]) == ["type 0"] * 3 + ["type 2"] * 2
    assert list(cells.obs["age"][:3]) == [30.0] * 3
    record = cells.uns["scdd"]
    told = [record[name] for name in ("steps", "guidance", "sampler", "eta", "batch_size")]
    assert told == [2, 1.5, "ddim", 0.5, 4]
    code, said, error = command("generate", folder, "--like", h5ad, "-o", tmp_path / "alike.h5ad")
    assert code == 0, error
    assert "60 of the 60 genes of the model (100%)" in said
    alike, real = ad.read_h5ad(tmp_path / "alike.h5ad"), ad.read_h5ad(h5ad)
    assert list(alike.obs["cell_type"]) == list(real.obs["cell_type"])
    np.testing.assert_allclose(alike.obs["total_counts"], np.asarray(real.X.sum(1)).ravel())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-c", "cell_type=B"], 2, ["'B'", "type 0"]),
        (["-c", "sex=f"], 2, ["'sex'", "cell_type, condition, age"]),
        (["-c", "age=old"], 2, ["'old'", "no finite number"]),
        (["-c", "age"], 2, ["COLUMN=VALUE"]),
        (["-c", "age=3", "-c", "age=4"], 2, ["twice", "--table"]),
        (["--table", "none.csv"], 3, ["none.csv"]),
        (["--sampler", "euler"], 2, ["'euler'", "dpm++"]),
        (["--steps", 4_000], 2, ["steps=4000", "1.."]),
        (["--guidance", -3], 2, ["guidance=-3"]),
    ],
)
def test_refusals(command, folder, tmp_path, words, code, said):
    out = tmp_path / "cells.h5ad"
    refused(command("generate", folder, *words, "-o", out), code, *said)
    assert not list(tmp_path.iterdir())


def test_folders_that_make_no_cells(command, generator, tmp_path):
    out = tmp_path / "cells.h5ad"
    refused(command("generate", tmp_path / "none", "-o", out), 3, "none", "does not exist")
    generator.autoencoder.save(tmp_path / "ae")
    refused(command("generate", tmp_path / "ae", "-o", out), 2, "Autoencoder", "makes no cells")
    refused(command("generate", tmp_path / "ae", "-o", tmp_path / "cells.csv"), 2, ".h5ad or .zarr")


def test_an_interrupted_run_leaves_nothing(command, folder, tmp_path, monkeypatch):
    def interrupted(self, *args, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(scdd.DiffusionTransformer, "_draw_block", interrupted)
    result = command("generate", folder, "-n", 5, "-o", tmp_path / "cells.h5ad")
    assert result[0] == 130
    assert result[2].strip() == "scdd: interrupted; no output was written"
    assert not list(tmp_path.iterdir())


def test_info_names_numbers(command, folder):
    code, said, _ = command("info", folder)
    assert code == 0
    assert "condition age: a number, 20" in said


def test_help_teaches(command, monkeypatch):
    monkeypatch.setitem(os.environ, "COLUMNS", "200")
    code, said, _ = command("generate", "--help")
    assert code == 0
    for word in ("Example: scdd generate", "--table", "--like", "--guidance", "--sampler", "--eta"):
        assert word in said
