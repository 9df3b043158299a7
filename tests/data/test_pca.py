"""Principal components against scikit-learn, and the sparse products under them against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

import scdd
from scdd import _csr
from scdd.data.preprocess import Preprocessor
from scdd.data.statistics import pca as module
from scdd.data.statistics.pca import streaming_pca
from scdd.errors import InputError


def make(seed, n_rows, n_vars, value="f4", index="i4", mean=4):
    """Unsorted, repeated and zero entries, empty rows."""
    rng = np.random.default_rng(seed)
    sizes = rng.poisson(mean, n_rows) * (rng.random(n_rows) > 0.2)
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    data = rng.poisson(1.5, indptr[-1]).astype(value)
    indices = rng.integers(0, n_vars, indptr[-1]).astype(index)
    for row in np.flatnonzero(rng.random(n_rows) < 0.5):
        indices[indptr[row] : indptr[row + 1]].sort()
    dense = np.zeros((n_rows, n_vars))
    np.add.at(dense, (np.repeat(np.arange(n_rows), sizes), indices.astype(int)), data.astype(float))
    return (data, indices, indptr), dense


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n_rows=st.integers(0, 150),
    n_vars=st.integers(1, 30),
    k=st.integers(0, 9),
    value=st.sampled_from(["f4", "f8", "i4", "i8", "u2", "u1"]),
    index=st.sampled_from(["i4", "i8", "u2"]),
    real=st.sampled_from([np.float32, np.float64]),
    scaled=st.booleans(),
    log1p=st.booleans(),
    threads=st.integers(1, 4),
)
def test_products_equal_numpy(seed, n_rows, n_vars, k, value, index, real, scaled, log1p, threads):
    csr, dense = make(seed, n_rows, n_vars, value, index)
    rng = np.random.default_rng(seed)
    scale = rng.random(n_rows) * 3 if scaled else None
    x = dense if scale is None else dense * scale[:, None]
    x = np.log1p(x) if log1p else x
    right, left = rng.standard_normal((n_vars, k)).astype(real), rng.standard_normal((n_rows, k)).astype(real)
    out = np.full((n_rows, k), np.nan, dtype=real)
    _csr.csr_times_dense(*csr, n_vars, right, scale, log1p, out, threads)
    np.testing.assert_allclose(out, x @ right, rtol=2e-5, atol=2e-5)
    before = rng.standard_normal((n_vars, k))
    added = before.copy()
    _csr.csr_transposed_times_dense(*csr, n_vars, left, scale, log1p, added, threads)
    np.testing.assert_allclose(added, before + x.T @ left, rtol=2e-5, atol=2e-5)


def test_products_do_not_depend_on_threads():
    csr, _ = make(0, 700, 50, mean=20)
    rng = np.random.default_rng(1)
    right, left, scale = rng.standard_normal((50, 7)), rng.standard_normal((700, 7)), rng.random(700)
    results = []
    for threads in (1, 2, 3, 16):
        out, added = np.empty((700, 7)), np.ones((50, 7))
        _csr.csr_times_dense(*csr, 50, right, scale, True, out, threads)
        _csr.csr_transposed_times_dense(*csr, 50, left, scale, True, added, threads)
        results.append((out, added))
    for out, added in results[1:]:
        np.testing.assert_array_equal(out, results[0][0])
        np.testing.assert_array_equal(added, results[0][1])


def test_products_refuse_what_is_wrong():
    csr, _ = make(0, 8, 5)
    right, left, out, added = np.ones((5, 2)), np.ones((8, 2)), np.ones((8, 2)), np.zeros((5, 2))
    times, transposed = _csr.csr_times_dense, _csr.csr_transposed_times_dense
    with pytest.raises(ValueError, match=r"dense has shape \[8, 2\], and must have \[5, 2\]"):
        times(*csr, 5, left, None, False, out)
    with pytest.raises(ValueError, match=r"out has shape \[5, 2\], and must have \[8, 2\]"):
        times(*csr, 5, right, None, False, added)
    with pytest.raises(TypeError, match="out has dtype float64, and must have float32"):
        times(*csr, 5, right.astype(np.float32), None, False, out)
    with pytest.raises(TypeError, match="dense has dtype int64"):
        transposed(*csr, 5, left.astype(np.int64), None, False, added)
    with pytest.raises(ValueError, match="strided"):
        times(*csr, 5, np.ones((2, 5)).T, None, False, out)
    with pytest.raises(ValueError, match="row_scale has 3 values"):
        transposed(*csr, 5, left, np.ones(3), False, added)
    with pytest.raises(ValueError, match="threads is 0"):
        times(*csr, 5, right, None, False, out, 0)
    bad = (csr[0], np.full_like(csr[1], 5), csr[2])
    for indptr in (csr[2][::-1].copy(), np.append(csr[2][:-1], 10**6), np.r_[0, csr[2][-1], csr[2][2:]]):
        for function, dense, target in ((times, right, out), (transposed, left, added)):
            with pytest.raises(IndexError, match="indptr"):
                function(csr[0], csr[1], np.ascontiguousarray(indptr), 5, dense, None, False, target, 3)
    for function, dense, target in ((times, right, out), (transposed, left, added)):
        with pytest.raises(IndexError, match=r"lies outside 0\.\.4"):
            function(*bad, 5, dense, None, True, target)
    assert (added == 0).all()


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_equals_scikit_learn(make_atlas, scale, normalise, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 97)
    atlas = scdd.Atlas(make_atlas(n=500, genes=60, classes=5))
    genes = Preprocessor.fit(atlas, n_top_genes=40)
    found = streaming_pca(
        atlas, genes, n_components=6, n_oversamples=30, n_iter=3, scale=scale, normalise=normalise
    )
    x = genes.transform(atlas).astype(np.float64)
    if not normalise:
        x = atlas.read(np.arange(500)).toarray()[:, atlas.var_names.get_indexer(genes.genes)].astype(float)
    x = x / x.std(axis=0, ddof=1) if scale else x
    truth = PCA(n_components=6, svd_solver="full").fit(x)
    np.testing.assert_allclose(found.explained_variance, truth.explained_variance_, rtol=1e-4)
    np.testing.assert_allclose(found.explained_variance_ratio, truth.explained_variance_ratio_, rtol=1e-4)
    assert subspace_angles(found.components[:4].T, truth.components_[:4].T).max() < 1e-2
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(6), atol=1e-10)
    mine, theirs = found.transform(atlas), truth.transform(x)
    assert mine.dtype == np.float32
    for j in range(4):
        assert abs(np.corrcoef(mine[:, j], theirs[:, j])[0, 1]) > 0.9999
    centred = x - x.mean(axis=0)
    np.testing.assert_allclose(mine, centred @ found.components.T, atol=2e-3 * np.abs(centred).max())


def test_all_directions_are_exact(make_atlas):
    atlas = scdd.Atlas(make_atlas(n=300, genes=20))
    found = streaming_pca(atlas, n_components=20, n_iter=0)
    x = Preprocessor.of_genes(atlas.var_names, "counts").transform(atlas).astype(np.float64)
    truth = PCA().fit(x)
    np.testing.assert_allclose(found.explained_variance, truth.explained_variance_, rtol=1e-4)
    assert found.explained_variance_ratio.sum() == pytest.approx(1.0, abs=1e-5)
    for mine, theirs in zip(found.components, truth.components_, strict=True):
        assert abs(mine @ theirs) > 0.999


def test_passes_are_fixed_and_blocks_and_threads_change_nothing(make_atlas, monkeypatch):
    atlas = scdd.Atlas(make_atlas(n=400))
    passes, blocks = [], scdd.Atlas.blocks
    monkeypatch.setattr(scdd.Atlas, "blocks", lambda self, *size: (passes.append(1), blocks(self, *size))[1])
    first = streaming_pca(atlas, n_components=5, n_iter=2, seed=1, threads=1)
    assert len(passes) == 4
    second = streaming_pca(atlas, n_components=5, n_iter=2, seed=1, threads=3)
    np.testing.assert_array_equal(first.components, second.components)
    monkeypatch.setattr(module, "_BLOCK", 50)
    third = streaming_pca(atlas, n_components=5, n_iter=2, seed=1)
    np.testing.assert_allclose(np.abs(third.components), np.abs(first.components), atol=1e-8)


def test_little_variance(adata):
    x = np.zeros(adata.shape, dtype=np.float32)
    x[:, 0] = np.arange(240) % 3
    adata.X = sparse.csr_matrix(x)
    found = streaming_pca(scdd.Atlas(adata), n_components=4, normalise=False, scale=True)
    assert np.isfinite(found.components).all()
    np.testing.assert_allclose(found.explained_variance, [1, 0, 0, 0], atol=1e-9)
    np.testing.assert_allclose(found.components[0], np.eye(60)[0], atol=1e-9)


def test_a_constant_gene_stays_silent_when_scaled(adata):
    rng = np.random.default_rng(0)
    x = rng.random(adata.shape).astype(np.float32)
    x[:, :5] = 0.1
    adata.X = sparse.csr_matrix(x)
    found = streaming_pca(scdd.Atlas(adata, expression="log1p"), n_components=50, scale=True)
    np.testing.assert_allclose(found.components[:, :5], 0, atol=1e-5)
    assert found.scale[:5].tolist() == [1.0] * 5


def test_transform_of_another_atlas_and_into_a_map(adata, tmp_path):
    atlas = scdd.Atlas(adata)
    found = streaming_pca(atlas, n_components=3)
    expected = found.transform(atlas)
    shuffled = scdd.Atlas(adata[:, np.random.default_rng(0).permutation(60)].copy())
    out = np.memmap(tmp_path / "x", dtype=np.float32, mode="w+", shape=(240, 3))
    assert found.transform(shuffled, out=out) is out
    np.testing.assert_allclose(out, expected, atol=1e-5)
    with pytest.raises(InputError, match="lacks 10 of the 60 genes"):
        found.transform(scdd.Atlas(adata[:, 10:].copy()))
    with pytest.raises(InputError, match="out has shape"):
        found.transform(atlas, out=np.empty((240, 4), dtype=np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 0}, "n_components is 0"),
        ({"n_components": 61}, "allows at most 60"),
        ({"n_oversamples": -1}, "n_oversamples is -1"),
        ({"n_iter": 1.5}, "n_iter is 1.5"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_bad_arguments_are_named(adata, options, message):
    with pytest.raises(InputError, match=message):
        streaming_pca(scdd.Atlas(adata), **options)
    with pytest.raises(InputError, match="at least two"):
        streaming_pca(scdd.Atlas(adata[:1].copy()), n_components=1)
