"""The benchmark of generators: its copula is the distribution it fits, its table says what the rows say."""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from generators import bars, rows, run, store, table
from generators.methods import METHODS, copula, method, peers
from generators.methods.made import LABEL, Made, as_cells
from generators.tasks import parted
from scipy import sparse, stats

import scdd

N, G = 1_500, 300


def correlated_counts(rng, *, n=N, rho=0.7, dispersion=0.5):
    """Counts of one class: the first ten genes share a factor, at very different levels of expression."""
    library = np.exp(rng.normal(7.0, 0.3, n))
    rate = np.geomspace(3e-4, 2e-2, G)[rng.permutation(G)]
    rate /= rate.sum()
    z = rng.standard_normal((n, G))
    z[:, :10] = np.sqrt(rho) * rng.standard_normal((n, 1)) + np.sqrt(1 - rho) * z[:, :10]
    mean = library[:, None] * rate
    # compared with scipy's below, which takes a minute
    return copula.quantile(stats.norm.cdf(z), mean, np.full(G, dispersion)).astype(np.float32)


def tiny_task(seed=0):
    rng = np.random.default_rng(seed)
    level = rng.gamma(1.0, 1.0, (3, 80))
    labels = np.repeat(["a", "b", "c"], 140)
    x = rng.poisson(level[np.repeat([0, 1, 2], 140)] * rng.lognormal(0, 0.3, (420, 1)))
    names = pd.DataFrame(index=[f"gene{i}" for i in range(80)])
    cells = AnnData(sparse.csr_matrix(x, dtype=np.float32), obs=pd.DataFrame({LABEL: labels}), var=names)
    cells.obs_names = [f"cell_{i}" for i in range(420)]
    parts = scdd.Atlas(cells).split(label_key=LABEL, test=0.3, seed=0)
    train, reference = parts[0].split(label_key=LABEL, test=0.3, seed=0)
    return parted("tiny", train, reference, parts[1])


@pytest.fixture(scope="module")
def task():
    return tiny_task()


@pytest.fixture(scope="module")
def fitted():
    x = correlated_counts(np.random.default_rng(0))
    library = x.sum(1)
    model = copula.fit(x, np.repeat("a", N))["a"]
    return x, library, model, copula.sample(model, 6_000, np.random.default_rng(1))


def test_quantiles_are_those_of_scipy():
    rng = np.random.default_rng(0)
    u, mean = rng.uniform(size=(200, 30)), rng.gamma(0.5, 20.0, (200, 30))
    dispersion = rng.uniform(0.05, 3.0, 30)
    expected = stats.nbinom.ppf(u, 1 / dispersion, 1 / (1 + dispersion * mean))
    assert (copula.quantile(u, mean, dispersion) == expected).mean() > 0.9999


def test_marginals_are_found_and_sampled(fitted):
    x, library, model, made = fitted
    assert np.median(model.marginals.dispersion) == pytest.approx(0.5, rel=0.25)
    frequent = x.mean(0) > 1
    np.testing.assert_allclose(made.mean(0)[frequent], x.mean(0)[frequent], rtol=0.12)
    np.testing.assert_allclose((made == 0).mean(0), (x == 0).mean(0), atol=0.04)
    np.testing.assert_allclose(made.std(0)[frequent], x.std(0)[frequent], rtol=0.2)
    assert np.log(made.sum(1)).mean() == pytest.approx(np.log(library).mean(), abs=0.03)
    assert np.log(made.sum(1)).std() == pytest.approx(np.log(library).std(), rel=0.1)


def test_correlations_are_found_and_sampled(fitted):
    x, _, model, made = fitted
    latent = model.loadings @ model.loadings.T
    block = latent[:10, :10][np.triu_indices(10, 1)]
    assert np.median(block) == pytest.approx(0.7, abs=0.12)
    assert np.abs(latent[10:, 10:][np.triu_indices(G - 10, 1)]).mean() < 0.02
    real, ours = (np.corrcoef(np.log1p(z), rowvar=False)[:10, :10][np.triu_indices(10, 1)] for z in (x, made))
    np.testing.assert_allclose(ours, real, atol=0.1)
    alone = copula.sample(
        copula.fit(x, np.repeat("a", N), copula=False)["a"], 6_000, np.random.default_rng(1)
    )
    lost = np.corrcoef(np.log1p(alone), rowvar=False)[:10, :10][np.triu_indices(10, 1)]
    assert real.mean() - lost.mean() > 0.2


def test_no_factors_are_found_in_noise():
    x = correlated_counts(np.random.default_rng(3), n=400, rho=0.0)
    loadings = copula.fit(x, np.repeat("a", 400))["a"].loadings
    assert np.square(loadings).sum(1).max(initial=0.0) < 0.15


def test_parts_have_no_cell_in_common_and_the_same_genes(task):
    names = [set(part.obs_names) for part in task[1:]]
    assert sum(map(len, names)) == len(set.union(*names))
    assert all(part.var_names.equals(task.train.var_names) for part in task[1:])


@pytest.mark.parametrize(
    "name", ["nb_copula", "copy_of_train", "genes_shuffled", "labels_shuffled", "class_mean"]
)
def test_methods_make_the_classes_asked_for(task, name):
    labels = task.test.obs[LABEL].to_numpy().astype(str)
    made = method(name)(task, labels, seed=0, settings={})
    assert made.cells.shape == (len(labels), task.train.n_vars)
    assert (made.cells.obs[LABEL].to_numpy() == labels).all()
    again = method(name)(task, labels, seed=0, settings={})
    assert (made.cells.X != again.cells.X).nnz == 0


def options(path, tmp_path, **changes):
    line = ["run", "--data", str(tmp_path), "--methods", "nb_copula", "--seeds", "1", "--out", str(path)]
    found = run.parser().parse_args([*line, "--cache", str(tmp_path / "cache")])
    return argparse.Namespace(**{**vars(found), **changes})


def test_rows_are_written_once_and_the_table_says_them(task, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load", lambda folder, name: task)
    path = tmp_path / "generators-0.csv"
    asked = options(path, tmp_path, tasks="pbmc3k", methods="nb_copula", draws=1, max_cells=60)
    asked.metrics = "two-sample,conditions,memorising"
    run.run(asked)
    before = path.read_bytes()
    run.run(asked)
    assert path.read_bytes() == before
    assert len(list((tmp_path / "cache").glob("*.h5ad"))) == 1
    written = table.write([path], tmp_path).read_text()
    frame = rows.read([path])
    auc = frame[(frame["metric"] == "AUC, random forest") & (frame["method"] == "nb_copula")]
    shown = auc[auc["space"].str.endswith("PCs")].groupby("seed")["value"].mean().mean()
    assert f"{shown:.3f}" in written
    assert (tmp_path / table.FIGURE).stat().st_size > 1_000
    assert set(frame["seed"]) == {0}


def test_settings_and_tags_are_runs_of_their_own(task, tmp_path, monkeypatch):
    places = [store.place(tmp_path, "t", "nb_copula", 0, s) for s in ({}, {"copula": False})]
    assert places[0] != places[1]
    cells = as_cells(np.ones((2, 3)), np.array(["a", "b"]), pd.Index(["x", "y", "z"]))
    store.save(places[0], Made(cells, 1.0, 2.0, "said"))
    assert store.load(places[0])[1:] == (1.0, 2.0, "said")
    assert store.load(places[1]) is None


def scores(method_name, seed, value, *, task_name="pbmc3k"):
    """Rows of a run all of whose metrics are ``value`` of what real cells score."""
    floors = {
        ("two-sample", "AUC, random forest", "50 PCs", "all"): 0.5,
        ("two-sample", "AUC, random forest", "99 genes", "all"): 0.5,
        ("conditions", "macro-F1 trained on it, logistic regression", "50 PCs", "all"): 0.9,
        ("conditions", "macro-F1 trained on it, random forest", "50 PCs", "all"): 0.8,
        ("markers", "log-fold-change slope", "99 genes", "mean of classes"): 0.8,
        ("markers", "log-fold-change Spearman", "99 genes", "mean of classes"): 0.5,
        ("conditions", "purity", "50 PCs", "all"): 0.9,
        ("conditions", "purity", "50 PCs", "B"): 0.9,
        ("memorising", "distance to nearest train cell", "50 PCs", "all"): 10.0,
        ("memorising", "distance to nearest train cell", "50 PCs", "B"): 10.0,
    }
    found = pd.DataFrame([(*key, floor * value, floor, floor) for key, floor in floors.items()])
    found.columns = [*rows.SCORE[:4], "value", "floor", "ceiling"]
    return found.assign(
        task=task_name, method=method_name, seed=seed, excess=0.0, low=np.nan, high=np.nan, verdict="",
        cells=700, cells_made=700, train_seconds=10.0, generate_seconds=2.0, settings="", note="",
    )[rows.COLUMNS]  # fmt: skip


def test_bars_are_read_off_rows():
    good, bad = pd.concat([scores("scdg", s, 1.0) for s in (0, 1)]), scores("scvi", 0, 0.9)
    bad["value"] = np.where(bad["metric"] == "AUC, random forest", 0.8, bad["value"])
    assert all(bar.met(s.mean) for bar, s in zip(bars.BARS, bars.bars_of(good), strict=True))
    assert [bar.met(s.mean) for bar, s in zip(bars.BARS, bars.bars_of(bad), strict=True)] == [False] * 6 + [
        True
    ]
    won, of = bars.wins(good, bad)
    assert won == of == 8
    page = table.render(pd.concat([good, bad]))
    assert "**scdg**: 7 of 7 bars met." in page
    assert "scvi: 1 of 7 bars met" in page
    assert "pbmc3k 8 of 8" in page


def test_a_bar_that_real_cells_miss_is_shown_and_not_counted():
    own = scores("scdg", 0, 1.0)
    own["floor"] = np.where(
        own["space"] == "50 PCs", own["floor"].where(own["aspect"] != "two-sample", 0.7), own["floor"]
    )
    own["value"] = np.where(own["aspect"] == "two-sample", 0.72, own["value"])
    page = table.render(own)
    missed = "pbmc3k AUC, 50 PCs 0.720 against 0.700"
    assert f"**scdg**: 6 of 6 bars met. Not counted, for real cells miss it: {missed}." in page
    assert "| 6/6 |" in page
    assert "| *second real sample* | | 0.700 |" in page


def test_fewer_cells_than_test_has(task):
    few = run.asked_of(task, 0, 50)
    assert len(few) == 50
    assert set(few) == {"a", "b", "c"}
    assert len(run.asked_of(task, 0, None)) == task.test.n_obs


def test_later_rows_replace_earlier_ones_of_the_same_run(tmp_path):
    path = tmp_path / "generators-0.csv"
    first, second = scores("scdg", 0, 1.0), scores("scdg", 0, 0.5)
    told = {
        "task": "t",
        "method": "m",
        "seed": 0,
        "cells_made": 1,
        "train_seconds": 1,
        "generate_seconds": 1,
        "settings": "",
        "note": "",
    }
    rows.append(path, first[rows.SCORE], **told)
    rows.append(path, second[rows.SCORE], **{**told, "method": "other"})
    rows.append(path, second[rows.SCORE], **told)
    frame = rows.read([path])
    assert len(frame) == 2 * len(first)
    assert rows.done(path) == {("t", "m", 0), ("t", "other", 0)}
    kept = frame[(frame["method"] == "m") & (frame["metric"] == "purity")]
    assert kept["value"].tolist() == pytest.approx([0.45, 0.45])


def test_an_unknown_method_and_a_missing_scvi_say_what_to_do(task, monkeypatch):
    with pytest.raises(SystemExit, match="choose from"):
        method("scgan")
    monkeypatch.setenv(peers.PYTHON, sys.executable)
    monkeypatch.setattr(peers, "_WORKER", json.__file__)  # a file that is no worker
    with pytest.raises(SystemExit, match=peers.PYTHON):
        METHODS["scvi"](task, np.array(["a"]), seed=0, settings={})
