"""Diffusion transformers end to end on a small atlas."""

from __future__ import annotations

import math

import anndata as ad
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import scdd
from scdd.errors import InputError
from scdd.models.cell_code import CellCode, to_counts
from scdd.models.library_sizes import LibrarySizes
from scdd.models.transformer import DiffusionTransformer, WhiteBoxDiffusionTransformer

SMALL = {
    "patch": 6, "width": 32, "heads": 2, "depth": 2, "steps": 400, "batch_size": 64, "sampling_steps": 10,
    "ema": 0.98, "lr": 3e-3, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module", params=[DiffusionTransformer, WhiteBoxDiffusionTransformer])
def model(request, make_atlas):
    return request.param(make_atlas(), label_key="cell_type", conditions=["condition"], **SMALL).fit(
        progress=False
    )


def judge(adata):
    p = scdd.Preprocessor.of_genes(adata.var_names, "counts")
    x = p.transform(scdd.Atlas(adata))
    return p, LogisticRegression(max_iter=500).fit(x, adata.obs["cell_type"].astype(str))


def test_cells_are_of_the_class_asked_for(model, adata):
    wanted = np.repeat(model.conditions.values[0], 40)
    cells = model.generate(condition={"cell_type": wanted}, seed=1, progress=False)
    p, classifier = judge(adata)
    assert (classifier.predict(p.transform(scdd.Atlas(cells))) == wanted).mean() > 0.85
    assert list(cells.obs["cell_type"].astype(str)) == list(wanted)


def test_cells_are_counts_of_real_size(model, adata):
    cells = model.generate(300, seed=0, progress=False)
    x, real = cells.X.toarray(), adata.X.toarray()
    assert (x == np.round(x)).all()
    assert (x >= 0).all()
    assert abs((x == 0).mean() - (real == 0).mean()) < 0.1
    assert np.corrcoef(np.log1p(x.mean(0)), np.log1p(real.mean(0)))[0, 1] > 0.95
    # the size that was drawn is the size that comes out
    assert np.corrcoef(x.sum(1), cells.obs["total_counts"])[0, 1] > 0.5


def test_generation_is_seeded(model):
    first, again, other = (model.generate(20, seed=s, progress=False).X.toarray() for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_saved_model_generates_the_same_cells(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    assert loaded.weights_hash() == model.weights_hash()
    first, second = (m.generate(20, seed=1, progress=False) for m in (model, loaded))
    assert abs(first.X - second.X).max() == 0
    assert list(first.var_names) == list(second.var_names)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "flow"])
def test_every_sampler(model, sampler):
    cells = model.generate(30, sampler=sampler, steps=5, guidance=1.0, eta=0.5, progress=False)
    assert np.isfinite(cells.X.toarray()).all()
    assert cells.uns["scdd"]["sampler"] == sampler


def test_an_interrupted_run_ends_the_same(adata, tmp_path):
    settings = SMALL | {"steps": 12}
    whole = WhiteBoxDiffusionTransformer(adata, **settings).fit(progress=False)
    part = WhiteBoxDiffusionTransformer(adata, **settings)
    part.fit(checkpoint=tmp_path / "run.pt", progress=False)
    again = WhiteBoxDiffusionTransformer(adata, **settings).fit(
        checkpoint=tmp_path / "run.pt", progress=False
    )
    assert whole.weights_hash() == part.weights_hash() == again.weights_hash()


def test_interpret(adata, tmp_path):
    settings = SMALL | {"steps": 60}
    model = WhiteBoxDiffusionTransformer(adata, tied=True, **settings).fit(progress=False)
    found = model.interpret(adata, n_times=3, max_cells=50)
    assert len(found.table) == 2 * 3
    assert (found.table["rate_before"] > 0).all()
    assert found.table["zeros"].between(0, 1).all()
    assert 0 <= found.share_falling <= 1
    found.save(tmp_path / "found.png")
    found.save(tmp_path / "found.csv")
    assert (tmp_path / "found.png").stat().st_size > 1000
    with pytest.raises(InputError, match="no subspaces"):
        black = SMALL | {"steps": 1, "mixer": "attention", "token_map": "mlp"}
        WhiteBoxDiffusionTransformer(adata, **black).fit(progress=False).interpret(adata)


def test_log1p_data_has_no_library(adata):
    scdd_log = adata.copy()
    counts = adata.X.toarray()
    scdd_log.X = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    atlas = scdd.Atlas(scdd_log, expression="log1p")
    with pytest.raises(InputError, match="library=False"):
        DiffusionTransformer(atlas, **SMALL)
    model = DiffusionTransformer(atlas, library=False, **SMALL | {"steps": 3}).fit(progress=False)
    cells = model.generate(10, progress=False)
    assert cells.uns["scdd"]["expression"] == "log1p"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "best"}, "default, published"),
        ({"colour": 1}, "unknown setting 'colour'"),
        ({"width": 30, "heads": 4}, "no multiple of heads"),
        ({"sampling_steps": 0}, "sampling_steps=0"),
        ({"zeros": "maybe"}, "zeros='maybe'"),
        ({"decode_signal": 1.0}, "decode_signal=1.0; it lies between"),
        ({"batch_size": 1}, "batch_size=1; batch norm"),
    ],
)
def test_refuses_and_says_what_to_do(adata, changes, message):
    with pytest.raises(InputError, match=message):
        DiffusionTransformer(adata, **changes).fit(progress=False)


def test_refuses_conditions_it_does_not_know(model):
    with pytest.raises(InputError, match="was not seen in training"):
        model.generate(3, condition={"cell_type": "neuron"})
    with pytest.raises(InputError, match="the model knows cell_type, condition"):
        model.generate(3, condition={"age": "old"})


@pytest.mark.parametrize("kind", ["plain", "hurdle", "negated"])
def test_no_cell_is_decoded_beyond_what_log_data_can_be(kind):
    """Networks that have hardly been trained say anything; what they say can still be read back."""
    code = CellCode(kind, 0.5, 2.0)
    v = code.decode(torch.tensor([[-1e4, 3.0, 1e4]]), None, torch.Generator())
    assert v.tolist() == [[0, pytest.approx(6.5), pytest.approx(math.log1p(1e6))]]
    assert scdd.Atlas.of(ad.AnnData(v.repeat(5, 1).numpy()), expression="auto").expression == "log1p"


def test_cells_survive_their_code():
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.rand(50, 30, generator=generator) * 2)
    totals = counts.sum(1).clamp_min(1)
    v = torch.log1p(1e4 * counts / totals[:, None])
    for kind in ("hurdle", "negated", "plain"):
        code = CellCode(kind, 0.7 if kind != "negated" else 0.0, 1.3 if kind != "negated" else 1.0)
        back = code.decode(code.encode(v), None, generator)
        torch.testing.assert_close(back, v, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(to_counts(back.where(back > 1e-3, 0.0), totals), counts)


def test_library_sizes_follow_their_class():
    totals = torch.cat([torch.full((50,), 100.0), torch.linspace(1000, 3000, 50)])
    sizes = LibrarySizes.fit(totals, torch.tensor([0] * 50 + [1] * 50), 3)
    generator = torch.Generator().manual_seed(0)
    assert (sizes.sample(torch.zeros(20, dtype=torch.long), generator) == 100).all()
    drawn = sizes.sample(torch.ones(400, dtype=torch.long), generator)
    assert drawn.min() >= 1000
    assert drawn.max() <= 3001
    assert drawn.mean().item() == pytest.approx(2000, rel=0.05)
    # a class without cells, and no class, are as all cells
    for label in (2, -1):
        assert sizes.sample(torch.full((400,), label), generator).median() < 1500


def test_no_more_steps_than_there_are_times(model):
    most = model.config.timesteps - model.net.last
    with pytest.raises(InputError, match=rf"steps={most + 1}; it is a whole number in 1\.\.{most}"):
        model.generate(3, steps=most + 1, progress=False)


def test_guidance_of_minus_one_ignores_the_conditions(model):
    one, other = (
        model.generate(40, condition={"cell_type": f"type {k}"}, guidance=-1.0, seed=2, progress=False)
        for k in (0, 1)
    )
    x, y = (cells.X.toarray() / cells.obs["total_counts"].to_numpy()[:, None] for cells in (one, other))
    plain = model.generate(40, condition={"cell_type": "type 1"}, seed=2, progress=False)
    z = plain.X.toarray() / plain.obs["total_counts"].to_numpy()[:, None]
    assert np.abs(x.mean(0) - y.mean(0)).sum() < np.abs(z.mean(0) - y.mean(0)).sum()


def test_no_sampler_longer_than_its_times(adata):
    with pytest.raises(
        InputError, match=r"sampling_steps=20; counts are drawn from time \d+ of timesteps=20"
    ):
        DiffusionTransformer(adata, **SMALL | {"timesteps": 20, "sampling_steps": 20}).fit(progress=False)


def test_the_loss_counts_genes_and_directions_alike(model, adata):
    """The mean over genes of what is missed, plus the mean over the directions within classes."""
    net = model.net
    assert net.net.start is not None
    batch = model._to_learn(next(iter(model._loader(scdd.Atlas(adata), shuffle=False))))
    with torch.no_grad():
        net.net.eval()
        whole = net.loss(batch, torch.Generator().manual_seed(0))["diffusion"]
        seen = []
        plain = net.net.centred

        def watched(noised, rows):
            seen.append((noised, plain(noised, rows)))
            return seen[-1][1]

        net.net.centred = watched
        try:
            net.loss(batch, torch.Generator().manual_seed(0))
        finally:
            del net.net.centred
    noised, said = seen[0]
    x0 = batch.x0 - noised.anchor
    eps = (noised.x_t - noised.signal * x0) / noised.noise
    wanted = {"v": noised.signal * eps - noised.noise * x0, "eps": eps, "x0": x0}[
        model.config.parameterisation
    ]
    missed = said - wanted
    error = missed.square().mean(1) + (missed @ net.net.start.basis).square().mean(1)
    t = (net.schedule.alpha_bar[None] - noised.signal.square()).abs().argmin(1)
    torch.testing.assert_close(whole, (net.weights[t] * error).mean(), rtol=1e-3, atol=1e-4)
