"""Splits are disjoint, complete, seeded, and keep donors whole."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scdd
from scdd.data.splits import SplitRule, load_split, save_split, split_rows
from scdd.errors import InputError


def test_stratified_split_takes_its_share_of_every_class():
    codes = np.repeat([0, 1, 2], [100, 50, 3])
    split = split_rows(153, SplitRule(test=0.2, validation=0.1, seed=1), codes=codes)
    assert sorted(np.concatenate(split)) == list(range(153))
    assert list(np.bincount(codes[split.test], minlength=3)) == [20, 10, 1]
    assert list(np.bincount(codes[split.validation], minlength=3)) == [10, 5, 0]


def test_two_cells_of_every_class_stay_in_train():
    codes = np.repeat([0, 1], [50, 2])
    assert (codes[split_rows(52, SplitRule(test=0.5), codes=codes).train] == 1).sum() == 2


@pytest.mark.parametrize("seed", range(5))
def test_donors_stay_whole(seed):
    groups = np.random.default_rng(seed).choice(list("abcdefgh"), 400)
    split = split_rows(400, SplitRule(test=0.25, validation=0.25, seed=seed), groups=groups)
    parts = [set(groups[rows]) for rows in split]
    assert sum(map(len, parts)) == 8
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert all(len(rows) for rows in split)
    assert 0.1 < len(split.test) / 400 < 0.4


def test_named_donors(adata):
    train, test = scdd.Atlas(adata).split(by="donor", test=["donor 2"])
    assert set(test.obs["donor"].astype(str)) == {"donor 2"}
    assert "donor 2" not in set(train.obs["donor"].astype(str))
    with pytest.raises(InputError, match="no group 'donor 9'"):
        scdd.Atlas(adata).split(by="donor", test=["donor 9"])


def test_the_same_seed_gives_the_same_split_and_another_another(adata):
    atlas = scdd.Atlas(adata)
    first, again, other = (atlas.split(label_key="cell_type", seed=s)[1].obs.index for s in (0, 0, 1))
    assert list(first) == list(again) != list(other)


@pytest.mark.parametrize("bad", [{"test": 1.0}, {"test": -0.1}, {"test": 0.6, "validation": 0.5}])
def test_impossible_shares(adata, bad):
    with pytest.raises(InputError, match="shares"):
        scdd.Atlas(adata).split(**bad)


def test_one_group_cannot_be_split(adata):
    adata.obs["donor"] = "only"
    with pytest.raises(InputError, match="one group"):
        scdd.Atlas(adata).split(by="donor", test=["only"])


def test_a_saved_split_comes_back(adata, tmp_path):
    train, test = scdd.Atlas(adata).split(label_key="cell_type")
    save_split(tmp_path / "s.csv", {"train": train.obs.index, "test": test.obs.index})
    parts = load_split(tmp_path / "s.csv", adata.obs_names)
    assert list(adata.obs_names[parts["test"]]) == list(test.obs.index)
    with pytest.raises(InputError, match="another file"):
        load_split(tmp_path / "s.csv", pd.Index(["x"]))
