"""Every objective of SCDG end to end: trained, saved, resumed, distilled through."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scdd
from scdd.errors import InputError
from scdd.models.config import OBJECTIVES, SCDGConfig, resolve_config
from scdd.models.scdg_net import LatentBatch
from scdd.models.sensitivity import sensitivity
from scdd.models.student import TeacherPairs


@pytest.fixture(scope="module")
def trained(make_atlas, small):
    """One small generator for each objective, made when it is asked for."""
    made = {}

    def get(objective: str) -> scdd.SCDG:
        if objective not in made:
            steps = {"steps": 600 if objective in ("mean_flow", "consistency") else 300}
            model = scdd.SCDG(make_atlas(), label_key="cell_type", objective=objective, **{**small, **steps})
            made[objective] = model.fit(progress=False)
        return made[objective]

    return get


def spread_by_class(codes, label):
    return np.mean([codes[label == k].std(0).mean() for k in np.unique(label)])


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [1, 4])
def test_clean_latents_lie_where_those_of_the_class_do(trained, adata, objective, steps):
    model = trained(objective)
    real, label = model.encode(adata), adata.obs["cell_type"].cat.codes.to_numpy()
    fields = torch.arange(300)[:, None] % 3
    stream = torch.Generator().manual_seed(0)
    noise = torch.randn(300, 6, generator=stream)
    code = noise if model.config.code_is_noise else model.priors.sample(fields[:, 0], stream)
    with torch.no_grad():
        if steps == 1:
            made = model.latent(code, noise, fields).numpy()
        else:
            made = model.net.many_steps(noise, fields, steps=steps, guidance=0.0).numpy()
    of, centres = fields[:, 0].numpy(), np.stack([real[label == k].mean(0) for k in range(3)])
    nearest = ((made[:, None] - centres) ** 2).sum(2).argmin(1)
    assert (nearest == of).mean() > 0.9
    if model.config.code_is_noise:  # a posterior mean at t* is narrower than its class
        assert spread_by_class(made, of) > 0.4 * spread_by_class(real, label)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_saved_model_makes_the_same_cells_in_one_step_and_in_more(trained, objective, tmp_path):
    model = trained(objective)
    model.save(tmp_path / "m")
    loaded = scdd.SCDG.load(tmp_path / "m")
    assert loaded.weights_hash() == model.weights_hash()
    for steps in (1, 3):
        cells = [m.generate(12, steps=steps, seed=2, progress=False).X.toarray() for m in (model, loaded)]
        np.testing.assert_array_equal(*cells)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_step_passes_a_gradient_to_every_code_and_to_nothing_else(trained, objective):
    model = trained(objective)
    code = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model.latent(code, torch.zeros(9, 6), torch.arange(9)[:, None] % 3).square().sum().backward()
    assert (code.grad.norm(dim=1) > 1e-4).all()
    assert all(p.grad is None for p in model.net.parameters())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_codes_are_distilled_through_it(trained, adata, objective):
    options = {
        "label_key": "cell_type", "cells_per_class": 3, "generator": trained(objective),
        "rendering": "mean", "init": "random", "progress": False,
    }  # fmt: skip
    still, moved = (scdd.distill(adata, matching={"iterations": k}, **options) for k in (0, 60))
    history = moved.uns["scdd"]["objective_history"]
    assert history[-10:].mean() < 0.8 * history[:5].mean()
    assert not np.array_equal(still.obsm["X_code"], moved.obsm["X_code"])
    assert np.isfinite(moved.X).all()


@pytest.mark.parametrize("objective", OBJECTIVES[1:])
def test_codes_that_are_noise_start_as_noise(trained, adata, objective):
    options = {"label_key": "cell_type", "cells_per_class": 2, "generator": trained(objective)}
    made = scdd.distill(adata, matching={"iterations": 2}, progress=False, **options)
    assert '"init": "random"' in made.uns["scdd"]["settings"]
    with pytest.raises(InputError, match=f"a {objective} code is noise"):
        scdd.distill(adata, init="kmeans", progress=False, **options)


@pytest.mark.parametrize("objective", OBJECTIVES[1:])
def test_codes_have_a_hold_on_the_cell_in_one_step(trained, objective):
    one, many = (sensitivity(trained(objective), n=9, steps=k).frobenius.mean() for k in (1, 8))
    assert one > 0.3 * many


def test_the_student_says_in_one_call_what_its_teacher_says_in_many(trained):
    model = trained("distilled")
    noise = torch.randn(300, 6, generator=torch.Generator().manual_seed(4))
    fields = torch.arange(300)[:, None] % 3
    with torch.no_grad():
        taught = model.net.many_steps(noise, fields, steps=200, guidance=0.0)
        said = model.latent(noise, noise, fields)
    within = torch.stack([taught[k::3] - taught[k::3].mean(0) for k in range(3)]).square().mean()
    assert (said - taught).square().mean() < 0.25 * within


def test_the_teacher_is_the_denoiser_of_code_then_noise(trained):
    teacher, alone = (trained(name).net.denoiser.state_dict() for name in ("distilled", "code_then_noise"))
    assert all(torch.equal(teacher[name], alone[name]) for name in alone)


def test_guidance_is_baked_into_the_student(trained, adata, small):
    with pytest.raises(InputError, match=r"guidance=1\.5.*more steps"):
        trained("distilled").generate(3, guidance=1.5, progress=False)
    trained("distilled").generate(3, guidance=1.5, steps=3, progress=False)
    model = scdd.SCDG(adata, label_key="cell_type", objective="distilled", guidance=1.0, **small)
    model.fit(progress=False)
    noise, fields = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(200, 1)
    with torch.no_grad():
        said = model.latent(noise, noise, fields.long())
        guided, plain = (
            model.net.many_steps(noise, fields.long(), steps=100, guidance=w) for w in (1.0, 0.0)
        )
    assert (said - guided).square().mean() < 0.5 * (said - plain).square().mean()


@pytest.mark.parametrize("stage", ["student", "consistency"])
def test_an_interrupted_run_resumes_to_the_same_model(adata, small, tmp_path, monkeypatch, stage):
    from scdd.models.scdg_net import SCDGNet

    method, objective = ("student_loss", "distilled") if stage == "student" else ("loss", "consistency")
    settings = {**small, "objective": objective, "steps": 60 if stage == "student" else 700}
    settings |= {"student_steps": 700, "classifier_steps": 20, "autoencoder_steps": 60}
    whole = scdd.SCDG(adata, label_key="cell_type", **settings).fit(progress=False)
    original, calls = getattr(SCDGNet, method), []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 620:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(SCDGNet, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        scdd.SCDG(adata, label_key="cell_type", **settings).fit(checkpoint=tmp_path, progress=False)
    monkeypatch.setattr(SCDGNet, method, original)
    resumed = scdd.SCDG(adata, label_key="cell_type", **settings).fit(checkpoint=tmp_path, progress=False)
    assert resumed.weights_hash() == whole.weights_hash()


def test_validation_does_not_refine_the_grid(trained):
    net, batch = trained("consistency").net, (torch.randn(8, 6), torch.zeros(8, 1, dtype=torch.long), None)
    before = int(net.seen_batches)
    net.loss(LatentBatch(*batch), torch.Generator())
    assert int(net.seen_batches) == before == 600


def test_pairs_come_in_the_order_that_a_checkpoint_left():
    def pairs():
        rows = torch.arange(20.0)[:, None]
        return TeacherPairs(rows, rows, rows.long(), batch_size=6, seed=1)

    def firsts(source, n):
        found = []
        while len(found) < n:
            for batch in source:
                found.append(batch.noise[:, 0].tolist())
                if len(found) == n:
                    break
        return found

    straight = firsts(pairs(), 8)
    assert len({tuple(batch) for batch in straight}) == 8
    first, second = pairs(), pairs()
    head = firsts(first, 4)
    second.load_state_dict(first.state_dict())
    assert head + firsts(second, 4) == straight


def test_rare_classes_are_half_of_the_way_to_even_among_the_pairs(trained, small):
    fields = torch.tensor([0] * 97 + [1] * 2 + [2])[:, None]
    config = resolve_config("fast", {**small, "condition_dropout": 0.2})
    codes = TeacherPairs.of(trained("distilled").net, fields, config).codes[:, 0]
    assert (codes == -1).double().mean().item() == pytest.approx(0.2, abs=0.04)
    share = (codes == 2).sum() / (codes >= 0).sum()
    assert share.item() == pytest.approx((1 / 3 + 0.01) / 2, abs=0.04)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "shortcut"}, "code_then_noise, mean_flow, consistency, distilled"),
        ({"consistency_grid": 1}, "consistency_grid=1"),
        ({"student_pairs": 0}, "student_pairs=0"),
        ({"student_steps": 0}, "student_steps=0"),
        ({"teacher_steps": 1_001}, r"1\.\.1000"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(InputError, match=message):
        SCDGConfig(**change)
