"""Training of the generators: validation cells, resuming, divergence, and atlases that stay on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scdd
from scdd.data.atlas import Atlas
from scdd.errors import InputError
from scdd.models.autoencoder import Autoencoder
from scdd.models.transformer import DiffusionTransformer, WhiteBoxDiffusionTransformer
from scdd.models.transformer_config import TransformerConfig
from scdd.models.transformer_net import TransformerDiffusion
from scdd.models.validation import MOST, hold_out
from scdd.train.divergence import Diverged

SMALL = {
    "patch": 12, "width": 16, "heads": 2, "depth": 1, "steps": 12, "batch_size": 32, "order": "file",
    "sampling_steps": 5, "device": "cpu", "lr": 3e-3, "ema": 0.5,
}  # fmt: skip
VALIDATED = SMALL | {"validation": 0.2, "validate_every": 4}


def test_no_class_is_lost_to_validation():
    """As in pbmc3k: a class of 10 among thousands; and classes of 1, 2 and 3."""
    codes = np.repeat(np.arange(6), [1_500, 1_122, 10, 3, 2, 1])
    parts = hold_out(len(codes), 0.1, codes=codes, seed=0)
    kept, held = (np.bincount(codes[rows], minlength=6) for rows in parts)
    assert held.tolist() == [150, 112, 1, 0, 0, 0]
    assert (kept + held == np.bincount(codes)).all()
    assert not set(parts.train) & set(parts.validation)


def test_how_many_cells_are_held_out():
    assert hold_out(319, None).validation is None, "a tenth would be 31 cells"
    assert len(hold_out(320, None).validation) == 32
    assert len(hold_out(1_000_000, None).validation) == MOST
    assert len(hold_out(1_000_000, 0.5).validation) == MOST
    assert hold_out(1_000, 0.0).train is None
    with pytest.raises(InputError, match=r"validation=0\.9.*0\.5"):
        hold_out(100, 0.9)
    with pytest.raises(InputError, match="holds out none"):
        hold_out(3, 0.1)


@pytest.fixture
def learned_from(monkeypatch):
    """Library sizes (which tell cells apart) that the loss met in training and in evaluation."""
    met = {True: set(), False: set()}
    plain = TransformerDiffusion.loss

    def loss(self, batch, generator):
        met[self.training] |= set(batch.x0.double().sum(1).tolist())
        return plain(self, batch, generator)

    monkeypatch.setattr(TransformerDiffusion, "loss", loss)
    return met


def test_validation_cells_are_never_trained_on(adata, learned_from):
    model = DiffusionTransformer(adata, **VALIDATED | {"steps": 40}).fit(progress=False)
    trained, judged = learned_from[True], learned_from[False]
    assert len(judged) == 48
    assert len(trained) == 192
    assert not trained & judged
    assert [row["step"] for row in model.history if "validation" in row] == list(range(4, 41, 4))


def test_the_condition_of_a_validation_cell_is_its_own(adata):
    """The held-out loader counts from 0; labels and codes are looked up by the cell's place in the atlas."""
    model = DiffusionTransformer(adata, conditions=["donor"], **VALIDATED)
    model._measure()
    rows = np.array([7, 100, 239])
    (batch, n), *rest = model._held_out(rows)
    assert (n, rest) == (3, [])
    donors = adata.obs["donor"].astype(str).to_numpy()[rows]
    assert [model.conditions.values[1][code] for code in batch.codes[:, 1]] == list(donors)
    p = model.preprocessor.transform(model.atlas, rows)
    torch.testing.assert_close(batch.x0, model.code.encode(torch.from_numpy(p)))


def test_a_transformer_stops_early_and_keeps_the_best(adata):
    settings = VALIDATED | {"steps": 2_000, "patience": 2, "min_delta": 1e9}
    model = DiffusionTransformer(adata, **settings).fit(progress=False)
    assert model.history[-1]["step"] == 12
    other = DiffusionTransformer(adata, **settings | {"patience": 0, "steps": 4}).fit(progress=False)
    assert other.history[-1]["step"] == 4
    assert model.fitted


def test_an_interrupted_transformer_ends_the_same(adata, tmp_path, monkeypatch):
    whole = WhiteBoxDiffusionTransformer(adata, **VALIDATED).fit(progress=False)
    plain, calls = TransformerDiffusion.loss, []

    def loss(self, batch, generator):
        calls.append(self.training)
        if sum(calls) == 8:
            raise KeyboardInterrupt
        return plain(self, batch, generator)

    place = tmp_path / "run.pt"
    monkeypatch.setattr("scdd.train.config.TrainConfig.checkpoint_every", 3)
    monkeypatch.setattr(TransformerDiffusion, "loss", loss)
    with pytest.raises(KeyboardInterrupt):
        WhiteBoxDiffusionTransformer(adata, **VALIDATED).fit(checkpoint=place, progress=False)
    monkeypatch.setattr(TransformerDiffusion, "loss", plain)
    resumed = WhiteBoxDiffusionTransformer(adata, **VALIDATED).fit(checkpoint=place, progress=False)
    assert resumed.history == whole.history
    assert resumed.weights_hash() == whole.weights_hash()


def test_a_diverged_transformer_goes_on_with_a_lower_rate(adata, tmp_path, monkeypatch):
    plain, calls = TransformerDiffusion.loss, []

    def loss(self, batch, generator):
        calls.append(1)
        terms = plain(self, batch, generator)
        return {name: value * (float("nan") if len(calls) == 6 else 1) for name, value in terms.items()}

    monkeypatch.setattr(TransformerDiffusion, "loss", loss)
    with pytest.raises(Diverged, match=r"at step 5: diffusion is nan.*try 0\.001.*of step 5, is"):
        DiffusionTransformer(adata, **SMALL).fit(checkpoint=tmp_path / "run.pt", progress=False)
    with pytest.warns(UserWarning, match=r"continued with lr=0\.001"):
        model = DiffusionTransformer(adata, **SMALL | {"lr": 1e-3}).fit(
            checkpoint=tmp_path / "run.pt", progress=False
        )
    assert model.history[-1]["step"] == 12
    assert len(calls) == 6 + 7


@pytest.mark.parametrize("objective", ["code_then_noise", "mean_flow"])
def test_every_stage_of_scdg_is_validated_on_the_same_cells(adata, small, tmp_path, objective, monkeypatch):
    held = []
    plain = Autoencoder.held_out

    def held_out(self, rows, *rest):
        held.append(rows)
        return plain(self, rows, *rest)

    monkeypatch.setattr(Autoencoder, "held_out", held_out)
    steps = {"autoencoder_steps": 20, "steps": 20, "classifier_steps": 20}
    settings = {
        "validation": 0.2,
        "validate_every": 10,
        "autoencoder_validate_every": 10,
        "objective": objective,
    }
    model = scdd.SCDG(adata, **small | steps | settings).fit(progress=False, log=tmp_path)
    assert len(held) == 3
    assert all(np.array_equal(rows, held[0]) for rows in held)
    for stage in ("autoencoder", "classifier", "generator"):
        assert [row["step"] for row in model.history[stage] if "validation" in row] == [10, 20]
        assert (tmp_path / f"{stage}.csv").exists()
    with pytest.raises(InputError, match="name a folder"):
        model.fit(log=tmp_path / "log.csv")


def test_no_cell_is_held_out_of_scdg_unless_asked_for(generator):
    assert not any("validation" in row for rows in generator.history.values() for row in rows)


def test_saved_settings_of_before_are_read():
    """Models saved when there was no validation lack its settings."""
    now = TransformerConfig().to_dict()
    before = {
        k: v for k, v in now.items() if k not in ("validation", "validate_every", "patience", "compile")
    }
    assert TransformerConfig(**before) == TransformerConfig()


def test_what_does_not_fit_in_memory_is_trained_from_its_file(make_atlas, tmp_path, monkeypatch):
    """Above the limit only blocks of a pass, the loader's windows and the held-out cells are ever held."""
    make_atlas(n=9_000, genes=30).write_h5ad(tmp_path / "big.h5ad")
    read, plain, whole = [], Atlas.read, Atlas.within_memory

    def counted(self, rows):
        read.append(len(rows))
        return plain(self, rows)

    held = DiffusionTransformer(tmp_path / "big.h5ad", **VALIDATED)
    assert held.atlas.in_memory is not None, "it would fit, but for the limit"
    limit = 3_000 * 8 * 30  # bytes: the validation cells fit
    monkeypatch.setattr(Atlas, "within_memory", lambda self: whole(self, limit))
    monkeypatch.setattr(Atlas, "read", counted)
    model = DiffusionTransformer(tmp_path / "big.h5ad", **VALIDATED).fit(progress=False)
    assert model.atlas.in_memory is None
    assert model.atlas.store.in_memory is None
    assert max(read) <= 4_096
    assert model.history[-1]["step"] == 12
    assert model.generate(5, progress=False).n_obs == 5
