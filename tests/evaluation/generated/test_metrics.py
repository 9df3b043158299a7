"""Each metric against a plain definition or a case whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.spatial.distance import cdist

from scdd.evaluation.generated import coexpression, gene_statistics, markers, published_kernels, two_sample
from scdd.evaluation.generated.memorising import memorising, nearest_train
from scdd.evaluation.generated.neighbours import nearest
from scdd.evaluation.generated.readings import Reading, excess, tabulate
from scdd.evaluation.generated.support import mixing, support
from scdd.evaluation.generated.transport import exact_wasserstein, sliced_wasserstein


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((90, 4)).astype(np.float32) for _ in range(2))


def test_nearest_without_self_and_with_copies():
    x = np.array([[0.0], [0.0], [0.0], [3.0]], dtype=np.float32)
    distance, index = nearest(x, x, 1, without_self=True)
    assert distance.ravel().tolist() == [0, 0, 0, 3]
    assert (index.ravel() != np.arange(4)).all()


def test_support_is_the_definition(pair):
    real, made = pair
    made = made[:70] + 0.5
    radius_real, radius_made = (np.sort(cdist(z, z), axis=1)[:, 5] for z in (real, made))
    distance = cdist(real, made)
    found = support(real, made, k=5)
    assert found.precision == pytest.approx((distance < radius_real[:, None]).any(0).mean())
    assert found.recall == pytest.approx((distance < radius_made).any(1).mean())
    assert found.density == pytest.approx((distance < radius_real[:, None]).sum(0).mean() / 5)
    assert found.coverage == pytest.approx((distance.min(1) < radius_real).mean())


def test_mixing_is_one_for_copies_beside_and_zero_far_apart(pair):
    x, y = pair
    alike, shifted = mixing(x, x + 1e-3), mixing(x, y + 0.5)
    assert 1 > alike > shifted > mixing(x, y + 1.5) > 0
    assert mixing(x, y + 100, perplexity=10) == pytest.approx(0.0, abs=1e-6)


def test_wasserstein(pair):
    x, y = pair
    assert exact_wasserstein(x, x[::-1]) == pytest.approx(0.0, abs=1e-6)
    assert exact_wasserstein(x, x + 2.0) == pytest.approx(4.0, rel=1e-5)
    one = exact_wasserstein(x[:, :1], y[:, :1], power=1)
    assert one == pytest.approx(stats.wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-5)
    sorted_gap = np.sort(x[:, 0]) - np.sort(y[:, 0])
    assert sliced_wasserstein(x[:, :1], y[:, :1]) == pytest.approx(np.sqrt(np.mean(sorted_gap**2)), rel=1e-5)
    assert np.isnan(exact_wasserstein(np.zeros((5_001, 1)), np.zeros((5_001, 1))))


def test_pot_and_scipy_agree(pair, monkeypatch):
    pytest.importorskip("ot")
    from scdd.evaluation.generated import transport

    found = exact_wasserstein(*pair)
    monkeypatch.setattr(transport.importlib.util, "find_spec", lambda name: None)
    assert exact_wasserstein(*pair) == pytest.approx(found, rel=1e-6)


def test_classifiers_and_neighbours_know_shifted_from_alike(pair):
    x, y = pair
    for name in two_sample.CLASSIFIERS:
        assert two_sample.classifier_auc(x, y + 3, name, trees=20) > 0.95
        assert abs(two_sample.classifier_auc(x, y, name, trees=20) - 0.5) < 0.2
    assert two_sample.nearest_neighbour_accuracy(x, y + 9) == 1.0
    assert two_sample.nearest_neighbour_accuracy(x, x + 1e-4) < 0.2


def test_discrepancy_is_the_unbiased_definition(pair):
    x, y = (z.astype(np.float64) for z in pair)
    y += 1.0

    def kernel(a, b):
        rates = 0.5 / (2.0 * np.array([0.125, 0.25, 0.5, 1.0, 2.0]))
        return np.mean([np.exp(-rate * cdist(a, b, "sqeuclidean")) for rate in rates], axis=0)

    n = len(x)
    within = sum((kernel(z, z).sum() - n) / (n * (n - 1)) for z in (x, y))
    expected = within - 2 * kernel(x, y).mean()
    found = two_sample.discrepancy(x, y, unit=2.0, permutations=50)
    assert found.value == pytest.approx(expected, rel=1e-4)
    assert found.p == pytest.approx(1 / 51)
    assert two_sample.discrepancy(x, y, unit=2.0).value == pytest.approx(expected, rel=1e-4)


def test_gene_statistics_and_curves():
    rng = np.random.default_rng(0)
    dense = np.log1p(rng.poisson(rng.gamma(1.0, 2.0, 40), size=(200, 40))).astype(np.float32)
    found = gene_statistics.gene_statistics(sparse.csr_matrix(dense), np.arange(40) < 30)
    np.testing.assert_allclose(found.mean, dense[:, :30].mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.variance, dense[:, :30].var(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(found.zero, (dense[:, :30] == 0).mean(0), atol=1e-12)
    assert found.detected.tolist() == (dense[:, :30] > 0).sum(1).tolist()
    same = gene_statistics.agreement(found, found)
    assert same["mean, Spearman"] == pytest.approx(1.0)
    assert same["variance, log-MSE"] == 0.0
    assert (
        set(gene_statistics.curve_distances(found, found).values()) <= {0.0}
        or np.isnan(list(gene_statistics.curve_distances(found, found).values())).any()
    )


def test_correlation_of_correlations():
    rng = np.random.default_rng(0)
    axes = rng.standard_normal((3, 30))
    a, b = (rng.standard_normal((400, 3)) @ axes + 0.5 * rng.standard_normal((400, 30)) for _ in range(2))
    assert coexpression.correlation_of_correlations(a, b) > 0.95
    assert abs(coexpression.correlation_of_correlations(rng.permuted(a, axis=0), b)) < 0.2
    assert coexpression.correlation_of_correlations(np.ones_like(a), b) == 0.0
    assert coexpression.split_half_reliability(a) > 0.9
    first = coexpression.gene_correlations(a)[0]
    assert first == pytest.approx(np.corrcoef(a[:, 0], a[:, 1])[0, 1])


def test_markers_of_weaker_classes_have_a_flatter_slope():
    rng = np.random.default_rng(0)
    members, base = np.arange(600) < 300, rng.gamma(3.0, 3.0, 150)
    up = np.where(np.arange(150) < 40, 4.0, 1.0)
    full, half = (
        sparse.csr_matrix(np.log1p(rng.poisson(np.where(members[:, None], base * up**s, base)))).astype(float)
        for s in (1.0, 0.5)
    )
    every = np.ones(150, dtype=bool)
    real, weak = (markers.contrast(x, members, every) for x in (full, half))
    found = markers.agreement(weak, real, top=40)
    assert 0.35 < found.slope < 0.65
    assert found.overlap > 0.8
    assert markers.agreement(real, real).slope == pytest.approx(1.0)


def test_memorising():
    rng = np.random.default_rng(0)
    train, fresh = rng.standard_normal((2, 300, 5))
    far = nearest_train(fresh, [train[:100], train[100:]])
    np.testing.assert_allclose(far, cdist(fresh, train).min(1), rtol=1e-6)
    copies = memorising(nearest_train(train[:50], [train]), far)
    assert (copies.distance, copies.copies, copies.near) == (0.0, 1.0, 1.0)
    assert copies.auroc == pytest.approx(1.0)
    assert memorising(far, far).auroc == pytest.approx(0.5)
    assert memorising(far[:0], far).copies != 0


def test_excess_is_above_zero_where_worse():
    assert excess(0.7, 0.6, "lower") > 0 > excess(0.7, 0.6, "higher")
    assert excess(0.3, 0.5, "half") == pytest.approx(0.2)
    assert excess(0.6, 0.4, "chance") == pytest.approx(0.1)
    assert excess(0.4, 0.5, "chance") == 0.0
    assert excess(1.4, 1.0, "floor") == pytest.approx(excess(0.6, 1.0, "floor"))


def test_interval_is_the_delete_d_jackknife():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(400)
    draws = [
        [Reading("a", "purity", "s", 0.0, float(rng.choice(values, 320, replace=False).mean()))]
        for _ in range(60)
    ]
    row = tabulate(draws, 0.8).iloc[0]
    half = (row["high"] - row["low"]) / 2
    assert half == pytest.approx(1.96 * values.std() / 20, rel=0.3)
    alone = tabulate(draws[:1], 0.8).iloc[0]
    assert np.isnan(alone["low"])
    assert tabulate([[Reading("a", "purity", "s", 0.1, 0.9)]], 0.8).iloc[0]["verdict"] == "perhaps worse"


def test_published_kernels(pair):
    x, y = pair
    assert published_kernels.paired_kl(x, x) == pytest.approx(0.0, abs=1e-6)
    assert published_kernels.paired_kl(x, x[::-1]) > 0.1  # the order of rows changes it
    assert published_kernels.fixed_mmd(x, x) == pytest.approx(0.0, abs=1e-9)
    d2 = cdist(np.vstack([x, y]), np.vstack([x, y]), "sqeuclidean")
    mean = d2.sum() / (180 * 179)
    k = sum(np.exp(-d2 / (mean * c)) for c in (0.25, 0.5, 1, 2, 4))
    expected = k[:90, :90].mean() + k[90:, 90:].mean() - 2 * k[:90, 90:].mean()
    assert published_kernels.summed_mmd(x, y) == pytest.approx(expected, rel=1e-4)
