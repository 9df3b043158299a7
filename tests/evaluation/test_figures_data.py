"""Fidelity and the map: numbers behind the figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scdd.evaluation.embedding import components
from scdd.evaluation.fidelity import measure
from scdd.evaluation.inputs import CellSet, Inputs


def inputs_of(distilled: CellSet, train: CellSet, classes=("a", "b")) -> Inputs:
    genes = pd.Index([f"g{i}" for i in range(train.x.shape[1])])
    return Inputs(distilled, train, train, (), genes, classes, ())


@pytest.fixture
def real() -> CellSet:
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1], [75, 25])
    x = np.log1p(rng.poisson(1.0 + 4.0 * codes[:, None] * (np.arange(40) < 20), (100, 40))).astype(np.float32)
    return CellSet("train", x, codes, None, 100)


def test_fidelity_by_hand(real):
    made = CellSet(
        "distilled", np.log1p(np.array([[0, 1, 3.0], [2, 0, 2.0]], dtype=np.float32)), np.array([0, 1])
    )
    part = CellSet("train", real.x[:, :3], real.codes)
    got = measure(inputs_of(made, part))
    np.testing.assert_allclose(got.library_distilled, [4.0, 4.0], rtol=1e-6)
    np.testing.assert_array_equal(got.detected_distilled, [2, 2])
    np.testing.assert_allclose(got.zero_distilled, [0.5, 0.5, 0.0])
    expected = np.corrcoef(part.x[part.codes == 1].mean(axis=0), made.x[1])[0, 1]
    assert got.class_correlation["b"] == pytest.approx(expected, abs=1e-6)


def test_real_cells_take_the_class_mix_of_the_distilled_set(real):
    """Class b is a quarter of the atlas and all of this set, so only its cells are compared."""
    made = real.take(np.flatnonzero(real.codes == 1)[:10])
    got = measure(inputs_of(made, real), n_real=50)
    np.testing.assert_allclose(got.zero_real, (real.x[real.codes == 1] == 0).mean(axis=0))


def test_class_means_are_weighted(real):
    x = real.x[[0, 99]]
    made = CellSet("distilled", x, np.array([0, 0]), np.array([1e6, 1.0]))
    alone = CellSet("distilled", x[:1], np.array([0]))
    got, expected = (measure(inputs_of(cells, real)).class_correlation["a"] for cells in (made, alone))
    assert got == pytest.approx(expected, abs=1e-4)


def test_map_puts_copies_of_cells_on_those_cells(real):
    made = real.take(np.array([0, 5, 80, 95]))
    shown = components(inputs_of(made, real), n_shown=200)
    np.testing.assert_allclose(shown.distilled, shown.real[[0, 5, 80, 95]], atol=1e-4)
    place, twin = shown.layout()
    spread = np.ptp(place, axis=0).max()
    assert np.linalg.norm(twin - place[[0, 5, 80, 95]], axis=1).max() < 0.05 * spread
    np.testing.assert_array_equal(shown.layout()[0], place)


def test_map_of_hardly_any_cells(real):
    made, few = real.take(np.array([0, 99])), real.take(np.array([0, 1, 99]))
    place, twin = components(inputs_of(made, few)).layout()
    assert place.shape == (3, 2)
    assert twin.shape == (2, 2)
    assert np.isfinite(place).all()
