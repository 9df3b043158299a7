"""Column statistics of an atlas: against NumPy, and the same bits whatever the threads."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

import scdd
from scdd import _csr
from scdd.data.statistics.moments import column_moments
from scdd.data.variable_genes import standardised_variance
from scdd.errors import InputError


@pytest.fixture
def atlas(make_atlas):
    return scdd.Atlas(make_atlas(n=3_000, genes=50))


@pytest.mark.parametrize("log1p", [False, True])
@pytest.mark.parametrize("clipped", [False, True])
def test_equal_numpy(atlas, log1p, clipped):
    clip = np.linspace(0.5, 3, 50) if clipped else None
    x = atlas.read(np.arange(3_000)).toarray().astype(np.float64)
    zero = (x == 0).mean(axis=0)
    if log1p:
        x = np.log1p(1e4 * x / x.sum(axis=1, keepdims=True))
    x = np.minimum(x, clip) if clipped else x
    found = column_moments(atlas, target_sum=1e4 if log1p else 0.0, log1p=log1p, clip=clip)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.variance, x.var(axis=0, ddof=1), rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(found.zero_fraction, zero, atol=1e-12)
    assert zero.max() > 0
    n, _, _, nonzero = found  # a tuple of four, as it always was
    assert n == 3_000
    np.testing.assert_array_equal(nonzero, n - np.round(zero * n))


def test_threads_change_no_bit(atlas):
    one, *others = (
        column_moments(atlas, target_sum=1e4, log1p=True, threads=threads) for threads in (1, 2, 3, 8, 50)
    )
    for other in others:
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="threads is 0"):
        column_moments(atlas, threads=0)


def test_counts_are_exact_whatever_the_strips(make_atlas):
    x = make_atlas(n=2_000, genes=30).X
    csr = (x.data, x.indices, x.indptr.astype(np.int64))
    for n in (1, 127, 128, 129, 255, 256, 1_023, 1_024, 2_000):
        part = x[:n]
        csr = (part.data, part.indices, part.indptr.astype(np.int64))
        total, square, nonzero = np.zeros((3, 30))
        _csr.column_moments(*csr, 30, None, False, None, total, square, nonzero, 4)
        dense = part.toarray().astype(np.float64)
        np.testing.assert_array_equal(total, dense.sum(axis=0))
        np.testing.assert_array_equal(square, (dense**2).sum(axis=0))
        np.testing.assert_array_equal(nonzero, (dense != 0).sum(axis=0))


def test_nothing_is_added_on_an_error():
    x = sparse.random(2_000, 20, 0.5, format="csr", dtype=np.float32, random_state=0)
    sums = np.ones((3, 20))
    for wrong, message in ((len(x.indices) - 1, "row 1999"), (5, "row 0"), (len(x.indices) // 2, "row")):
        indices = x.indices.copy()
        indices[wrong] = 20
        with pytest.raises(IndexError, match=rf"indices\[{wrong}\] = 20 \({message}"):
            _csr.column_moments(x.data, indices, x.indptr.astype(np.int64), 20, None, False, None, *sums, 3)
    assert (sums == 1).all()


def test_scores_of_genes_equal_scanpy(atlas, make_atlas):
    sc = pytest.importorskip("scanpy")
    adata = make_atlas(n=3_000, genes=50)
    sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=10)
    np.testing.assert_allclose(standardised_variance(atlas), adata.var["variances_norm"], rtol=1e-4)
