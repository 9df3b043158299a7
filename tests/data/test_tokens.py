"""Gene tokens against a slow definition, over random matrices with everything that files may hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scdd import _csr
from scdd.data.atlas import Atlas
from scdd.data.loading.gather import Arrays, MatrixRows
from scdd.data.loading.tokens import TokenTransform, two_views
from scdd.data.loading.vocabulary import GeneVocabulary
from scdd.errors import InputError

VALUES = [np.float32, np.float64, np.int32, np.int64, np.uint16, np.uint8]
INDICES = [np.int32, np.int64, np.uint16]


class Case(NamedTuple):
    """A matrix that is unsorted, with duplicates, explicit zeros and empty rows, and rows wanted of it."""

    arrays: tuple
    n_vars: int
    rows: np.ndarray
    token_of_gene: np.ndarray
    gene_scale: np.ndarray | None

    def tokens(self, **options):
        arguments = (*self.arrays, self.rows, self.token_of_gene, self.gene_scale)
        return _csr.gather_tokens(*arguments, **options)


def make_case(seed, n_rows, n_vars, density, value, index, scaled):
    rng = np.random.default_rng(seed)
    sizes = rng.poisson(density * n_vars, n_rows) * (rng.random(n_rows) > 0.2)
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    data = rng.poisson(1.2, indptr[-1]) * rng.choice([1, 1, 1, 7], indptr[-1])
    if np.issubdtype(value, np.floating):
        data = data + rng.integers(0, 4, len(data)) / 4
    indices = rng.integers(0, n_vars, indptr[-1])
    n_tokens = int(rng.integers(1, n_vars + 5))
    # Genes that are dropped, and genes that share a token.
    lut = rng.integers(-1, n_tokens, n_vars).astype(np.int32)
    scale = rng.choice([0.25, 0.3, 1, 2], n_tokens).astype(np.float32) if scaled else None
    rows = rng.integers(0, n_rows, int(rng.integers(0, 2 * n_rows))).astype(np.int64)
    return Case((data.astype(value), indices.astype(index), indptr), n_vars, rows, lut, scale)


cases = st.builds(
    make_case,
    seed=st.integers(0, 2**31),
    n_rows=st.integers(1, 90),
    n_vars=st.sampled_from([1, 5, 60, 700]),
    density=st.sampled_from([0.05, 0.4, 1.2]),
    value=st.sampled_from(VALUES),
    index=st.sampled_from(INDICES),
    scaled=st.booleans(),
)


def define(case, row, *, max_genes, target_sum, log1p, logged=False):
    """Tokens of one row, by dictionaries and Python's sort, in float32 where the definition says so."""
    data, indices, indptr = case.arrays
    part = slice(indptr[row], indptr[row + 1])
    sums: dict[int, np.float32] = {}
    for gene, value in zip(indices[part].tolist(), data[part].astype(np.float32), strict=True):
        token = int(case.token_of_gene[gene])
        if token >= 0 and value:
            sums[token] = np.float32(sums.get(token, np.float32(0)) + value)
    total = float(data[part].astype(np.float64).sum())
    factor = np.float32(1 if not target_sum else 0 if total == 0 else target_sum / total)
    scaled = {token: np.float32(value * factor) for token, value in sums.items()}

    def score(token):
        s, scale = scaled[token], case.gene_scale
        if logged and scale is not None:
            s = np.float32(np.expm1(np.float64(s)))
        return s if scale is None else np.float32(s / scale[token])

    order = sorted(scaled, key=lambda token: (-score(token), token))[:max_genes]
    values = np.array([scaled[token] for token in order], dtype=np.float32)
    return order, np.log1p(values.astype(np.float64)) if log1p else values, total, len(sums)


options_of = st.fixed_dictionaries(
    {
        "max_genes": st.sampled_from([1, 2, 7, 100, 300, 2_046]),
        "target_sum": st.sampled_from([0.0, 1.0, 1e4]),
        "log1p": st.booleans(),
    }
)


@settings(max_examples=200, deadline=None)
@given(cases, options_of, st.sampled_from([1, 4]))
def test_tokens_are_as_defined(case, options, threads):
    detected = np.full(len(case.rows), -1, dtype=np.int32)
    genes, values, coordinates, starts, totals = case.tokens(detected=detected, threads=threads, **options)
    assert [a.dtype for a in (genes, values, coordinates, starts, totals)] == ["i4", "f4", "f4", "i4", "f8"]
    assert starts[0] == 0
    assert len(starts) == len(case.rows) + 1
    assert len(genes) == len(values) == len(coordinates) == starts[-1]
    for i, row in enumerate(case.rows):
        order, value, total, n_detected = define(case, row, **options)
        part = slice(starts[i], starts[i + 1])
        assert genes[part].tolist() == order
        np.testing.assert_allclose(values[part], value, rtol=3e-7)
        np.testing.assert_allclose(coordinates[part], np.log2(1 + np.arange(len(order))), rtol=1e-7)
        assert totals[i] == total
        assert detected[i] == n_detected


@settings(max_examples=60, deadline=None)
@given(cases, options_of)
def test_threads_change_no_byte(case, options):
    one, four = case.tokens(threads=1, **options), case.tokens(threads=4, **options)
    for left, right in zip(one, four, strict=True):
        assert left.tobytes() == right.tobytes()


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(0, 2**31))
def test_the_order_of_genes_in_a_file_changes_nothing(case, seed):
    rng = np.random.default_rng(seed)
    data, indices, indptr = case.arrays
    place = rng.permutation(case.n_vars)  # gene g becomes column place[g]
    # Entries move within their rows as well.
    row_of = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.lexsort((rng.random(len(data)), row_of))
    lut = np.empty_like(case.token_of_gene)
    lut[place] = case.token_of_gene
    moved = case._replace(
        arrays=(data[order], place[indices[order].astype(np.int64)].astype(indices.dtype), indptr),
        token_of_gene=lut,
    )
    for left, right in zip(case.tokens(max_genes=9), moved.tokens(max_genes=9), strict=True):
        assert left.tobytes() == right.tobytes()


@settings(max_examples=60, deadline=None)
@given(cases)
def test_a_cell_does_not_depend_on_its_neighbours(case):
    genes, values, coordinates, starts, totals = case.tokens()
    for i in range(0, len(case.rows), 7):
        alone = case._replace(rows=case.rows[i : i + 1]).tokens()
        part = slice(starts[i], starts[i + 1])
        expected = (
            genes[part],
            values[part],
            coordinates[part],
            starts[i : i + 2] - starts[i],
            totals[i : i + 1],
        )
        for left, right in zip(alone, expected, strict=True):
            assert left.tobytes() == right.tobytes()


def test_values_are_those_of_the_dense_batch():
    rng = np.random.default_rng(0)
    x = sparse.random(50, 400, density=0.6, random_state=0, format="csr", dtype=np.float32)
    lut = rng.permutation(400).astype(np.int32)
    rows = np.arange(50)
    genes, values, _, starts, _ = _csr.gather_tokens(*Arrays.of(x), rows, lut)
    dense = np.empty((50, 400), dtype=np.float32)
    _csr.gather_dense(*Arrays.of(x), rows, lut, dense, target_sum=1e4, log1p=True)
    of_token = np.zeros_like(dense)
    of_token[np.repeat(rows, np.diff(starts)), genes] = values
    np.testing.assert_array_equal(of_token, dense)


# Around what ends a bucket, a byte, two bytes, and what a float still holds exactly.
COUNTS = [0, 1, 1, 1, 1, 2, 2, 3, 61, 62, 63, 64, 254, 255, 256, 65_535]


def make_counts(seed, n_rows, n_vars, value, permuted, more):
    """Rows as files of counts hold them: genes in order, each once; tokens are genes, or genes moved."""
    rng = np.random.default_rng(seed)
    taken = rng.random((n_rows, n_vars)) < rng.choice([0.0, 0.05, 0.5, 1.0], n_rows)[:, None]
    indptr = np.concatenate([[0], np.cumsum(taken.sum(1))]).astype(np.int64)
    choices = np.array([c for c in [*COUNTS, *more] if value != np.uint8 or c < 256])
    choices = choices[choices < 65_536] if value == np.uint16 else choices
    data = rng.choice(choices, indptr[-1]).astype(value)
    lut = (rng.permutation(n_vars) if permuted else np.arange(n_vars)).astype(np.int32)
    rows = rng.integers(0, n_rows, 40).astype(np.int64)
    return Case((data, np.nonzero(taken)[1].astype(np.int32), indptr), n_vars, rows, lut, None)


counts = st.builds(
    make_counts,
    seed=st.integers(0, 2**31),
    n_rows=st.integers(1, 40),
    n_vars=st.sampled_from([1, 3, 64, 65, 700]),
    value=st.sampled_from(VALUES),
    permuted=st.booleans(),
    more=st.sampled_from([[], [65_536], [2**24 + 1]]),
)


@settings(max_examples=150, deadline=None)
@given(counts, st.sampled_from([1, 50, 2_046]), st.sampled_from([0.0, 1e-35, 1.0, 1e4]), st.booleans())
def test_counts_are_ranked_as_any_values_are(case, max_genes, target_sum, log1p):
    options = {"max_genes": max_genes, "target_sum": target_sum, "log1p": log1p}
    detected = np.empty(len(case.rows), dtype=np.int32)
    genes, values, _, starts, totals = case.tokens(detected=detected, **options)
    # Bit for bit what a dense batch holds, which knows nothing of buckets.
    dense = np.empty((len(case.rows), case.n_vars), dtype=np.float32)
    how = {"target_sum": target_sum, "log1p": log1p}
    _csr.gather_dense(*case.arrays, case.rows, case.token_of_gene, dense, **how)
    for i, row in enumerate(case.rows):
        order, _, total, n_detected = define(case, row, **options)
        part = slice(starts[i], starts[i + 1])
        assert genes[part].tolist() == order
        assert values[part].tobytes() == dense[i, order].tobytes()
        assert (totals[i], detected[i]) == (total, n_detected)


@settings(max_examples=60, deadline=None)
@given(st.one_of(cases, counts), options_of)
def test_a_scale_of_ones_is_no_scale(case, options):
    ones = case._replace(gene_scale=np.ones(case.n_vars + 5, dtype=np.float32))
    none = case._replace(gene_scale=None)
    for left, right in zip(ones.tokens(**options), none.tokens(**options), strict=True):
        assert left.tobytes() == right.tobytes()


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(0, 2**31), st.sampled_from([1, 50, 2_046]))
def test_scaled_counts_keep_every_bit_of_their_values(case, seed, max_genes):
    rng = np.random.default_rng(seed)
    case = case._replace(gene_scale=rng.choice([0.5, 1, 1.01, 3], case.n_vars).astype(np.float32))
    genes, values, _, starts, _ = case.tokens(max_genes=max_genes)
    dense = np.empty((len(case.rows), case.n_vars), dtype=np.float32)
    _csr.gather_dense(*case.arrays, case.rows, case.token_of_gene, dense, target_sum=1e4, log1p=True)
    for i, row in enumerate(case.rows):
        order = define(case, row, max_genes=max_genes, target_sum=1e4, log1p=True)[0]
        part = slice(starts[i], starts[i + 1])
        assert genes[part].tolist() == order
        assert values[part].tobytes() == dense[i, order].tobytes()


# Clusters that differ only in their lowest bits, which a sort by the highest leaves as they came.
@pytest.mark.parametrize("n", [300, 3_000, 70_000])
@pytest.mark.parametrize("clusters", [1, 40, 1_000])
@pytest.mark.parametrize("close", [1, 7, 1_000])
def test_ranks_of_values_that_lie_close(n, clusters, close):
    rng = np.random.default_rng(n + close)
    centres = np.exp(rng.uniform(0, 30, clusters)).astype(np.float32)
    bits = rng.choice(centres, n).view(np.int32) + rng.integers(0, close, n, dtype=np.int32)
    data = bits.view(np.float32)
    arrays = (data, np.arange(n, dtype=np.int32), np.array([0, n]))
    scale = np.full(n, 0.5, dtype=np.float32)
    order = np.argsort(-data, kind="stable")
    for most in (*range(101, 108), 1_000):  # the cut goes through a cluster
        how = {"target_sum": 0, "log1p": False, "max_genes": most}
        genes, values, *_ = _csr.gather_tokens(*arrays, np.array([0]), arrays[1], scale, **how)
        np.testing.assert_array_equal(genes, order[:most])
        np.testing.assert_array_equal(values, data[order[:most]])


def test_a_batch_that_is_held_is_not_written_to():
    case = make_counts(0, 200, 700, np.uint8, permuted=False, more=[])
    rows = np.random.default_rng(1).integers(0, 200, (12, 400))
    batches = [case._replace(rows=own).tokens() for own in rows]  # large enough to be used again
    copies = [[part.copy() for part in batch] for batch in batches]
    del batches[::2]
    for own in rows:
        case._replace(rows=own[::-1].copy()).tokens(threads=4)
    for batch, copy in zip(batches, copies[1::2], strict=True):
        for left, right in zip(batch, copy, strict=True):
            np.testing.assert_array_equal(left, right)
            assert left.flags.writeable


@pytest.mark.parametrize("n", [95, 96, 97, 500, 3_000, 20_000])
@pytest.mark.parametrize("span", [1, 2, 2.0**20, 2.0**100])
def test_ranks_over_any_span_of_values(n, span):
    rng = np.random.default_rng(n)
    data = np.exp(rng.uniform(0, np.log(span), n)).astype(np.float32)
    arrays = (data, rng.permutation(n).astype(np.int32), np.array([0, n]))
    genes = _csr.gather_tokens(
        *arrays, np.array([0]), np.arange(n, dtype=np.int32), max_genes=1_000, target_sum=0
    )[0]
    of_gene = np.empty(n, dtype=np.float32)
    of_gene[arrays[1]] = data
    np.testing.assert_array_equal(genes, np.argsort(-of_gene, kind="stable")[:1_000])


def test_ties_go_to_the_lower_token_also_at_the_cut():
    arrays = (np.ones(500, np.float32), np.arange(500, dtype=np.int32)[::-1].copy(), np.array([0, 500]))
    genes = _csr.gather_tokens(*arrays, np.array([0]), np.arange(500, dtype=np.int32), max_genes=123)[0]
    assert genes.tolist() == list(range(123))


def test_logged_values_pass_and_rank_as_their_counts_do():
    counts = make_case(3, 60, 200, 0.4, np.float32, np.int32, scaled=True)
    rng = np.random.default_rng(1)
    data = rng.integers(1, 2_000, len(counts.arrays[0])) / 16
    counts = counts._replace(arrays=(data.astype(np.float32), *counts.arrays[1:]))
    logged = counts._replace(arrays=(np.log1p(data).astype(np.float32), *counts.arrays[1:]))
    # Each gene once: logarithms cannot be added.
    unique = [case._replace(token_of_gene=np.arange(200, dtype=np.int32)) for case in (counts, logged)]
    scale = np.linspace(0.5, 2, 200, dtype=np.float32)
    unique = [case._replace(gene_scale=scale, arrays=without_duplicates(case)) for case in unique]
    left = unique[0].tokens(target_sum=0, max_genes=20)
    right = unique[1].tokens(target_sum=0, log1p=False, logged=True, max_genes=20)
    np.testing.assert_array_equal(left[3], right[3])
    np.testing.assert_allclose(left[1], right[1], rtol=1e-4)
    assert (left[0] == right[0]).mean() > 0.99  # neighbours may change places by rounding


def without_duplicates(case):
    data, indices, indptr = case.arrays
    row_of = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    _, first = np.unique(np.stack([row_of, indices]), axis=1, return_index=True)
    first = np.sort(first)
    sizes = np.bincount(row_of[first], minlength=len(indptr) - 1)
    return data[first], indices[first], np.concatenate([[0], np.cumsum(sizes)])


def call(**changes):
    arguments = {
        "data": np.array([1, 2, 3], np.float32),
        "indices": np.array([0, 2, 1], np.int32),
        "indptr": np.array([0, 2, 3]),
        "rows": np.array([0, 1]),
        "token_of_gene": np.arange(3, dtype=np.int32),
        "gene_scale": np.ones(3, np.float32),
    }
    return _csr.gather_tokens(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"indices": np.array([0, 3, 1], np.int32)},
            IndexError,
            r"indices\[1\] = 3 \(row 0\) lies outside 0..2",
        ),
        ({"indices": np.array([0, 2, -1], np.int64)}, IndexError, r"indices\[2\] = -1 \(row 1\)"),
        ({"indptr": np.array([0, 2, 4])}, IndexError, "indptr of row 1 is 2..4"),
        ({"indptr": np.array([0, -1, 3])}, IndexError, "indptr of row 0"),
        ({"indptr": np.array([2, 1, 3])}, IndexError, "indptr of row 0 is 2..1"),
        ({"rows": np.array([0, 2])}, IndexError, "row 2 lies outside 0..1"),
        ({"rows": np.array([-1])}, IndexError, "row -1"),
        ({"token_of_gene": np.array([0, 3, 1], np.int32)}, IndexError, r"token_of_gene\[1\] = 3"),
        ({"token_of_gene": np.array([0, -2, 1], np.int32)}, IndexError, r"token_of_gene\[1\] = -2"),
        ({"token_of_gene": np.arange(2, dtype=np.int32)}, IndexError, r"indices\[1\] = 2 \(row 0\)"),
        ({"token_of_gene": np.arange(3)}, TypeError, "token_of_gene has dtype int64"),
        ({"rows": np.array([0], np.int32)}, TypeError, "rows has dtype int32"),
        ({"gene_scale": np.array([1, 0, 1], np.float32)}, ValueError, r"gene_scale\[1\] is 0"),
        ({"gene_scale": np.array([1, 1, np.nan], np.float32)}, ValueError, r"gene_scale\[2\] is nan"),
        ({"gene_scale": np.array([-1, 1, 1], np.float32)}, ValueError, r"gene_scale\[0\] is -1"),
        ({"gene_scale": np.array([np.inf, 1, 1], np.float32)}, ValueError, r"gene_scale\[0\] is inf"),
        ({"data": np.array([1, -2, 3], np.float32)}, ValueError, "row 0 holds -2"),
        ({"data": np.array([1, 2, np.nan], np.float64)}, ValueError, "row 1 holds nan"),
        ({"data": np.array([1, np.inf, 1], np.float32)}, ValueError, "row 0 holds inf"),
        ({"data": np.array([1, 2, -3], np.int64)}, ValueError, "row 1 holds -3"),
        ({"max_genes": 0}, ValueError, "max_genes is 0"),
        ({"target_sum": -1.0}, ValueError, "target_sum is -1"),
        ({"target_sum": np.nan}, ValueError, "target_sum is nan"),
        ({"logged": True}, ValueError, "logged data is passed through"),
        ({"max_tokens": 2**31}, ValueError, "max_tokens is 2147483648"),
        ({"max_tokens": 2}, ValueError, "these 2 cells have more than 2 tokens"),
        ({"max_tokens": 1}, ValueError, "more than 1 tokens"),
        ({"threads": 0}, ValueError, "threads is 0"),
        ({"detected": np.zeros(1, np.int32)}, ValueError, "detected has 1 values, and must have 2"),
    ],
)
def test_hostile_input_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


def test_a_bad_value_counts_also_where_its_gene_is_dropped():
    with pytest.raises(ValueError, match="row 0 holds -2"):
        call(data=np.array([1, -2, 3], np.float32), token_of_gene=np.array([0, 1, -1], np.int32))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), max_size=40), st.lists(st.integers(-5, 5), max_size=9))
def test_bins_are_those_of_numpy(values, edges):
    values = np.array(values + edges, dtype=np.float32)  # values on an edge too
    edges = np.sort(np.array(edges, dtype=np.float32))
    bins = _csr.bin_values(values, edges, threads=2)
    assert bins.dtype == np.int16
    np.testing.assert_array_equal(bins, np.searchsorted(edges, values, side="right"))


def test_edges_are_checked():
    for edges in ([1, 0], [0, np.nan], [np.nan]):
        with pytest.raises(ValueError, match="must ascend"):
            _csr.bin_values(np.zeros(2, np.float32), np.array(edges, np.float32))
    with pytest.raises(ValueError, match="int16"):
        _csr.bin_values(np.zeros(2, np.float32), np.zeros(32_768, np.float32))


@pytest.fixture
def batch(adata):
    adata.X = sparse.csr_matrix(adata.X.multiply(np.arange(240)[:, None] != 3), dtype=np.float32)
    atlas = Atlas(adata)
    transform = TokenTransform.of(GeneVocabulary.fit(atlas), atlas, max_genes=25)
    rows = np.array([5, 3, 200, 5])
    return transform.batch(MatrixRows.of(atlas.in_memory), rows, codes={"donor": np.array([1, 0, 2, 1])})


def test_a_batch_names_its_cells(batch):
    assert batch.row_ids.tolist() == [5, 3, 200, 5]
    assert np.diff(batch.cu_seqlens).tolist() == [25, 0, 25, 25]
    assert batch.totals[1] == 0
    assert batch.truncated == 1 - 75 / batch.detected.sum()
    assert batch.genes[:25].tolist() == batch.genes[50:].tolist()
    assert len(batch.schedule.segments) == 75


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_two_views_share_genes_and_lengths(batch, prefix):
    views = two_views(batch, prefix=prefix)
    n, rows = 4, 75 + 4 * prefix
    assert views.cu_seqlens.tolist()[-1] == 2 * rows == len(views.tokens)
    assert [a.dtype for a in views[:4]] == ["i4", "f4", "f4", "i4"]
    for i in range(n):
        cell = slice(batch.cu_seqlens[i], batch.cu_seqlens[i + 1])
        for stream in (0, 1):
            start, end = views.cu_seqlens[stream * n + i], views.cu_seqlens[stream * n + i + 1]
            head, body = slice(start, start + prefix), slice(start + prefix, end)
            assert views.tokens[head].tolist() == [-1 - j for j in range(prefix)]
            assert not views.coordinates[head].any()
            assert not views.key_bias[head].any()
            np.testing.assert_array_equal(views.tokens[body], batch.genes[cell])
            u, v = batch.coordinates[cell], batch.values[cell]
            np.testing.assert_array_equal(views.coordinates[body], u if stream == 0 else 0 * u)
            np.testing.assert_array_equal(views.key_bias[body], 0 * v if stream == 0 else v)
    tiles = views.schedule.tiles
    assert (tiles[:, 1] - tiles[:, 0]).sum() == 2 * rows
    assert ((tiles[:, 2] < n) == (tiles[:, 3] < n)).all()
    np.testing.assert_array_equal(
        views.schedule.segments, np.repeat(np.arange(2 * n), np.diff(views.cu_seqlens))
    )


def test_tensors_hold_the_same(batch):
    torch = pytest.importorskip("torch")
    tensors = batch.to_torch()
    assert isinstance(tensors.genes, torch.Tensor)
    np.testing.assert_array_equal(tensors.codes["donor"].numpy(), batch.codes["donor"])
    np.testing.assert_array_equal(tensors.schedule.tiles.numpy(), batch.schedule.tiles)
    assert tensors.schedule.tile_rows == 64
    views = batch.two_views().to_torch("cpu")
    np.testing.assert_array_equal(views.key_bias.numpy(), two_views(batch).key_bias)


def test_views_refuse_a_negative_prefix(batch):
    with pytest.raises(InputError, match="prefix=-1"):
        two_views(batch, prefix=-1)


def test_medians_are_those_of_the_cells_given(adata):
    train = np.arange(0, 240, 2)
    adata.X = adata.X.tocsr()
    adata.X[1::2] *= 50  # what lies outside must not be seen
    vocabulary = GeneVocabulary.fit(Atlas(adata).subset(train), min_cells=5)
    x = adata.X[train].toarray().astype(np.float64)
    x *= 1e4 / x.sum(1, keepdims=True)
    seen = adata.var_names[(x > 0).sum(0) >= 5]
    assert vocabulary.genes.tolist() == sorted(seen)
    for gene, scale in zip(vocabulary.genes, vocabulary.scale, strict=True):
        column = x[:, adata.var_names.get_loc(gene)]
        median = np.quantile(column[column > 0], 0.5, method="inverted_cdf")
        assert scale == pytest.approx(median, rel=1 / 64)


def test_a_vocabulary_does_not_depend_on_the_order_of_cells_or_genes(adata):
    rng = np.random.default_rng(0)
    moved = adata[rng.permutation(240), rng.permutation(60)].copy()
    left, right = GeneVocabulary.fit(Atlas(adata)), GeneVocabulary.fit(Atlas(moved))
    assert left.genes.equals(right.genes)
    np.testing.assert_array_equal(left.scale, right.scale)


def test_medians_of_logged_data_are_of_the_unlogged(adata):
    counts = GeneVocabulary.fit(Atlas(adata))
    logged = adata.copy()
    x = adata.X.toarray().astype(np.float64)
    logged.X = sparse.csr_matrix(np.log1p(x * 1e4 / x.sum(1, keepdims=True)), dtype=np.float32)
    of_logged = GeneVocabulary.fit(Atlas(logged, expression="log1p"))
    np.testing.assert_allclose(of_logged.scale, counts.scale, rtol=1 / 30)
    transform = TokenTransform.of(counts, Atlas(logged, expression="log1p"))
    assert (transform.target_sum, transform.log1p, transform.logged) == (0, False, True)


def test_foreign_gene_names_are_refused(adata):
    vocabulary = GeneVocabulary.fit(Atlas(adata))
    adata.var_names = [*adata.var_names[:20], *(f"ENSG{i}" for i in range(40))]
    with pytest.raises(InputError, match=r"shares 20 of its 60 genes.*min_coverage="):
        TokenTransform.of(vocabulary, Atlas(adata))
    assert TokenTransform.of(vocabulary, Atlas(adata), min_coverage=0.3).unknown == pytest.approx(2 / 3)


def test_vocabularies_are_checked(adata):
    with pytest.raises(InputError, match="min_cells=241"):
        GeneVocabulary.fit(Atlas(adata), min_cells=241)
    with pytest.raises(InputError, match="each named once"):
        GeneVocabulary(adata.var_names[[0, 0]], np.ones(2, np.float32))
    with pytest.raises(InputError, match="2 finite numbers above 0"):
        GeneVocabulary(adata.var_names[:2], np.array([1, 0], np.float32))


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or "san.so" in os.environ.get("LD_PRELOAD", ""),
    reason="needs the size of this process, and sanitizers a lot of address space",
)
def test_a_thread_goes_on_after_memory_ran_out():
    program = """
import resource
import numpy as np
from scdd import _csr

def tokens(n):
    arrays = np.ones(n, np.uint8), np.zeros(n, np.uint16), np.array([0, n])
    return _csr.gather_tokens(*arrays, np.array([0]), np.zeros(4, np.int32))[0]

tokens(1000)
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (150 << 20),) * 2)
try:
    tokens(40_000_000)
except MemoryError:
    print(tokens(1000).tolist())
"""
    call = [sys.executable, "-c", program]
    done = subprocess.run(call, check=False, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[0]", (done.returncode, done.stderr)


def test_any_number_of_threads_may_be_asked_for():
    counts = sparse.random(100, 20, 0.5, "csr", np.float32, np.random.default_rng(0))
    arrays = (*Arrays.of(counts), np.arange(100), np.arange(20, dtype=np.int32))
    expected = _csr.gather_tokens(*arrays)
    for threads in (2**61, 2**62, 2**63 - 1):  # four tasks a thread would be more than can be counted
        for part, wanted in zip(_csr.gather_tokens(*arrays, threads=threads), expected, strict=True):
            np.testing.assert_array_equal(part, wanted)
