"""Samples of classes and streams: uniform, without replacement, the same whatever the block."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import scdd
from scdd.data.preprocess import Preprocessor
from scdd.data.statistics.reservoir import class_reservoirs, reservoir_cells, sample_stream
from scdd.errors import InputError


@settings(max_examples=100, deadline=None)
@given(
    codes=st.lists(st.integers(-1, 4), max_size=200),
    k=st.integers(0, 30),
    seed=st.integers(0, 2**40),
    block=st.integers(1, 250),
)
def test_k_distinct_rows_of_each_class_whatever_the_block(codes, k, seed, block):
    codes = np.array(codes, dtype=np.int64)
    drawn = class_reservoirs(codes, k, n_classes=6, seed=seed, block=block)
    assert len(drawn) == 6
    for code, rows in enumerate(drawn):
        assert len(rows) == min(k, (codes == code).sum())
        assert (codes[rows] == code).all()
        assert (np.diff(rows) > 0).all()
    again = class_reservoirs(codes, k, n_classes=6, seed=seed)
    more = class_reservoirs(codes, k + 3, n_classes=6, seed=seed)
    for one, two, three in zip(drawn, again, more, strict=True):
        np.testing.assert_array_equal(one, two)
        assert set(one) <= set(three)


def test_other_classes_change_nothing():
    codes = np.arange(500) % 2
    alone = np.where(codes == 1, 1, -1)
    for a, b in zip(class_reservoirs(codes, 9)[1:], class_reservoirs(alone, 9)[1:], strict=True):
        np.testing.assert_array_equal(a, b)


def chi_square(counts):
    expected = counts.sum() / counts.size
    return stats.chi2(counts.size - 1).sf(((counts - expected) ** 2 / expected).sum())


def test_every_subset_of_a_class_is_as_likely():
    subsets = {pair: i for i, pair in enumerate(combinations(range(6), 3))}
    counts = np.zeros(len(subsets))
    codes = np.array([0, 1, 0, 0, 1, 0, 1, 0, 0])
    members = np.flatnonzero(codes == 0)
    for seed in range(2_500):
        rows = class_reservoirs(codes, 3, seed=seed, block=4)[0]
        counts[subsets[tuple(np.searchsorted(members, rows))]] += 1
    assert chi_square(counts) > 1e-3


def test_rows_of_a_long_class_are_as_likely():
    codes = np.zeros(100_000, dtype=np.int32)
    rows = np.concatenate([class_reservoirs(codes, 500, seed=seed, block=30_000)[0] for seed in range(40)])
    assert chi_square(np.bincount(rows // 1_000, minlength=100)) > 1e-3
    assert chi_square(np.bincount(rows % 64, minlength=64)) > 1e-3


def test_seeds_differ():
    codes = np.zeros(1_000, dtype=np.int64)
    assert len({tuple(class_reservoirs(codes, 5, seed=seed)[0]) for seed in range(20)}) == 20


def test_streams_are_sampled_uniformly():
    subsets = {pair: i for i, pair in enumerate(combinations(range(6), 3))}
    counts = np.zeros(len(subsets))
    for seed in range(2_500):
        counts[subsets[tuple(sorted(sample_stream(iter(range(6)), 3, seed=seed)))]] += 1
    assert chi_square(counts) > 1e-3
    places = np.concatenate([sample_stream(range(5_000), 50, seed=seed) for seed in range(100)])
    assert chi_square(np.bincount(places // 250, minlength=20)) > 1e-3


def test_short_streams_are_kept_whole():
    assert sample_stream("abc", 5) == ["a", "b", "c"]
    assert sample_stream("abc", 3) == ["a", "b", "c"]
    assert sample_stream("abc", 0) == []
    assert sample_stream([], 4) == []
    assert sample_stream(range(100), 7, seed=1) == sample_stream(iter(range(100)), 7, seed=1)
    assert len(set(sample_stream(range(100), 7, seed=1))) == 7
    assert len(sample_stream([None] * 50, 7)) == 7


def test_cells_of_each_class(adata):
    atlas = scdd.Atlas(adata)
    preprocessor = Preprocessor.fit(atlas, n_top_genes=20)
    drawn = reservoir_cells(atlas, "cell_type", 10, preprocessor=preprocessor, seed=4)
    assert drawn.names == ["type 0", "type 1", "type 2"]
    assert drawn.x.shape == (30, 20)
    assert list(drawn.codes) == [0] * 10 + [1] * 10 + [2] * 10
    assert (adata.obs["cell_type"].to_numpy()[drawn.rows] == np.array(drawn.names)[drawn.codes]).all()
    np.testing.assert_array_equal(drawn.x, preprocessor.transform(atlas, drawn.rows))
    adata.obs.loc[adata.obs_names[drawn.rows[:4]], "cell_type"] = np.nan
    other = reservoir_cells(scdd.Atlas(adata), "cell_type", 10, preprocessor=preprocessor, seed=4)
    assert not set(other.rows) & set(drawn.rows[:4])
    assert set(drawn.rows[4:10]) <= set(other.rows)


@pytest.mark.parametrize(
    ("codes", "options", "message"),
    [
        ([0.5], {}, "codes is float64"),
        ([[1]], {}, "shape"),
        ([3], {"n_classes": 3}, "codes go up to 3"),
        ([0], {"k": -1}, "k is -1"),
        ([0], {"seed": -1}, "seed is -1"),
        ([0], {"block": 0}, "block is 0"),
    ],
)
def test_bad_arguments_are_named(codes, options, message):
    with pytest.raises(InputError, match=message):
        class_reservoirs(np.array(codes), **{"k": 1, **options})
    with pytest.raises(InputError, match="k is -2"):
        sample_stream([], -2)


def test_nothing_to_draw_from():
    assert class_reservoirs(np.zeros(0, dtype=np.int64), 3) == []
    assert [len(rows) for rows in class_reservoirs(np.full(5, -1), 3, n_classes=2)] == [0, 0]
