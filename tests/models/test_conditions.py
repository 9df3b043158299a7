"""The vocabulary of conditions: categories and numbers, what is left open, what is saved."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

import scdd
from scdd.errors import InputError
from scdd.models.conditions import Conditions
from scdd.nn.embeddings import ConditionEmbedding, drop_conditions
from scdd.nn.number_codes import codes_of_numbers


@pytest.fixture
def aged(make_atlas):
    """600 cells; age goes with the class (20s, 50s, 80s), a twentieth is unknown; wells are whole numbers."""
    adata = make_atlas(600)
    rng = np.random.default_rng(0)
    kind = adata.obs["cell_type"].cat.codes.to_numpy()
    adata.obs["age"] = 30.0 * kind + 20 + rng.random(600).round(2) * 9
    adata.obs.loc[adata.obs_names[rng.random(600) < 0.05], "age"] = np.nan
    adata.obs["well"] = rng.integers(4, size=600)
    return adata


@pytest.fixture
def conditions(aged):
    return Conditions.fit(scdd.Atlas(aged), ["cell_type", "age", "condition"])


def test_numbers_are_told_by_their_dtype(aged):
    with pytest.warns(UserWarning, match=r"4 whole values.*categorical=\['well'\]"):
        found = Conditions.fit(scdd.Atlas(aged), ["cell_type", "age", "well"])
    assert found.sizes == [3, 0, 0]
    chosen = Conditions.fit(scdd.Atlas(aged), ["cell_type", "age", "well"], categorical=["well"])
    assert chosen.sizes == [3, 0, 4]
    assert chosen.values[2] == ("0", "1", "2", "3")
    # the label names classes, whatever its dtype
    assert Conditions.fit(scdd.Atlas(aged), ["well"]).sizes == [4]


def test_values_come_back_as_they_were_given(conditions):
    given = {"cell_type": ["type 1", "type 2", None], "age": [37.25, np.nan, 61], "condition": "stim"}
    back = conditions.decode(conditions.encode(given, 3))
    assert list(back["cell_type"].astype(object).fillna("")) == ["type 1", "type 2", ""]
    np.testing.assert_array_equal(back["age"], [37.25, np.nan, 61])
    assert list(back["condition"]) == ["stim"] * 3
    # and so do strings of a table
    assert conditions.encode({"age": "37.25"}, 1)[0, 1] == conditions.encode(given, 3)[0, 1]


def test_codes_survive_float32():
    """A sampler tells conditions apart in float32, in which 2^24 + 1 does not exist."""
    codes = codes_of_numbers(np.linspace(-100, 100, 5_001))
    np.testing.assert_array_equal(codes.astype(np.float32).astype(np.int64), codes)
    assert (np.diff(codes) >= 0).all()
    assert codes.min() >= 0
    assert codes_of_numbers(np.array([np.nan]))[0] == -1


def test_open_columns_follow_those_given(conditions):
    rng = np.random.default_rng(0)
    full = conditions.complete(conditions.encode({"cell_type": ["type 0", "type 2"] * 200}, 400), rng)
    ages = conditions.decode(full)["age"].to_numpy()
    assert np.nanmax(ages[::2]) < 30
    assert np.nanmin(ages[1::2]) >= 80
    assert 0 < np.isnan(ages).mean() < 0.15, "an unknown age is a value that training has seen"
    # an age speaks of the cells near it, also where none has just that age
    for age, kind in ((24.001, "type 0"), (58.7, "type 1"), (150.0, "type 2")):
        drawn = conditions.decode(conditions.complete(conditions.encode({"age": [age] * 50}, 50), rng))
        assert set(drawn["cell_type"]) == {kind}
        np.testing.assert_allclose(drawn["age"], age, atol=1e-3)


def test_what_is_drawn_has_the_training_composition(conditions, aged):
    rng = np.random.default_rng(1)
    drawn = conditions.decode(conditions.complete(np.full((20_000, 3), -1), rng))
    assert drawn["age"].mean() == pytest.approx(aged.obs["age"].mean(), rel=0.02)
    assert drawn["age"].isna().mean() == pytest.approx(aged.obs["age"].isna().mean(), abs=0.01)
    pairs = [pd.crosstab(x["cell_type"], x["condition"], normalize=True) for x in (drawn, aged.obs)]
    np.testing.assert_allclose(*pairs, atol=0.015)


def test_the_sample_of_numbers_is_bounded_and_its_shares_are_exact(aged):
    many = scdd.Atlas(aged).subset(np.tile(np.arange(600), 20))
    many.obs = many.obs.assign(time=np.random.default_rng(0).random(12_000))
    found = Conditions.fit(many, ["cell_type", "condition", "time"])
    assert len(found.seen) <= 4_096
    shares = [found.share[found.seen[:, 0] == k].sum() for k in range(3)]
    np.testing.assert_allclose(shares, 1 / 3)


def test_a_combination_never_seen_keeps_what_was_given(aged):
    aged.obs["only"] = np.where(aged.obs["cell_type"] == "type 0", "a", "b")
    found = Conditions.fit(scdd.Atlas(aged), ["cell_type", "only", "condition"])
    rng = np.random.default_rng(0)
    full = found.complete(found.encode({"cell_type": "type 0", "only": "b"}, 4), rng)
    np.testing.assert_array_equal(full, [[0, 1, -1]] * 4)


def test_saving(conditions):
    state = json.loads(json.dumps(conditions.to_dict()))
    back = Conditions.from_dict(state)
    assert back.fields == conditions.fields
    np.testing.assert_array_equal(back.seen, conditions.seen)
    # as models were saved that knew no numbers
    old = {"names": ["a"], "values": [["x", "y"]], "seen": [[0], [1]], "share": [0.5, 0.5]}
    assert Conditions.from_dict(old).sizes == [2]


def test_errors(conditions, aged):
    with pytest.raises(InputError, match=r"age='old' is no finite number.*20.*to 89"):
        conditions.encode({"age": "old"}, 1)
    with pytest.raises(InputError, match="no finite number"):
        conditions.encode({"age": [1.0, np.inf]}, 2)
    with pytest.raises(InputError, match=r"cell_type='B' was not seen.*type 0"):
        conditions.encode({"cell_type": "B"}, 1)
    with pytest.raises(InputError, match=r"categorical='sex' is none of"):
        Conditions.fit(scdd.Atlas(aged), ["cell_type", "age"], categorical=["sex"])
    aged.obs["same"] = 3.5
    with pytest.raises(InputError, match="1 distinct values"):
        Conditions.fit(scdd.Atlas(aged), ["cell_type", "same"])
    aged.obs["same"] = [np.inf, *range(599)]
    with pytest.raises(InputError, match="infinity"):
        Conditions.fit(scdd.Atlas(aged), ["cell_type", "same"])


def test_a_number_is_embedded_and_dropped(conditions):
    torch.manual_seed(0)
    embedding = ConditionEmbedding(conditions.sizes, 8)
    codes = torch.from_numpy(conditions.encode({"cell_type": "type 0", "age": [20.0, 50.0, np.nan]}, 3))
    found = embedding(codes)
    assert found.shape == (3, 8)
    assert (found[0] - found[1]).norm() > 0.01
    nothing = drop_conditions(codes, 1.0, torch.Generator().manual_seed(0))
    assert (nothing == -1).all()
    torch.testing.assert_close(embedding(nothing)[0], embedding(nothing)[2])
    found.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in embedding.tables[1].parameters())
