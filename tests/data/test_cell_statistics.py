"""Quality control of cells against scanpy and plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import scdd
from scdd import _csr
from scdd.data.statistics.cell_statistics import cell_statistics, mitochondrial_genes
from scdd.errors import InputError


def with_mitochondria(adata):
    adata = adata.copy()
    adata.var_names = [f"MT-{i}" if i % 7 == 0 else f"GENE{i}" for i in range(adata.n_vars)]
    return adata


def test_equals_scanpy(adata):
    sc = pytest.importorskip("scanpy")
    adata = with_mitochondria(adata)
    adata.var["mt"] = adata.var_names.str.startswith("MT-")
    mine = cell_statistics(scdd.Atlas(adata))
    sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, log1p=False, inplace=True)
    np.testing.assert_allclose(mine.total, adata.obs["total_counts"], rtol=1e-6)
    np.testing.assert_array_equal(mine.n_genes, adata.obs["n_genes_by_counts"])
    np.testing.assert_allclose(100 * mine.mitochondrial, adata.obs["pct_counts_mt"], rtol=1e-5)
    assert mine.mitochondrial.max() > 0
    assert mine.total.dtype == mine.mitochondrial.dtype == np.float64
    assert mine.n_genes.dtype == np.int64


def test_a_mask_of_ones_own_and_names_in_any_case(adata):
    adata = with_mitochondria(adata)
    expected = cell_statistics(scdd.Atlas(adata)).mitochondrial
    mask = np.arange(adata.n_vars) % 7 == 0
    for stem in ("mt-", "Mt-"):
        adata.var_names = [f"{stem}{i}" if m else f"G{i}" for i, m in enumerate(mask)]
        assert (mitochondrial_genes(scdd.Atlas(adata)) == mask).all()
    adata.var_names = [f"ENSG{i}" for i in range(adata.n_vars)]
    atlas = scdd.Atlas(adata)
    assert np.isnan(cell_statistics(atlas).mitochondrial).all()
    np.testing.assert_array_equal(cell_statistics(atlas, mitochondrial=mask).mitochondrial, expected)


def test_cells_without_counts_have_share_zero(adata):
    adata = with_mitochondria(adata)
    keep = sparse.diags((np.arange(adata.n_obs) >= 3).astype(np.float32))
    adata.X = sparse.csr_matrix(keep @ adata.X)
    mine = cell_statistics(scdd.Atlas(adata))
    assert (mine.total[:3] == 0).all()
    assert (mine.n_genes[:3] == 0).all()
    assert (mine.mitochondrial[:3] == 0).all()
    assert np.isfinite(mine.mitochondrial).all()


def test_bad_input_is_named(adata):
    atlas = scdd.Atlas(adata)
    with pytest.raises(InputError, match="one bool for each of 60 genes"):
        cell_statistics(atlas, mitochondrial=np.ones(60))
    with pytest.raises(InputError, match="one bool for each of 60 genes"):
        cell_statistics(atlas, mitochondrial=np.ones(59, dtype=bool))
    with pytest.raises(InputError, match="threads is 0"):
        cell_statistics(atlas, threads=0)
    adata.X = adata.X.log1p()
    with pytest.raises(InputError, match="log1p"):
        cell_statistics(scdd.Atlas(adata, expression="log1p"))


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n_rows=st.integers(0, 150),
    n_vars=st.integers(1, 30),
    value=st.sampled_from(["f4", "f8", "i4", "i8", "u2", "u1"]),
    index=st.sampled_from(["i4", "i8", "u2"]),
    threads=st.integers(1, 4),
)
def test_unsorted_repeated_and_zero_entries(seed, n_rows, n_vars, value, index, threads):
    rng = np.random.default_rng(seed)
    sizes = rng.poisson(4, n_rows) * (rng.random(n_rows) > 0.3)
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    data = rng.poisson(1.0, indptr[-1]).astype(value)
    if data.dtype.kind != "u" and len(data):
        data[rng.random(len(data)) < 0.3] *= -1  # entries that cancel are no gene seen
    indices = rng.integers(0, n_vars, indptr[-1]).astype(index)
    mask = rng.random(n_vars) < 0.4
    dense = np.zeros((n_rows, n_vars))
    np.add.at(dense, (np.repeat(np.arange(n_rows), sizes), indices.astype(int)), data.astype(float))
    total, n_genes, marked = _csr.row_statistics(
        data, indices, indptr, n_vars, mask.view(np.uint8), threads=threads
    )
    np.testing.assert_array_equal(total, dense.sum(1))
    np.testing.assert_array_equal(n_genes, (dense != 0).sum(1))
    np.testing.assert_array_equal(marked, dense[:, mask].sum(1))
    assert (_csr.row_statistics(data, indices, indptr, n_vars)[2] == 0).all()


def test_damaged_matrices_are_refused():
    data, indices, indptr = np.ones(3, np.float32), np.array([0, 1, 5], np.int32), np.array([0, 1, 3])
    with pytest.raises(IndexError, match=r"indices\[2\] = 5 \(row 1\) lies outside 0..3"):
        _csr.row_statistics(data, indices, indptr, 4)
    with pytest.raises(IndexError, match="indptr of row 1"):
        _csr.row_statistics(data, indices, np.array([0, 1, 9]), 6)
    with pytest.raises(ValueError, match="mask has 2 values"):
        _csr.row_statistics(data, indices, indptr, 6, np.ones(2, np.uint8))
    with pytest.raises(ValueError, match="threads is 0"):
        _csr.row_statistics(data, indices, indptr, 6, threads=0)
