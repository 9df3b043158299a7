"""SCDG end to end on a small atlas: it conditions, saves, resumes, and does not fall into its traps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import scdd
from scdd.errors import DataFileError, InputError
from scdd.models.config import SCDGConfig, resolve_config


def judge(adata):
    """A classifier of real cells, for asking what class a generated cell looks like."""
    p = scdd.Preprocessor.of_genes(adata.var_names, "counts")
    return LogisticRegression(max_iter=500).fit(
        p.transform(scdd.Atlas(adata)), adata.obs["cell_type"].astype(str)
    )


@pytest.mark.parametrize("steps", [1, 10])
def test_generated_cells_are_of_the_class_asked_for(generator, adata, steps):
    wanted = np.repeat(generator.conditions.values[0], 40)
    cells = generator.generate(condition={"cell_type": wanted}, steps=steps, seed=1, progress=False)
    assert (judge(adata).predict(cells.X.toarray()) == wanted).mean() > 0.9
    assert list(cells.obs["cell_type"].astype(str)) == list(wanted)


def test_a_generator_trained_on_shuffled_labels_is_at_chance(adata, small):
    shuffled = adata.copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(adata.obs["cell_type"])
    model = scdd.SCDG(shuffled, label_key="cell_type", **small).fit(progress=False)
    wanted = np.repeat(model.conditions.values[0], 60)
    cells = model.generate(condition={"cell_type": wanted}, progress=False)
    assert (judge(adata).predict(cells.X.toarray()) == wanted).mean() < 0.55


def test_generated_cells_look_like_cells(generator, adata):
    cells = generator.generate(400, seed=0, progress=False)
    real = scdd.Preprocessor.of_genes(adata.var_names, "counts").transform(scdd.Atlas(adata))
    x = cells.X.toarray()
    assert (x >= 0).all()
    assert abs((x == 0).mean() - (real == 0).mean()) < 0.08
    assert np.corrcoef(x.mean(0), real.mean(0))[0, 1] > 0.97
    shares = cells.obs["condition"].value_counts(normalize=True)
    assert shares["ctrl"] == pytest.approx((adata.obs["condition"] == "ctrl").mean(), abs=0.1)


def test_generation_is_seeded(generator):
    first, again, other = (generator.generate(20, seed=s, progress=False).X.toarray() for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_saved_model_generates_the_same_cells(generator, tmp_path):
    generator.save(tmp_path / "model")
    loaded = scdd.SCDG.load(tmp_path / "model")
    assert loaded.weights_hash() == generator.weights_hash()
    for steps in (1, 3):
        options = {"seed": 5, "steps": steps, "guidance": 0.5, "progress": False}
        np.testing.assert_array_equal(
            loaded.generate(10, **options).X.toarray(), generator.generate(10, **options).X.toarray()
        )
    generator.save(tmp_path / "model")  # replaces itself
    assert {p.name for p in tmp_path.iterdir()} == {"model"}


def test_files_that_are_no_models(generator, tmp_path):
    with pytest.raises(DataFileError, match="not a saved SCDG"):
        scdd.SCDG.load(tmp_path)
    generator.autoencoder.save(tmp_path / "ae")
    with pytest.raises(InputError, match="holds a Autoencoder"):
        scdd.SCDG.load(tmp_path / "ae")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("x")
    with pytest.raises(DataFileError, match="no saved model"):
        generator.save(tmp_path / "notes")
    assert (tmp_path / "notes" / "thesis.txt").exists()


def test_an_autoencoder_comes_back(generator, adata, tmp_path):
    generator.autoencoder.save(tmp_path / "ae")
    loaded = scdd.Autoencoder.load(tmp_path / "ae")
    np.testing.assert_array_equal(loaded.encode(adata), generator.encode(adata))


def test_latents_are_standardised_and_reconstruct(generator, adata):
    codes = generator.encode(adata)
    np.testing.assert_allclose(codes.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(codes.std(0), 1, atol=1e-2)
    real = generator.preprocessor.transform(scdd.Atlas(adata))
    error = ((generator.autoencoder.decode(codes) - real) ** 2).sum()
    assert error < 0.9 * ((real - real.mean(0)) ** 2).sum()


def jacobian_norm(model, t_star):
    """Mean over codes of |d clean / d code|."""
    code = torch.randn(32, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fields = torch.zeros(32, len(model.conditions.names), dtype=torch.long)
    clean = model.net.one_step(code, torch.zeros(32, 6), fields, t_star=t_star, guidance=0.0)
    return torch.autograd.grad(clean.square().sum().sqrt(), code)[0].norm().item()


def test_codes_have_a_hold_on_the_cell_at_t_star_and_lose_it_at_the_end(generator):
    assert jacobian_norm(generator, 250) > 20 * jacobian_norm(generator, 1_000)


def test_a_flow_map_does_not_collapse_where_a_denoiser_at_T_does(adata, generator, small):
    flow = scdd.SCDG(adata, label_key="cell_type", objective="mean_flow", **{**small, "steps": 800})
    flow.fit(progress=False)
    fields, noise = (
        torch.zeros(300, 1, dtype=torch.long),
        torch.randn(300, 6, generator=torch.Generator().manual_seed(0)),
    )
    real = flow.encode(adata)[(adata.obs["cell_type"] == "type 0").to_numpy()]
    with torch.no_grad():
        spread = flow.latent(noise, noise, fields).std(0).mean().item()
        two = torch.zeros(300, 2, dtype=torch.long)
        collapsed = (
            generator.net.one_step(noise, noise * 0, two, t_star=1_000, guidance=0.0).std(0).mean().item()
        )
    assert collapsed < 0.1
    assert spread > 0.4 * real.std(0).mean()


def test_the_negative_binomial_head_gives_counts(adata, small):
    model = scdd.SCDG(adata, label_key="cell_type", autoencoder_head="nb", **small).fit(progress=False)
    wanted = np.repeat(model.conditions.values[0], 40)
    cells = model.generate(condition={"cell_type": wanted}, progress=False)
    x = cells.X.toarray()
    assert (x == np.rint(x)).all()
    assert cells.uns["scdd"]["expression"] == "counts"
    assert x.sum(1).mean() == pytest.approx(adata.X.sum(1).mean(), rel=0.15)
    logged = scdd.Preprocessor.of_genes(adata.var_names, "counts").transform(scdd.Atlas(cells))
    assert (judge(adata).predict(logged) == wanted).mean() > 0.9


@pytest.mark.parametrize("kind", ["x0", "eps"])
def test_other_parameterisations_train(adata, small, kind):
    model = scdd.SCDG(adata, label_key="cell_type", parameterisation=kind, **small).fit(progress=False)
    wanted = np.repeat(model.conditions.values[0], 30)
    cells = model.generate(condition={"cell_type": wanted}, progress=False)
    assert (judge(adata).predict(cells.X.toarray()) == wanted).mean() > 0.8


def test_an_interrupted_fit_resumes_to_the_same_model(adata, small, tmp_path, monkeypatch):
    settings = {**small, "steps": 700}
    whole = scdd.SCDG(adata, label_key="cell_type", **settings).fit(progress=False)
    from scdd.models.scdg_net import SCDGNet

    original, calls = SCDGNet.loss, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 620:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(SCDGNet, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scdd.SCDG(adata, label_key="cell_type", **settings).fit(checkpoint=tmp_path, progress=False)
    monkeypatch.setattr(SCDGNet, "loss", original)
    resumed = scdd.SCDG(adata, label_key="cell_type", **settings).fit(checkpoint=tmp_path, progress=False)
    assert resumed.weights_hash() == whole.weights_hash()


def test_errors(generator, adata, small):
    with pytest.raises(InputError, match=r"'type 9' was not seen.*type 0"):
        generator.generate(3, condition={"cell_type": "type 9"}, progress=False)
    with pytest.raises(InputError, match="'tissue' is unknown"):
        generator.generate(3, condition={"tissue": "lung"}, progress=False)
    with pytest.raises(InputError, match="at least one cell"):
        generator.generate(0, progress=False)
    with pytest.raises(InputError, match="lengths"):
        generator.generate(3, condition={"cell_type": ["type 0"] * 4}, progress=False)
    with pytest.raises(InputError, match="not trained yet"):
        scdd.SCDG(adata, label_key="cell_type", **small).generate(3)
    with pytest.raises(InputError, match="preset='turbo'"):
        scdd.SCDG(adata, label_key="cell_type", preset="turbo")
    with pytest.raises(InputError, match="unknown setting 'widht'"):
        scdd.SCDG(adata, label_key="cell_type", widht=3)
    with pytest.raises(InputError, match="t_star"):
        SCDGConfig(t_star=2_000)
    adata.obs["one"] = "same"
    with pytest.raises(InputError, match="one class"):
        scdd.SCDG(adata, label_key="one")
    logged = adata.copy()
    logged.X = logged.X.log1p()
    with pytest.raises(InputError, match="head='nb' models counts"):
        scdd.SCDG(scdd.Atlas(logged, expression="log1p"), label_key="cell_type", autoencoder_head="nb")


def test_presets_reach_both_stages():
    config = resolve_config("quality", {"seed": 7, "autoencoder_latent": 9})
    assert (config.seed, config.autoencoder.seed, config.autoencoder.latent) == (7, 7, 9)
    assert SCDGConfig(**resolve_config("faithful", {}).to_dict()) == resolve_config("faithful", {})


def test_an_interrupted_autoencoder_resumes_through_its_dropout(adata, small, tmp_path, monkeypatch):
    """Dropout draws from the global generator, which a checkpoint must hold as well."""
    from scdd.nn.autoencoder import AutoencoderNet

    settings = {"hidden": (32,), "latent": 6, "steps": 700, "batch_size": 64, "dropout": 0.3, "device": "cpu"}
    whole = scdd.Autoencoder(adata, **settings).fit(progress=False)
    original, calls = AutoencoderNet.loss, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 640:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(AutoencoderNet, "loss", interrupted)
    place = tmp_path / "ae.pt"
    with pytest.raises(KeyboardInterrupt):
        scdd.Autoencoder(adata, **settings).fit(checkpoint=place, progress=False)
    monkeypatch.setattr(AutoencoderNet, "loss", original)
    torch.manual_seed(99)
    resumed = scdd.Autoencoder(adata, **settings).fit(checkpoint=place, progress=False)
    assert resumed.weights_hash() == whole.weights_hash()


@pytest.mark.parametrize("change", ["settings", "cells", "labels"])
def test_a_checkpoint_of_another_run_is_refused(adata, small, tmp_path, change):
    scdd.SCDG(adata, label_key="cell_type", **small).fit(checkpoint=tmp_path, progress=False)
    settings, other = dict(small), adata.copy()
    if change == "settings":
        settings["parameterisation"] = "x0"
    elif change == "cells":
        other.X[0] = other.X[1]
    else:
        other.obs["cell_type"] = other.obs["cell_type"].to_numpy()[::-1]
    with pytest.raises(InputError, match="delete it"):
        scdd.SCDG(other, label_key="cell_type", **settings).fit(checkpoint=tmp_path, progress=False)


def test_a_folder_with_other_files_is_left_alone(generator, tmp_path):
    """Saving over a model once removed both models when the folder held a README."""
    place = tmp_path / "model"
    generator.save(place)
    (place / "README.md").write_text("mine")
    with pytest.raises(DataFileError, match="other files"):
        generator.save(place)
    assert scdd.SCDG.load(place).weights_hash() == generator.weights_hash()


def test_a_given_autoencoder_is_saved_with_its_own_settings(adata, small, tmp_path):
    own = scdd.Autoencoder(adata, latent=4, hidden=(16,), steps=20, batch_size=64, device="cpu")
    quick = {**small, "steps": 20, "classifier_steps": 10}
    model = scdd.SCDG(adata, label_key="cell_type", autoencoder=own, **quick).fit(progress=False)
    model.save(tmp_path / "m")
    assert scdd.SCDG.load(tmp_path / "m").encode(adata).shape == (240, 4)


def test_steps_beyond_the_schedule_are_refused(generator):
    with pytest.raises(InputError, match=r"1\.\.1000"):
        generator.generate(2, steps=3_000, progress=False)


def test_true_half_precision_is_refused(adata):
    with pytest.raises(InputError, match="precision='bf16-true'"):
        scdd.Autoencoder(adata, precision="bf16-true", steps=2, device="cpu").fit(progress=False)


def test_codes_of_a_variational_autoencoder_are_drawn(adata, small):
    settings = small | {"autoencoder_head": "nb", "autoencoder_kl_weight": 1.0, "steps": 20}
    model = scdd.SCDG(adata, label_key="cell_type", **settings).fit(progress=False)
    net = model.autoencoder.net
    codes = torch.from_numpy(model.encode(adata))
    draws = torch.stack([net.posterior_draw(codes, torch.Generator().manual_seed(s)) for s in range(40)])
    # together they have variance one, of which every cell's own part is what its code is known to
    torch.testing.assert_close(draws.flatten(0, 1).var(0), torch.ones(codes.shape[1]), atol=0.05, rtol=0)
    torch.testing.assert_close(draws.std(0).mean(0), net.code_spread, atol=0.03, rtol=0)
    assert (net.code_spread > 0.05).all()
    # and the priors of the classes are of draws: no narrower than the posterior
    for factor in model.priors.factor:
        assert ((factor @ factor.mT).diagonal() > 0.8 * net.code_spread.square()).all()


def test_codes_of_a_plain_autoencoder_stay(generator, adata):
    codes = torch.from_numpy(generator.encode(adata))
    assert generator.autoencoder.net.posterior_draw(codes, torch.Generator()) is codes
