"""Distillation: what comes out, that only codes move, and that it beats random cells."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import scdd
from scdd.distillation.budget import rows_per_class
from scdd.distillation.candidates import Candidates
from scdd.distillation.codes import INITS, initial_codes
from scdd.distillation.distill import METHODS
from scdd.distillation.matching import MatchingNetwork, distribution_matching, gradient_matching
from scdd.distillation.rendering import Background, Renderer, depth_of
from scdd.distillation.selectors import SELECTORS
from scdd.errors import InputError

QUICK = {"matching": {"iterations": 20}, "progress": False}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [1, 4])
def test_every_method_writes_a_labelled_weighted_set(generator, adata, method, k):
    options = {} if method in SELECTORS else {"generator": generator}
    made = scdd.distill(adata, label_key="cell_type", cells_per_class=k, method=method, **options, **QUICK)
    rows = SELECTORS[method].rows_per_class(k) if method in SELECTORS else k
    assert made.n_obs == 3 * rows
    assert made.X.dtype == np.float32
    assert np.isfinite(made.X).all()
    assert (made.X >= 0).all()
    by_class = made.obs.groupby("cell_type", observed=True)
    np.testing.assert_allclose(by_class["weight"].mean(), 1)
    np.testing.assert_allclose(by_class["n_cells"].sum(), 80)
    assert made.uns["scdd"]["method"] == method
    assert made.uns["log1p"] == {"base": None}


def test_real_cells_are_real_and_named(adata):
    made = scdd.distill(adata, label_key="cell_type", cells_per_class=3, method="random")
    x = scdd.Preprocessor.of_genes(made.var_names, "counts").transform(scdd.Atlas(adata))
    rows = adata.obs_names.get_indexer(made.obs["source_cell"])
    np.testing.assert_array_equal(made.X, x[rows])
    assert list(made.obs["cell_type"]) == list(adata.obs["cell_type"].iloc[rows])


def test_the_same_seed_writes_the_same_cells_bit_for_bit(adata, small):
    options = {
        "label_key": "cell_type",
        "cells_per_class": 3,
        "progress": False,
        "matching": {"iterations": 15},
    }
    changes = {**small, "steps": 60, "autoencoder_steps": 60}
    first, again = (scdd.distill(adata, seed=1, **options, **changes) for _ in range(2))
    np.testing.assert_array_equal(first.X, again.X)
    np.testing.assert_array_equal(first.obsm["X_code"], again.obsm["X_code"])
    other = scdd.distill(adata, seed=2, **options, **changes)
    assert not np.array_equal(first.X, other.X)


def test_provenance_is_complete_and_survives_the_file(generator, adata, tmp_path):
    from scdd.output import write_anndata

    made = scdd.distill(adata, label_key="cell_type", cells_per_class=2, generator=generator, **QUICK)
    write_anndata(made, tmp_path / "d.h5ad")
    import anndata as ad

    record = ad.read_h5ad(tmp_path / "d.h5ad").uns["scdd"]
    assert json.loads(record["settings"])["init"] == "kmeans"
    assert json.loads(record["generator_config"])["t_star"] == 250
    assert record["generator"] == generator.weights_hash()
    assert record["source_fingerprint"] == scdd.Atlas(adata).fingerprint()
    assert len(record["objective_history"]) == 20


def test_distillation_moves_codes_and_nothing_else(generator, adata):
    before = {name: value.clone() for name, value in generator.net.state_dict().items()}
    norms = [m for m in generator.net.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert norms, "the autoencoder has batch norm, so the next lines test something"
    options = {"label_key": "cell_type", "cells_per_class": 2, "generator": generator, "progress": False}
    still = scdd.distill(adata, matching={"iterations": 0}, **options)
    moved = scdd.distill(adata, matching={"iterations": 20, "objective": "dc+dm"}, **options)
    after = generator.net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in generator.net.parameters())
    assert not np.array_equal(still.obsm["X_code"], moved.obsm["X_code"])


def test_the_objective_falls_from_a_random_start(generator, adata):
    made = scdd.distill(
        adata, label_key="cell_type", cells_per_class=3, generator=generator, init="random",
        rendering="mean", matching={"iterations": 120}, progress=False,
    )  # fmt: skip
    history = made.uns["scdd"]["objective_history"]
    assert history[-20:].mean() < 0.3 * history[:10].mean()


def test_chunks_do_not_change_the_result(generator, adata):
    options = {"label_key": "cell_type", "cells_per_class": 4, "generator": generator, "progress": False}
    whole, pieces = (
        scdd.distill(adata, matching={"iterations": 5, "chunk": chunk}, **options).X for chunk in (1_000, 5)
    )
    np.testing.assert_allclose(whole, pieces, atol=1e-3)


def test_only_one_chunk_of_the_graph_is_alive(generator, adata, monkeypatch):
    seen = []
    original = Renderer.expected

    def counted(self, latent, rows):
        if latent.requires_grad:
            seen.append(len(rows))
        return original(self, latent, rows)

    monkeypatch.setattr(Renderer, "expected", counted)
    scdd.distill(
        adata, label_key="cell_type", cells_per_class=20, generator=generator,
        matching={"iterations": 2, "chunk": 8}, progress=False,
    )  # fmt: skip
    assert max(seen) == 8
    assert sum(seen) == 2 * 60


@pytest.mark.parametrize("init", INITS)
def test_every_init_gives_a_code_for_every_row(generator, adata, init):
    atlas = scdd.Atlas(adata)
    candidates = Candidates(atlas, atlas.labels("cell_type").codes, generator.preprocessor)
    codes = initial_codes(generator, candidates, np.array([1, 3, 100]), np.arange(3), init, seed=0)
    assert codes.shape == (104, 6)
    assert torch.isfinite(codes).all()
    if init not in ("random", "prior"):
        assert codes.unique(dim=0).shape[0] > 60
    if init != "random":
        centre = generator.encode(adata)[(adata.obs["cell_type"] == "type 2").to_numpy()].mean(0)
        gap = np.linalg.norm(codes[4:].mean(0).numpy() - centre)
        assert gap < 0.5 * np.linalg.norm(centre)


def test_matching_is_zero_when_synthetic_equals_real():
    g = torch.Generator().manual_seed(0)
    network = MatchingNetwork(torch.zeros(7), torch.ones(7), 2, width=16, depth=2, generator=g)
    real = [torch.randn(9, 7, generator=g), torch.randn(5, 7, generator=g) + 1]
    assert distribution_matching(network, real, real).item() == pytest.approx(0, abs=1e-8)
    assert gradient_matching(network, real, real).item() == pytest.approx(0, abs=0.1)
    other = [x + 0.5 for x in real]
    assert distribution_matching(network, real, other) > 0.01
    assert gradient_matching(network, real, other) > 1


def test_gradient_matching_looks_at_matrices_only(monkeypatch):
    g = torch.Generator().manual_seed(0)
    network = MatchingNetwork(torch.zeros(3), torch.ones(3), 2, width=4, depth=1, generator=g)
    x, s = [torch.randn(6, 3, generator=g)] * 2, [torch.randn(6, 3, generator=g)] * 2
    expected = 0.0
    for label in range(2):
        grads = []
        for rows in (x[label], s[label]):
            network.zero_grad()
            torch.nn.functional.cross_entropy(network(rows), torch.full((6,), label)).backward()
            grads.append([p.grad.clone() for p in network.parameters() if p.ndim == 2])
        for a, b in zip(*grads, strict=True):
            expected += sum(
                1 - (r @ q) / (r.norm() * q.norm() + 1e-6) for r, q in zip(a, b, strict=True)
            ).item()
    assert gradient_matching(network, x, s).item() == pytest.approx(expected, rel=1e-4)


def test_depths_run_from_one_cell_to_the_expectation():
    depths = [depth_of(rank, 10, "spectrum") for rank in range(10)]
    assert depths[0] == 1
    assert depths == sorted(depths)
    assert depths[-1] == float("inf")
    assert depth_of(0, 1, "spectrum") == float("inf")
    assert {depth_of(r, 5, "draw") for r in range(5)} == {1.0}


def test_shallow_rows_are_sparse_and_deep_rows_are_not(generator, adata):
    made = scdd.distill(adata, label_key="cell_type", cells_per_class=8, generator=generator, **QUICK)
    zeros = (made.X == 0).mean(1)
    depth = made.obs["depth"].to_numpy()
    assert zeros[depth == 1].mean() > zeros[np.isinf(depth)].mean() + 0.05


def test_the_renderer_averages_the_number_of_draws_it_says(generator):
    latent = torch.zeros(2, 6)
    sizes = torch.tensor([2, 2])
    background = Background(torch.zeros(60), torch.ones(60))
    net = generator.autoencoder.net
    make = lambda: Renderer(  # noqa: E731
        net, torch.tensor([0, 1]), sizes, torch.full((2,), 800.0), background,
        rendering="spectrum", shrinkage=0.0, seed=3,
    )  # fmt: skip
    first, second = make().rows(latent), make().rows(latent)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first[1], net.decode(latent, torch.full((2,), 800.0))[1].clamp_min(0))
    assert not torch.equal(first[0], first[1])


def test_shrinking_sets_small_differences_to_nothing():
    background = Background(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, 0.5, 0.5]))
    got = background.shrink(torch.tensor([[1.1, 2.0, 0.0]]), 0.4)
    torch.testing.assert_close(got, torch.tensor([[1.0, 1.8, 0.2]]))


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"cells_per_class": 5}, [5, 5, 5]),
        ({"total": 9}, [3, 3, 3]),
        ({"total": 10, "allocation": "proportional"}, [8, 1, 1]),
        ({"total": 3, "allocation": "proportional"}, [1, 1, 1]),
    ],
)
def test_budgets(adata, budget, expected):
    adata.obs["cell_type"] = np.repeat(["a", "b", "c"], [200, 30, 10])
    labels = scdd.Atlas(adata).labels("cell_type")
    assert rows_per_class(labels, **budget).tolist() == expected


def test_candidates_are_capped_fair_and_cover_small_classes(adata):
    adata.obs["cell_type"] = np.repeat(["a", "b"], [230, 10])
    atlas = scdd.Atlas(adata)
    p = scdd.Preprocessor.fit(atlas)
    candidates = Candidates(atlas, atlas.labels("cell_type").codes, p, cap=50)
    assert [len(rows) for rows in candidates.rows] == [50, 10]
    assert candidates.sizes.tolist() == [230, 10]
    np.testing.assert_array_equal(candidates.expression(1), p.transform(atlas, np.arange(230, 240)))
    made = scdd.distill(adata, label_key="cell_type", cells_per_class=4, method="herding")
    np.testing.assert_allclose(made.obs.groupby("cell_type", observed=True)["n_cells"].sum(), [230, 10])


def test_no_cell_outside_train_has_any_influence(adata, small):
    changed = adata.copy()
    changed.X[200:] = changed.X[200:] * 3
    options = {
        "label_key": "cell_type",
        "cells_per_class": 2,
        "progress": False,
        "matching": {"iterations": 5},
    }
    changes = {**small, "steps": 20, "autoencoder_steps": 20}
    first, second = (
        scdd.distill(scdd.Atlas(a).subset(np.arange(200)), **options, **changes).X for a in (adata, changed)
    )
    np.testing.assert_array_equal(first, second)


def test_errors(generator, adata):
    call = lambda data=adata, **o: scdd.distill(data, **{"label_key": "cell_type", **QUICK, **o})  # noqa: E731
    for options, message in (
        ({"method": "magic"}, "method='magic'"),
        ({"preset": "turbo"}, "preset='turbo'"),
        ({"cells_per_class": 0}, "cells_per_class=0"),
        ({"cells_per_class": 2, "total": 5}, "not both"),
        ({"total": 2}, "below one row"),
        ({"generator": generator, "init": "zeros"}, "init='zeros'"),
        ({"generator": generator, "rendering": "photo"}, "rendering='photo'"),
        ({"generator": generator, "matching": {"objective": "mtt"}}, "objective='mtt'"),
        ({"label_key": "condition", "generator": generator}, "trained on obs"),
        ({"label_key": "nope"}, "no column 'nope'"),
    ):
        with pytest.raises(InputError, match=message):
            call(**options)
    lonely = adata.copy()
    lonely.obs["cell_type"] = ["solo", *adata.obs["cell_type"].astype(str)[1:]]
    with pytest.raises(InputError, match=r"one cell only \('solo'\).*min-class-cells"):
        call(lonely)
    lonely.obs["cell_type"] = "same"
    with pytest.raises(InputError, match="one class"):
        call(lonely)


@pytest.mark.parametrize("init", ["kmeans", "prior"])
def test_a_generator_that_knows_more_classes_is_read_by_name(generator, adata, init):
    """Classes of a part were once numbered as if they were the generator's: codes of B began at A."""
    part = adata[adata.obs["cell_type"] != "type 0"].copy()
    made = scdd.distill(
        part, label_key="cell_type", cells_per_class=6, generator=generator, init=init,
        matching={"iterations": 30}, progress=False,
    )  # fmt: skip
    codes, label = made.obsm["X_code"], made.obs["cell_type"].astype(str).to_numpy()
    centres = {
        k: generator.encode(adata)[(adata.obs["cell_type"] == k).to_numpy()].mean(0) for k in set(label)
    }
    for name in centres:
        gap = {k: np.linalg.norm(codes[label == name].mean(0) - centre) for k, centre in centres.items()}
        assert min(gap, key=gap.__getitem__) == name


def test_small_classes_keep_their_real_codes_at_the_deep_end(generator, adata):
    part = scdd.Atlas(adata).subset(np.arange(12))
    candidates = Candidates(part, part.labels("cell_type").codes, generator.preprocessor)
    codes = initial_codes(generator, candidates, np.array([9, 9, 9]), np.arange(3), "real", seed=0)
    real = torch.from_numpy(generator.encode(part))
    nearest = torch.cdist(codes[:9], real).min(1).values
    assert (nearest[-4:] < 1e-4).all()
    assert (nearest[:5] > 1e-4).all()


def test_options_without_effect_are_refused(generator, adata):
    for options, name in (
        ({"method": "herding", "t_star": 5}, "t_star"),
        ({"method": "herding", "generator": generator}, "generator"),
        ({"generator": generator, "steps": 5}, "steps"),
        ({"generator": generator, "genes": ["GENE1"]}, "genes"),
    ):
        with pytest.raises(InputError, match=name):
            scdd.distill(adata, label_key="cell_type", **QUICK, **options)
