"""The simulator: its distribution, its fit, its determinism and its file."""

from __future__ import annotations

import dataclasses
import tracemalloc

import anndata
import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import RidgeClassifier

from scdd.data.simulation import simulate as module
from scdd.data.simulation.simulate import (
    CHUNK,
    design_count_model,
    fit_count_model,
    sample_negative_binomial,
    simulate,
    simulate_to_file,
)
from scdd.errors import DataFileError, InputError


def assert_same(a: anndata.AnnData, b: anndata.AnnData) -> None:
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(a.X, name), getattr(b.X, name))
    assert a.X.shape == b.X.shape
    assert a.obs.equals(b.obs)
    assert a.var.equals(b.var)
    assert {k: str(v) for k, v in a.uns["scdd"].items()} == {k: str(v) for k, v in b.uns["scdd"].items()}


@pytest.mark.parametrize("mean", [0.02, 0.7, 12.0])
@pytest.mark.parametrize("dispersion", [1e-6, 0.3, 4.0])
def test_counts_follow_the_negative_binomial(mean, dispersion):
    n = 40_000
    counts = sample_negative_binomial(
        np.full((n // 100, 100), mean), np.full(100, dispersion), np.random.default_rng(0)
    ).toarray()
    truth = stats.nbinom(1 / dispersion, 1 / (1 + mean * dispersion))
    top = int(truth.ppf(0.999))
    expected = n * np.append(truth.pmf(np.arange(top + 1)), truth.sf(top))
    observed = np.bincount(np.minimum(counts.ravel().astype(int), top + 1), minlength=top + 2)
    big = expected >= 5
    expected = np.append(expected[big], expected[~big].sum())
    observed = np.append(observed[big], observed[~big].sum())
    chi = ((observed - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    assert stats.chi2(big.sum()).sf(chi) > 1e-4
    assert counts.mean() == pytest.approx(mean, abs=5 * truth.std() / np.sqrt(n))


def test_entries_are_drawn_each_by_its_own_mean():
    mean = np.array([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0], [50.0, 0.0, 0.5]])
    total = sum(
        sample_negative_binomial(mean, np.array([0.1, 0.2, 0.3]), np.random.default_rng(i)).toarray()
        for i in range(2_000)
    )
    assert (total[mean == 0] == 0).all()
    error = np.sqrt((mean + np.array([0.1, 0.2, 0.3]) * mean**2) / 2_000)
    assert (np.abs(total / 2_000 - mean) <= 5 * error).all()


def test_no_counts_at_all():
    counts = sample_negative_binomial(np.zeros((3, 4)), np.ones(4), np.random.default_rng(0))
    assert counts.shape == (3, 4)
    assert counts.nnz == 0


def test_result_is_an_ordinary_atlas():
    adata = simulate(n_cells=700, n_genes=120, n_classes=5, n_batches=3)
    assert adata.shape == (700, 120)
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format
    assert (adata.X.data >= 1).all()
    assert (adata.X.data == np.rint(adata.X.data)).all()
    assert list(adata.obs["cell_type"].cat.categories) == [f"class_{i}" for i in range(1, 6)]
    assert list(adata.obs["batch"].cat.categories) == ["batch_1", "batch_2", "batch_3"]
    np.testing.assert_array_equal(adata.obs["n_counts"], adata.X.sum(axis=1).A1)
    assert adata.obs["n_counts"].dtype == np.int64
    assert adata.var_names[0] == "gene_0001"
    assert adata.obs_names.is_unique


def test_design_keeps_its_promises():
    adata = simulate(n_cells=20_000, n_genes=50, n_classes=3, class_imbalance=9.0)
    share = adata.obs["cell_type"].value_counts(normalize=True).sort_index().to_numpy()
    np.testing.assert_allclose(share, np.array([9, 3, 1]) / 13, atol=0.02)
    model = design_count_model(n_genes=50, n_classes=3)
    log = np.log(adata.obs["n_counts"].to_numpy())
    assert np.median(log) == pytest.approx(np.log(1_500), abs=0.1)
    for c, name in enumerate(model.classes):
        mean = adata.X[(adata.obs["cell_type"] == name).to_numpy()].mean(axis=0).A1
        # 50 genes of log-normal size: the shares of the strong ones have a few per cent of noise.
        np.testing.assert_allclose(mean / mean.sum(), model.fraction[c], rtol=0.15, atol=2e-4)


def test_classes_are_separable_and_batches_differ():
    adata = simulate(n_cells=1_500, n_genes=400, n_classes=6, n_batches=2, class_imbalance=1.0)
    x = np.log1p(adata.X.toarray() / adata.obs["n_counts"].to_numpy()[:, None] * 1e4)
    for key, least in (("cell_type", 0.95), ("batch", 0.75)):
        y = adata.obs[key].to_numpy()
        score = RidgeClassifier(100.0).fit(x[:1_000], y[:1_000]).score(x[1_000:], y[1_000:])
        assert score > least, key


def test_one_class_one_gene_one_cell():
    adata = simulate(n_cells=1, n_genes=1, n_classes=1)
    assert adata.shape == (1, 1)


def test_as_many_classes_as_genes():
    model = design_count_model(n_genes=6, n_classes=6)
    ratio = model.fraction / model.fraction.sum(axis=0)
    assert sorted(ratio.argmax(axis=0)) == list(range(6)), "every class has one marker"


def test_the_seed_decides():
    options = {"n_cells": 600, "n_genes": 80, "n_batches": 2}
    assert_same(simulate(**options, seed=3), simulate(**options, seed=3))
    assert (simulate(**options, seed=3).X != simulate(**options, seed=4).X).nnz > 0


def test_chunks_are_independent():
    x = simulate(n_cells=2 * CHUNK, n_genes=60).X
    assert (x[:CHUNK] != x[CHUNK:]).nnz > 0


@pytest.fixture(scope="module")
def truth():
    model = design_count_model(n_genes=200, n_classes=3, n_batches=2, class_imbalance=4.0, library_size=4_000)
    dispersion = np.geomspace(0.05, 2.0, 200)
    names = np.array([f"SYMBOL{i}" for i in range(200)])
    return dataclasses.replace(
        model,
        dispersion=dispersion,
        log_size_mean=np.log([2_000.0, 4_000.0, 8_000.0]),
        log_size_sd=np.array([0.2, 0.4, 0.6]),
        var_names=module.pd.Index(names),
        proportion=np.array([[0.4, 0.1], [0.1, 0.2], [0.2, 0.0]]),
    )


@pytest.fixture(scope="module")
def reference(truth):
    return simulate(truth, n_cells=12_000, seed=5)


def test_fit_recovers_the_truth(truth, reference):
    fitted = fit_count_model(reference)
    assert fitted.classes == truth.classes
    assert fitted.batches == truth.batches
    assert list(fitted.var_names) == list(truth.var_names)
    np.testing.assert_allclose(fitted.proportion, truth.proportion, atol=0.02)
    assert fitted.proportion[2, 1] == 0.0
    np.testing.assert_allclose(fitted.log_size_mean, truth.log_size_mean, atol=0.05)
    np.testing.assert_allclose(fitted.log_size_sd, truth.log_size_sd, atol=0.05)
    # The split of a mean between class and batch is free up to a factor; the mean itself is not.
    common = truth.fraction.mean(axis=0) > 1e-3
    for c, b in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)):
        means = [m.fraction[c] * m.batch_factor[b] for m in (fitted, truth)]
        a, e = (mean / mean.sum() for mean in means)
        np.testing.assert_allclose(a[common], e[common], rtol=0.2)
    ratio = fitted.dispersion[common] / truth.dispersion[common]
    assert 0.9 < np.median(ratio) < 1.1
    assert np.corrcoef(fitted.dispersion[common], truth.dispersion[common])[0, 1] > 0.9


@pytest.mark.parametrize("library_size", [15.0, 60.0])
def test_fit_knows_the_noise_of_shallow_cells(library_size):
    truth = design_count_model(
        n_genes=300, n_classes=1, dispersion=0.5, library_size=library_size, library_sd=0.3
    )
    fitted = fit_count_model(simulate(truth, n_cells=20_000))
    common = truth.fraction[0] > 3e-3
    assert np.median(fitted.dispersion[common]) == pytest.approx(0.5, abs=0.04)
    if library_size > 20:  # below, log T is far from normal
        assert fitted.log_size_mean[0] == pytest.approx(np.log(library_size), abs=0.03)
        assert fitted.log_size_sd[0] == pytest.approx(0.3, abs=0.025)


def test_simulated_from_a_reference_looks_like_it(reference):
    copy = simulate(reference, n_cells=12_000, seed=1)
    assert list(copy.var_names) == list(reference.var_names)
    for name in reference.obs["cell_type"].cat.categories:
        old, new = (a.X[(a.obs["cell_type"] == name).to_numpy()].toarray() for a in (reference, copy))
        seen = old.mean(axis=0) > 1.0
        np.testing.assert_allclose(new.mean(axis=0)[seen], old.mean(axis=0)[seen], rtol=0.2)
        spread = new.std(axis=0)[seen] / old.std(axis=0)[seen]
        assert 0.9 < np.median(spread) < 1.1
    table = [
        a.obs.groupby(["cell_type", "batch"], observed=False).size() / a.n_obs for a in (reference, copy)
    ]
    np.testing.assert_allclose(*table, atol=0.02)


def test_reference_by_path_equals_reference_in_memory(reference, tmp_path):
    reference.write_h5ad(tmp_path / "reference.h5ad")
    a, b = (simulate(source, n_cells=300) for source in (reference, tmp_path / "reference.h5ad"))
    np.testing.assert_array_equal(a.X.toarray(), b.X.toarray())


def test_own_column_names_and_a_reference_of_one_batch(reference):
    renamed = reference.copy()
    renamed.obs = renamed.obs.rename(columns={"cell_type": "type", "batch": "donor"})
    adata = simulate(renamed, n_cells=100, label_key="type")
    assert list(adata.obs["batch"].cat.categories) == ["batch_1"]
    adata = simulate(renamed, n_cells=100, label_key="type", batch_key="donor")
    assert list(adata.obs["donor"].cat.categories) == ["batch_1", "batch_2"]
    with pytest.raises(InputError, match="sample"):
        simulate(renamed, n_cells=100, label_key="type", batch_key="sample")
    with pytest.raises(InputError, match="cell_type"):
        simulate(renamed, n_cells=100)


@pytest.mark.parametrize("block", [1, CHUNK, 600, 100_000])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_file_equals_memory_whatever_the_block(tmp_path, block, compression):
    options = {"n_cells": 3 * CHUNK + 7, "n_genes": 90, "n_classes": 4, "n_batches": 2, "seed": 2}
    path = simulate_to_file(tmp_path / "atlas.h5ad", **options, block=block, compression=compression)
    assert [p.name for p in tmp_path.iterdir()] == ["atlas.h5ad"]
    assert_same(anndata.read_h5ad(path), simulate(**options))
    backed = anndata.read_h5ad(path, backed="r")
    assert backed[5:9].to_memory().X.shape == (4, 90)
    backed.file.close()


def test_file_from_a_reference_is_read_again(reference, tmp_path):
    path = simulate_to_file(tmp_path / "atlas.h5ad", reference, n_cells=500)
    assert_same(anndata.read_h5ad(path), simulate(reference, n_cells=500))
    again = fit_count_model(path)
    assert again.classes == list(reference.obs["cell_type"].cat.categories)


@pytest.mark.parametrize("old", [None, "what was there"])
def test_failure_leaves_no_half_written_file(tmp_path, monkeypatch, old):
    path = tmp_path / "atlas.h5ad"
    if old:
        path.write_text(old)
    draw, calls = module._draw, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return draw(*arguments)

    monkeypatch.setattr(module, "_draw", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        simulate_to_file(path, n_cells=5 * CHUNK, n_genes=40, block=1)
    assert [p.read_text() for p in tmp_path.iterdir()] == ([old] if old else [])


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(n_cells: int) -> int:
        tracemalloc.start()
        try:
            simulate_to_file(tmp_path / "atlas.h5ad", n_cells=n_cells, n_genes=100, block=CHUNK)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(CHUNK)  # imports
    assert peak(40 * CHUNK) < 1.5 * peak(4 * CHUNK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_cells": 0}, "n_cells is 0"),
        ({"n_cells": 2.5}, "n_cells is 2.5"),
        ({"n_cells": True}, "n_cells is True"),
        ({"n_genes": 0}, "n_genes is 0"),
        ({"n_classes": 0}, "n_classes is 0"),
        ({"n_batches": 0}, "n_batches is 0"),
        ({"n_genes": 5, "n_classes": 6}, "n_classes is 6 but n_genes 5"),
        ({"class_imbalance": 0.5}, "class_imbalance is 0.5"),
        ({"class_imbalance": float("nan")}, "class_imbalance is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"label_key": "batch"}, "label_key and batch_key"),
        ({"label_key": "n_counts"}, "n_counts"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, message):
    options = {"n_cells": 10, **options}
    with pytest.raises(InputError, match=message):
        simulate(**options)
    with pytest.raises(InputError, match=message):
        simulate_to_file(tmp_path / "atlas.h5ad", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["marker_fold", "dispersion", "library_size", "library_sd", "batch_effect"])
def test_bad_design_is_named(name):
    with pytest.raises(InputError, match=f"{name} is -1"):
        design_count_model(**{name: -1.0})


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match="suffix"):
        simulate_to_file(tmp_path / "atlas.loom", n_cells=10)
    with pytest.raises(InputError, match="block is 0"):
        simulate_to_file(tmp_path / "atlas.h5ad", n_cells=10, block=0)
    with pytest.raises(InputError, match="compression is 'zip'"):
        simulate_to_file(tmp_path / "atlas.h5ad", n_cells=10, compression="zip")
    with pytest.raises(DataFileError, match="missing"):
        simulate_to_file(tmp_path / "missing" / "atlas.h5ad", n_cells=10)


def test_bad_references_are_named(reference):
    logged = reference[:50].copy()
    logged.X.data = np.log1p(logged.X.data)
    with pytest.raises(InputError, match="counts"):
        simulate(logged, n_cells=10)
    silent = reference[:200].copy()
    silent.X = silent.X.multiply((silent.obs["cell_type"] != "class_2").to_numpy()[:, None]).tocsr()
    with pytest.raises(InputError, match="'class_2' has any count"):
        simulate(silent, n_cells=10)
