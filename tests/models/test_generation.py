"""One `generate` for every model: tables, likeness, streaming, numbers, and what it refuses."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdd
from scdd.errors import DataFileError, InputError
from scdd.models.transformer import DiffusionTransformer, WhiteBoxDiffusionTransformer

SHAPE = {"patch": 6, "width": 32, "heads": 2, "depth": 1, "batch_size": 64, "device": "cpu", "ema": 0.98}
QUICK = SHAPE | {"steps": 30, "sampling_steps": 4}
UP = slice(40, 52)


def _dosed(make_atlas, n=400):
    """Cells whose genes 40..51 rise with a dose of 0 to 10; a tenth of the doses is unknown."""
    adata = make_atlas(n)
    rng = np.random.default_rng(1)
    dose = rng.random(n) * 10
    x = adata.X.toarray()
    x[:, UP] = rng.poisson(2 + 3 * dose[:, None], (n, 12))
    adata.X = x.astype(np.float32)
    adata.obs["dose"] = np.where(rng.random(n) < 0.1, np.nan, dose)
    return adata


@pytest.fixture(scope="module")
def dosed(make_atlas):
    return _dosed(make_atlas)


@pytest.fixture(scope="module")
def one_step(dosed, small):
    """SCDG over counts, conditioned on class, condition and dose."""
    settings = small | {"autoencoder_head": "nb", "steps": 500}
    model = scdd.SCDG(dosed, label_key="cell_type", conditions=["condition", "dose"], **settings)
    return model.fit(progress=False)


@pytest.fixture(scope="module")
def transformer(dosed):
    model = DiffusionTransformer(dosed, label_key="cell_type", conditions=["condition", "dose"], **QUICK)
    return model.fit(progress=False)


@pytest.fixture(params=["one_step", "transformer"])
def model(request):
    return request.getfixturevalue(request.param)


def same(first, second):
    assert abs(first.X - second.X).max() == 0
    pd.testing.assert_frame_equal(first.obs, second.obs)
    assert list(first.var_names) == list(second.var_names)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_streamed_cells_are_those_in_memory(model, tmp_path, suffix):
    options = {"condition": {"cell_type": "type 1"}, "seed": 4, "batch_size": 20, "progress": False}
    out = tmp_path / f"cells{suffix}"
    held = model.generate(50, **options)
    assert model.generate(50, out=out, **options) == out
    stored = ad.read_h5ad(out) if suffix == ".h5ad" else ad.read_zarr(out)
    same(stored, held)
    assert {p.name for p in tmp_path.iterdir()} == {out.name}
    for cells in (stored, held):
        record = cells.uns["scdd"]
        assert record["method"] == type(model).__name__
        assert (record["seed"], record["batch_size"]) == (4, 20)
        assert (record["model"], record["trained_on"]) == (model.weights_hash(), model.trained_on)
        assert record["condition"]["cell_type"] == "type 1"
        assert record["versions"]["scdd"] == scdd.__version__
    assert isinstance(held.obs["cell_type"].dtype, pd.CategoricalDtype)
    assert held.obs["total_counts"].min() >= 1


def test_the_number_of_cells_changes_no_block_before_the_last(model):
    few, many = (model.generate(n, batch_size=10, seed=2, progress=False) for n in (20, 35))
    same(few, many[:20].copy())
    x = many.X.toarray()
    assert not (x[:10] == x[10:20]).all(), "every block has random numbers of its own"


def test_a_table(model, tmp_path):
    frame = pd.DataFrame({
        "cell_type": ["type 0", "type 2", None], "dose": ["1.5", "", "9"], "n_cells": [3, 0, 4],
    })  # fmt: skip
    frame.to_csv(tmp_path / "wanted.csv", index=False)
    cells = model.generate(table=tmp_path / "wanted.csv", condition={"condition": "stim"}, progress=False)
    assert cells.n_obs == 7
    assert list(cells.obs["cell_type"][:3]) == ["type 0"] * 3
    assert cells.obs["cell_type"].notna().all()
    np.testing.assert_array_equal(cells.obs["dose"], [1.5] * 3 + [9.0] * 4)
    assert set(cells.obs["condition"]) == {"stim"}
    assert cells.uns["scdd"]["table"] == "wanted.csv"
    again = model.generate(
        table=frame.assign(dose=pd.to_numeric(frame["dose"])), condition={"condition": "stim"}, progress=False
    )
    same(cells, again)


def test_likeness(model, dosed, h5ad):
    rare = dosed[dosed.obs["cell_type"] != "type 1"][:40].copy()
    rare.X = rare.X * np.linspace(1, 8, 40).round()[:, None].astype(np.float32)
    sizes = np.asarray(rare.X.sum(1)).ravel()
    cells = model.generate(like=rare, progress=False)
    np.testing.assert_allclose(cells.obs["total_counts"], sizes)
    assert list(cells.obs["cell_type"]) == list(rare.obs["cell_type"])
    known = rare.obs["dose"].notna().to_numpy()
    np.testing.assert_allclose(cells.obs["dose"][known], rare.obs["dose"][known], atol=1e-3)
    assert np.corrcoef(np.asarray(cells.X.sum(1)).ravel(), sizes)[0, 1] > 0.9
    # more cells than there are: every one as often as any other, or once more
    more = model.generate(100, like=rare, condition={"condition": "stim"}, seed=1, progress=False)
    times = pd.Series(more.obs["total_counts"]).value_counts().reindex(np.unique(sizes).astype("f4"))
    least = pd.Series(sizes).value_counts().sort_index().to_numpy()
    assert ((times.to_numpy() >= 2 * least) & (times.to_numpy() <= 3 * least)).all()
    assert set(more.obs["condition"]) == {"stim"}
    # a file without a column: it is filled
    other = model.generate(like=h5ad, progress=False)
    assert list(other.obs["condition"]) == list(ad.read_h5ad(h5ad).obs["condition"])
    assert other.obs["dose"].notna().mean() > 0.7


def test_likeness_of_log1p_and_of_chosen_genes(transformer, dosed):
    logged = dosed[:30].copy()
    logged.X = np.log1p(logged.X / logged.X.sum(1, keepdims=True) * 1e4)
    cells = transformer.generate(like=logged, progress=False)
    assert list(cells.obs["cell_type"]) == list(logged.obs["cell_type"])
    assert any("holds log1p: its composition is matched" in note for note in cells.uns["scdd"]["notes"])
    few = dosed[:30, :40].copy()
    cells = transformer.generate(like=few, progress=False)
    assert any("40 of the 60 genes of the model (67%)" in note for note in cells.uns["scdd"]["notes"])
    assert any("library sizes follow training" in note for note in cells.uns["scdd"]["notes"])
    few.obs["total_counts"] = np.arange(1, 31)
    cells = transformer.generate(like=few, progress=False)
    np.testing.assert_array_equal(cells.obs["total_counts"], np.arange(1, 31))


def test_likeness_to_other_cells_is_refused(model, dosed):
    renamed = dosed[:20].copy()
    renamed.var_names = [f"ENSG{i}" if i > 20 else name for i, name in enumerate(renamed.var_names)]
    with pytest.raises(InputError, match=r"21 of the 60.*50%.*first gene is 'GENE0'.*'GENE0'"):
        model.generate(like=renamed)
    strange = dosed[:20].copy()
    strange.obs["cell_type"] = ["neuron", *strange.obs["cell_type"][1:]]
    with pytest.raises(InputError, match=r"cell_type='neuron' was not seen.*replace the column"):
        model.generate(like=strange)
    assert model.generate(2, like=strange, condition={"cell_type": "type 0"}, progress=False).n_obs == 2
    strange.obs = strange.obs[["donor"]]
    with pytest.raises(InputError, match="none of the columns that the model was trained with"):
        model.generate(like=strange)


def test_a_number_changes_the_cells(one_step):
    """More so from pure noise: the codes of one step are drawn from the class, whatever the dose."""
    found = {}
    for steps in (1, 20):
        low, middle, high = (
            one_step.generate(200, condition={"dose": d}, steps=steps, seed=3, progress=False)
            .X.toarray()[:, UP]
            .mean()
            for d in (0.5, 5.0, 9.5)
        )
        assert low < middle < high
        found[steps] = high / low
    assert found[1] > 1.4, found
    assert found[20] > 2, f"it was 30.5 / 3.5: {found}"


@pytest.mark.parametrize("kind", [DiffusionTransformer, WhiteBoxDiffusionTransformer])
def test_a_number_changes_the_cells_of_a_transformer(dosed, kind, tmp_path):
    settings = SHAPE | {"steps": 500, "lr": 3e-3, "sampling_steps": 8}
    model = kind(dosed, label_key="cell_type", conditions=["dose"], **settings).fit(progress=False)
    low, high = (
        model.generate(150, condition={"dose": d}, seed=3, progress=False).X.toarray()[:, UP].mean()
        for d in (0.5, 9.5)
    )
    assert high > 1.5 * low, (low, high)
    model.save(tmp_path / "model")
    loaded = scdd.load_model(tmp_path / "model")
    assert type(loaded) is kind
    options = {"condition": {"dose": 3.3}, "seed": 1, "progress": False}
    same(model.generate(12, **options), loaded.generate(12, **options))


def test_what_is_left_open_is_said(model, caplog):
    with caplog.at_level(logging.INFO, logger="scdd.generate"):
        cells = model.generate(5, condition={"cell_type": "type 0", "dose": 40}, progress=False)
    assert "condition is filled from the training composition" in caplog.messages
    assert any("dose lies outside the training cells'" in said for said in caplog.messages)
    assert set(caplog.messages[1:]) == set(cells.uns["scdd"]["notes"])


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError(28, "No space left on device"), InputError])
def test_nothing_half_written(model, tmp_path, monkeypatch, fault, suffix):
    before = tmp_path / "cells.h5ad"
    before.write_bytes(b"precious")
    draw, calls = type(model)._draw_block, []

    def failing(self, *args, **how):
        calls.append(1)
        if len(calls) == 3:
            raise fault
        return draw(self, *args, **how)

    monkeypatch.setattr(type(model), "_draw_block", failing)
    expected = DataFileError if isinstance(fault, OSError) else fault
    with pytest.raises(expected):
        model.generate(50, out=tmp_path / f"cells{suffix}", batch_size=10, progress=False)
    assert len(calls) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"cells.h5ad"}
    assert before.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "n=None; ask for at least one cell"),
        ({"n": -3}, "n=-3; ask for at least one cell"),
        ({"n": 2.5}, "n=2.5"),
        ({"n": 3, "condition": {"age": 4}}, "'age' is unknown; the model knows cell_type, condition, dose"),
        ({"n": 3, "condition": {"cell_type": "B"}}, "cell_type='B' was not seen in training"),
        ({"n": 3, "condition": {"cell_type": ["type 0"] * 4}}, r"lengths \[4\] for n=3"),
        ({"condition": {"cell_type": ["type 0"] * 4, "dose": [1, 2]}}, r"lengths \[2, 4\]"),
        ({"n": 3, "condition": {"dose": "much"}}, "dose='much' is no finite number"),
        ({"n": 3, "steps": 0}, r"steps=0; it is a whole number in 1\.\.\d+"),
        ({"n": 3, "steps": 1_001}, r"steps=1001; .* in 1\.\.\d+"),
        ({"n": 3, "guidance": -2.0}, "guidance=-2.0"),
        ({"n": 3, "guidance": float("nan")}, "guidance=nan"),
        ({"n": 3, "seed": -1}, "seed=-1"),
        ({"n": 3, "batch_size": 0}, "batch_size=0"),
        ({"n": 3, "out": "cells.loom"}, r"\.h5ad or \.zarr"),
        ({"table": pd.DataFrame({"sex": ["f"]})}, "a column 'sex', which the model was not trained with"),
        ({"table": pd.DataFrame({"dose": [1], "n": [1.5]})}, r"n=1\.5 in row 1"),
        ({"table": pd.DataFrame({"dose": [1]}), "n": 2}, "n=2 and table asks for 1 cells"),
        ({"table": pd.DataFrame({"dose": [1]}), "condition": {"dose": 1}}, "both give 'dose'"),
        ({"table": pd.DataFrame({"dose": []})}, "table asks for=0"),
        ({"table": "wanted.xlsx"}, r"\.csv or \.tsv"),
        ({"table": pd.DataFrame({"dose": [1]}), "like": "a.h5ad"}, "give one of them"),
    ],
)
def test_refuses_and_says_what_to_do(model, options, message):
    with pytest.raises(InputError, match=message):
        model.generate(progress=False, **options)


def test_options_of_one_model_alone(one_step, transformer, tmp_path):
    with pytest.raises(InputError, match="SCDG has one sampler"):
        one_step.generate(3, sampler="ddim")
    with pytest.raises(InputError, match="sampler='euler'; choose one of"):
        transformer.generate(3, sampler="euler")
    with pytest.raises(InputError, match="eta=2"):
        transformer.generate(3, eta=2)
    with pytest.raises(DataFileError, match="cannot be read as a table"):
        transformer.generate(table=tmp_path / "none.csv")


def test_an_input_is_never_overwritten(one_step, h5ad):
    before = h5ad.read_bytes()
    with pytest.raises(InputError, match="is an input"):
        one_step.generate(like=str(h5ad), out=h5ad)
    assert h5ad.read_bytes() == before


def test_a_log1p_model_has_no_sizes_to_match(generator, h5ad, tmp_path):
    cells = generator.generate(like=h5ad, out=tmp_path / "cells.h5ad", progress=False)
    stored = ad.read_h5ad(cells)
    assert "total_counts" not in stored.obs
    assert stored.uns["log1p"] == {"base": None} or "log1p" in stored.uns
    assert any("no library sizes" in note for note in stored.uns["scdd"]["notes"])


def test_models_open_by_their_folder(one_step, tmp_path):
    one_step.save(tmp_path / "m")
    loaded = scdd.load_model(tmp_path / "m")
    same(loaded.generate(8, progress=False), one_step.generate(8, progress=False))
    one_step.autoencoder.save(tmp_path / "ae")
    assert type(scdd.load_model(tmp_path / "ae")) is scdd.Autoencoder
    with pytest.raises(DataFileError, match="does not exist"):
        scdd.load_model(tmp_path / "none")
    with pytest.raises(DataFileError, match="no saved model"):
        scdd.load_model(tmp_path)
    (tmp_path / "m" / "config.json").write_text('{"class": "Oracle"}')
    with pytest.raises(InputError, match="'Oracle'"):
        scdd.load_model(tmp_path / "m")


def test_codes_of_cells_with_other_genes(one_step, dosed):
    """Aligned by name, in any order; what is absent is read as zeros, which is said once."""
    shuffled = dosed[:20, np.random.default_rng(0).permutation(60)].copy()
    np.testing.assert_allclose(one_step.encode(shuffled), one_step.encode(dosed[:20].copy()), atol=1e-5)
    with pytest.warns(UserWarning, match=r"45 of the 60 genes.*\(75%\); the others, e\.g\. GENE45, are read"):
        part = one_step.encode(dosed[:20, :45].copy())
    assert part.shape == (20, 6)
    with pytest.raises(InputError, match=r"20 of the 60.*\(33%\).*at least 50%"):
        one_step.encode(dosed[:20, :20].copy())


def test_few_cells_make_a_small_file(transformer, tmp_path):
    out = transformer.generate(20, out=tmp_path / "few.h5ad", progress=False)
    assert out.stat().st_size < 200_000
