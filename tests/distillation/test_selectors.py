"""Selectors: invariants of every rule on any class, and each rule against its definition."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from scdd.distillation.selectors import SELECTORS, ClassCells
from scdd.distillation.selectors.base import real, selector
from scdd.distillation.selectors.clustering import clusters
from scdd.distillation.selectors.covering import farthest_first
from scdd.distillation.selectors.herding import herding_order
from scdd.distillation.selectors.pooling import pool_sizes
from scdd.errors import InputError

GENES = 12
NAMES = sorted(SELECTORS)
every_rule = pytest.mark.parametrize("name", NAMES)


def make_cells(n: int, seed: int = 0, *, ties: bool = False, d: int = 3) -> ClassCells:
    """Distinct expression profiles; with `ties`, coordinates on a coarse grid, so that many coincide."""
    rng = np.random.default_rng(seed)
    embedding = rng.integers(0, 2, (n, d)) if ties else rng.normal(size=(n, d))
    expression = rng.gamma(1.0, size=(n, GENES))
    rows = rng.permutation(10 * n)[:n].astype(np.int64)
    return ClassCells(expression.astype(np.float32), embedding.astype(np.float32), rows)


def select(name: str, cells: ClassCells, k: int, seed: int = 0):
    return SELECTORS[name].function(cells, k, np.random.default_rng(seed))


@every_rule
@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 24), k=st.integers(1, 30), seed=st.integers(0, 2**16), ties=st.booleans())
def test_every_rule_on_any_class(name, n, k, seed, ties):
    cells = make_cells(n, seed, ties=ties)
    before = [array.copy() for array in cells]
    spec = SELECTORS[name]
    got = select(name, cells, k, seed)
    m = len(got.weight)

    assert m == min(spec.rows_per_class(k), n)
    assert got.expression.shape == (m, GENES)
    assert got.expression.dtype == np.float32
    assert got.weight.dtype == np.float64
    assert got.rows.dtype == np.int64
    assert np.isfinite(got.expression).all()
    assert (got.weight > 0).all()
    assert got.weight.sum() == pytest.approx(n)
    assert len(np.unique(got.expression, axis=0)) == m, "a row is written twice"
    for values, row in zip(got.expression, got.rows, strict=True):
        same = (cells.expression == values).all(axis=1)
        assert list(cells.rows[same]) == ([row] if row >= 0 else []), "rows must name exactly the real cells"
    assert spec.real_cells <= (got.rows >= 0).all()
    assert got.expression.min() >= cells.expression.min()
    assert got.expression.max() <= cells.expression.max()

    again = select(name, cells, k, seed)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(got, again, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(before, cells, strict=True)), "the input was written to"


@every_rule
@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_rows_per_class_is_what_is_written(name, k):
    assert len(select(name, make_cells(200), k).weight) == SELECTORS[name].rows_per_class(k)


@every_rule
def test_summary_is_one_sentence(name):
    summary = SELECTORS[name].summary
    assert summary.endswith(".")
    assert summary[0].isupper()
    assert "\n" not in summary


@every_rule
def test_memory_is_far_below_n_by_n(name):
    n = 5_000
    cells = make_cells(n)
    tracemalloc.start()
    try:
        select(name, cells, 50)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n * n  # an n x n array of single bytes


@pytest.mark.parametrize("name", ["random", "k_medoids", "pool"])
def test_the_generator_decides(name):
    cells = make_cells(300)
    assert not np.array_equal(select(name, cells, 5, 1).expression, select(name, cells, 5, 2).expression)


def test_random_is_uniform():
    cells = make_cells(10)
    rng = np.random.default_rng(0)
    drawn = np.concatenate([SELECTORS["random"].function(cells, 3, rng).rows for _ in range(2_000)])
    counts = np.array([(drawn == row).sum() for row in cells.rows])
    assert np.abs(counts - 600).max() < 5 * np.sqrt(2_000 * 0.3 * 0.7)


def assert_greedy(points: np.ndarray, chosen: np.ndarray, start: int, cost) -> None:
    """Each choice from ``start`` on is the cheapest of those left, ties (to rounding) included."""
    chosen = chosen.tolist()
    assert len(set(chosen)) == len(chosen)
    for step in range(start, len(chosen)):
        costs = {i: cost(chosen[:step], i) for i in range(len(points)) if i not in chosen[:step]}
        assert costs[chosen[step]] <= min(costs.values()) + 1e-9


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 30), k=st.integers(1, 30), seed=st.integers(0, 2**16))
def test_herding_and_farthest_first_match_their_definitions(n, k, seed):
    points = np.random.default_rng(seed).normal(5.0, size=(n, 3))
    mean, k = points.mean(axis=0), min(k, n)

    def gap(before, i):
        return np.linalg.norm(points[[*before, i]].mean(axis=0) - mean)

    def nearness(before, i):
        return -min(np.linalg.norm(points[i] - points[j]) for j in before)

    herded, spread = herding_order(points, k), farthest_first(points, k, n // 2)
    assert len(herded) == len(spread) == k
    assert_greedy(points, herded, 0, gap)
    assert spread[0] == n // 2
    assert_greedy(points, spread, 1, nearness)


def test_herding_picks_only_what_is_available():
    points = make_cells(30).embedding
    available = np.zeros(30, dtype=bool)
    available[[3, 7, 20]] = True
    assert sorted(herding_order(points, 10, available)) == [3, 7, 20]


def test_herding_follows_the_mean_closer_than_random():
    cells = make_cells(500, d=10)
    where = {row: i for i, row in enumerate(cells.rows)}

    def gap(name: str, seed: int) -> float:
        index = [where[row] for row in select(name, cells, 10, seed).rows]
        return float(np.linalg.norm(cells.embedding[index].mean(axis=0) - cells.embedding.mean(axis=0)))

    assert gap("herding", 0) < 0.5 * min(gap("random", seed) for seed in range(20))


def test_k_center_starts_at_the_medoid_and_finds_the_outlier():
    cells = make_cells(100)
    cells.embedding[17] = 50.0
    nearest = np.linalg.norm(cells.embedding - cells.embedding.mean(axis=0), axis=1).argmin()
    assert select("k_center", cells, 2).rows.tolist() == [cells.rows[nearest], cells.rows[17]]


def blobs(sizes: tuple[int, ...] = (10, 20, 70)) -> tuple[ClassCells, np.ndarray]:
    cells = make_cells(sum(sizes))
    label = np.repeat(np.arange(len(sizes)), sizes)
    cells.embedding[:, 0] += 100 * label
    return cells, label


def test_clusters_partition_and_find_blobs():
    cells, label = blobs()
    groups = clusters(cells.embedding, 3, np.random.default_rng(0))
    assert sorted(len(g) for g in groups) == [10, 20, 70]
    assert sorted(np.concatenate(groups)) == list(range(100))
    assert all(len(set(label[g])) == 1 for g in groups)


def test_centroids_are_cluster_means_and_masses_their_sizes():
    cells, label = blobs()
    plain, weighted = (select(name, cells, 3) for name in ("cluster_centroids", "weighted_centroids"))
    means = np.stack([cells.expression[label == c].mean(axis=0) for c in range(3)])
    order = np.argsort(weighted.weight)
    np.testing.assert_allclose(weighted.expression[order], means, rtol=1e-5)
    assert weighted.weight[order].tolist() == [10, 20, 70]
    np.testing.assert_allclose(plain.weight, 100 / 3)
    np.testing.assert_array_equal(plain.expression, weighted.expression)


@pytest.mark.parametrize("name", ["weighted_centroids", "class_centroid"])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_masses_keep_the_class_mean(name, k):
    cells = make_cells(60)
    got = select(name, cells, k)
    mean = got.weight @ got.expression.astype(np.float64) / got.weight.sum()
    np.testing.assert_allclose(mean, cells.expression.mean(axis=0, dtype=np.float64), rtol=1e-6)


def test_k_medoids_are_nearest_their_centres():
    cells, label = blobs()
    expected = set()
    for c in range(3):
        members = np.flatnonzero(label == c)
        points = cells.embedding[members]
        expected.add(cells.rows[members[np.linalg.norm(points - points.mean(axis=0), axis=1).argmin()]])
    assert set(select("k_medoids", cells, 3).rows) == expected


@pytest.mark.parametrize(("k", "averaged", "herded"), [(1, 1, 1), (2, 1, 1), (5, 3, 2), (10, 5, 5)])
def test_half_half_writes_centroids_then_herded_cells(k, averaged, herded):
    cells = make_cells(200)
    got = select("half_half", cells, k)
    centroids = select("cluster_centroids", cells, averaged)
    np.testing.assert_array_equal(got.expression[:averaged], centroids.expression)
    assert got.rows[averaged:].tolist() == select("herding", cells, herded).rows.tolist()


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 5_000), k=st.integers(2, 200))
def test_pool_sizes_are_geometric_from_one_to_all(n, k):
    sizes = pool_sizes(n, k)
    count = min(k, n)
    assert len(sizes) == count
    assert sizes[-1] == n
    if count > 1:
        assert sizes[0] == 1
        assert (np.diff(sizes) >= 0).all()
        assert (sizes[:-1] < n).all(), "only one row may be the whole class"
        np.testing.assert_allclose(sizes, n ** (np.arange(count) / (count - 1)), atol=0.5 + 1e-6)


@pytest.mark.parametrize("name", ["pool", "pool_local"])
def test_pools_run_from_a_real_cell_to_the_class_mean(name):
    cells = make_cells(400)
    mean = cells.expression.mean(axis=0)
    got = select(name, cells, 10)
    assert (got.rows >= 0).tolist() == [True] + [False] * 9
    np.testing.assert_allclose(got.expression[-1], mean, rtol=1e-5)
    gap = np.linalg.norm(got.expression - mean, axis=1)
    assert gap[0] > 2 * gap[5] > 4 * gap[9]
    np.testing.assert_allclose(select(name, cells, 1).expression[0], mean, rtol=1e-5)
    if name == "pool_local":
        assert got.rows[0] == select("herding", cells, 1).rows[0]


def test_pool_local_pools_neighbours():
    # Expression and embedding hold the same two far blobs: pools up to a blob's size stay within one.
    cells, label = blobs((500, 500))
    cells.expression[label == 1, :6] += 50.0
    got = select("pool_local", cells, 12)
    marker = got.expression[pool_sizes(1_000, 12) < 300, :6].mean(axis=1)
    assert ((marker < 5) | (marker > 45)).all()


def test_knn_smoothed_averages_six():
    cells = make_cells(100)
    got = select("knn_smoothed", cells, 4)
    for values, seed in zip(got.expression, herding_order(cells.embedding, 4), strict=True):
        near = np.argsort(np.linalg.norm(cells.embedding - cells.embedding[seed], axis=1))[:6]
        np.testing.assert_allclose(values, cells.expression[near].mean(axis=0), rtol=1e-5)


def test_a_seed_is_in_its_own_pool_among_duplicates():
    cells = make_cells(30)
    cells.embedding[:] = 1.0
    got = select("knn_smoothed", cells, 8)
    np.testing.assert_allclose(
        got.expression[7], cells.expression[[7, 0, 1, 2, 3, 4]].mean(axis=0), rtol=1e-5
    )


def test_shrunk_is_half_way():
    cells, label = blobs()
    got = select("shrunk", cells, 3)
    for values, i in zip(got.expression, herding_order(cells.embedding, 3), strict=True):
        centroid = cells.expression[label == label[i]].mean(axis=0)
        np.testing.assert_allclose(values, (cells.expression[i] + centroid) / 2, rtol=1e-5)


def test_rules_run_on_one_thread():
    seen = []

    @selector
    def spy(cells, k, rng):
        seen.extend(pool["num_threads"] for pool in threadpool_info())
        return real(cells, [0])

    spy(make_cells(3), 1, np.random.default_rng(0))
    assert seen
    assert set(seen) == {1}


def _poisoned(name: str) -> ClassCells:
    cells = make_cells(4)
    getattr(cells, name)[2, 1] = np.nan
    return cells


@pytest.mark.parametrize(
    ("cells", "k", "message"),
    [
        (make_cells(4), 0, "k is 0"),
        (make_cells(0), 1, "empty"),
        (make_cells(4)._replace(embedding=np.zeros((3, 2), np.float32)), 1, r"embedding has shape \(3, 2\)"),
        (make_cells(4)._replace(expression=np.zeros(4, np.float32)), 1, r"expression has shape \(4,\)"),
        (_poisoned("expression"), 1, "expression holds NaN"),
        (_poisoned("embedding"), 1, "embedding holds NaN"),
    ],
)
@every_rule
def test_bad_input_is_named(name, cells, k, message):
    with pytest.raises(InputError, match=message):
        select(name, cells, k)
