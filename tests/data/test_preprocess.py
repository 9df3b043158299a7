"""Gene selection equals scanpy's, and preprocessing equals its definition."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pytest

import scdd
from scdd.data.statistics.moments import column_moments
from scdd.data.variable_genes import highly_variable_genes, normalised_dispersion, standardised_variance
from scdd.errors import InputError

sc = pytest.importorskip("scanpy")


@pytest.fixture
def wide(make_atlas):
    return make_atlas(400, 900, classes=5, depth=1_500, seed=3)


def _scanpy(adata, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sc.pp.highly_variable_genes(adata, inplace=False, **options)


def test_seurat_v3_equals_scanpy(wide):
    table = _scanpy(wide, flavor="seurat_v3", n_top_genes=200)
    score = standardised_variance(scdd.Atlas(wide))
    np.testing.assert_allclose(score, table["variances_norm"], rtol=1e-4, atol=1e-6)
    chosen = highly_variable_genes(scdd.Atlas(wide), 200)
    assert set(wide.var_names[chosen]) == set(wide.var_names[table["highly_variable"]])


def test_seurat_equals_scanpy_on_counts_and_on_log_data(wide):
    logged = wide.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    table = _scanpy(logged, flavor="seurat", n_top_genes=200)
    for atlas in (scdd.Atlas(wide), scdd.Atlas(logged, expression="log1p")):
        score = normalised_dispersion(atlas)
        np.testing.assert_allclose(score, table["dispersions_norm"], rtol=1e-3, atol=1e-3)
    chosen = highly_variable_genes(scdd.Atlas(wide), 200, flavor="seurat")
    assert len(set(wide.var_names[chosen]) ^ set(wide.var_names[table["highly_variable"]])) <= 2


def test_seurat_v3_equals_scanpy_on_real_cells(real_data):
    adata = ad.read_h5ad(real_data / "mouse_intestine_haber.h5ad")
    table = _scanpy(adata, flavor="seurat_v3", n_top_genes=300)
    chosen = highly_variable_genes(scdd.Atlas(adata), 300)
    assert set(adata.var_names[chosen]) == set(adata.var_names[table["highly_variable"]])


def test_transform_is_log1p_of_counts_per_ten_thousand_of_all_genes(adata):
    p = scdd.Preprocessor.fit(scdd.Atlas(adata), n_top_genes=20)
    dense = adata.X.toarray()
    expected = np.log1p(1e4 * dense / dense.sum(1, keepdims=True))[:, adata.var_names.get_indexer(p.genes)]
    np.testing.assert_allclose(p.transform(scdd.Atlas(adata)), expected, atol=2e-6)
    np.testing.assert_allclose(p.mean, expected.mean(0), rtol=1e-5)
    np.testing.assert_allclose(p.std, expected.std(0, ddof=1), rtol=1e-4)
    scaled = p.transform(scdd.Atlas(adata), standardise=True)
    np.testing.assert_allclose(scaled, (expected - p.mean) / p.std, atol=1e-4)


def test_genes_are_matched_by_name_not_by_place(adata):
    p = scdd.Preprocessor.fit(scdd.Atlas(adata), n_top_genes=20)
    shuffled = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    np.testing.assert_array_equal(p.transform(scdd.Atlas(shuffled)), p.transform(scdd.Atlas(adata)))


def test_cells_without_counts_become_zeros(adata):
    adata.X[3] = 0
    adata.X.eliminate_zeros()
    assert not scdd.Preprocessor.fit(scdd.Atlas(adata)).transform(scdd.Atlas(adata), np.array([3])).any()


def test_nothing_depends_on_cells_outside_the_atlas(adata):
    changed = adata.copy()
    changed.X[200:] = changed.X[200:] * 7
    rows = np.arange(200)
    first, second = (
        scdd.Preprocessor.fit(scdd.Atlas(a).subset(rows), n_top_genes=20) for a in (adata, changed)
    )
    assert list(first.genes) == list(second.genes)
    np.testing.assert_array_equal(first.mean, second.mean)


def test_moments_equal_numpy(adata):
    moments = column_moments(scdd.Atlas(adata))
    dense = adata.X.toarray().astype(np.float64)
    np.testing.assert_allclose(moments.mean, dense.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, dense.var(0, ddof=1), rtol=1e-9)
    np.testing.assert_array_equal(moments.nonzero, (dense > 0).sum(0))


def test_errors(adata):
    atlas = scdd.Atlas(adata)
    with pytest.raises(InputError, match=r"lacks, e\.g\. 'NOPE'"):
        scdd.Preprocessor.fit(atlas, genes=["GENE1", "NOPE"])
    with pytest.raises(InputError, match="flavor"):
        scdd.Preprocessor.fit(atlas, n_top_genes=5, flavor="cell_ranger")
    with pytest.raises(InputError, match="at least one gene"):
        scdd.Preprocessor.fit(atlas, n_top_genes=0)
    with pytest.raises(InputError, match="zero genes in common"):
        scdd.Preprocessor.of_genes(["A", "B"], "counts").transform(atlas)
    with pytest.raises(InputError, match="was fitted on log1p"):
        scdd.Preprocessor.of_genes(["GENE1"], "log1p").transform(atlas)
