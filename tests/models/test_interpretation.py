"""What `interpret` says of a white box, against slow definitions and against blocks whose effect is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import scdd
from scdd.errors import InputError
from scdd.models import interpretation
from scdd.models.interpretation import orthogonality
from scdd.models.transformer import WhiteBoxDiffusionTransformer
from scdd.models.transformer_config import TransformerConfig
from scdd.models.white_box_variants import VARIANTS, variant_of

SMALL = {
    "patch": 6, "width": 32, "heads": 2, "depth": 2, "batch_size": 64, "ema": 0.9, "lr": 3e-3,
    "device": "cpu", "order": "file",
}  # fmt: skip


def trained(adata, *, steps=25, **changes):
    return WhiteBoxDiffusionTransformer(adata, **SMALL | {"steps": steps} | changes).fit(progress=False)


@pytest.fixture(scope="module")
def cells(make_atlas):
    return make_atlas()


@pytest.fixture(scope="module")
def model(cells):
    return trained(cells, variant="signed_gates")


@pytest.fixture(scope="module")
def found(model, cells):
    return model.interpret(cells, n_times=3, max_cells=40)


def noised(model, cells, *, n, step, seed=0):
    """What `interpret` feeds the network, and its conditions."""
    rows = np.sort(np.random.default_rng(seed).permutation(cells.n_obs)[:n])
    known = model._known_cells(scdd.Atlas(cells), rows)
    noise = torch.randn(known.x0.shape, generator=torch.Generator().manual_seed(seed))
    a = model.net.schedule.alpha_bar[step]
    return a.sqrt() * known.x0 + (1 - a).sqrt() * noise, known


def explicit_rate(w, epsilon):
    """CRATE's own measurement of the tokens of one head [N, P]: token by token, on the side of the tokens."""
    w = w.double()
    x = torch.stack([token / token.norm() for token in w])
    n, p = x.shape
    return 0.5 * torch.logdet(torch.eye(n).double() + p / (n * epsilon**2) * x @ x.T)


def test_the_rate_before_is_that_of_what_the_attention_projects(model, cells, found):
    """Measured as CRATE does: the output of the projection is caught while the network runs."""
    time = found.table["time"].min()
    step = round(time * model.net.schedule.steps)
    assert step >= model.net.last  # before it nothing was trained
    x_t, known = noised(model, cells, n=40, step=step)
    caught = []
    hooks = [
        block.mixer.subspaces.register_forward_hook(lambda *given: caught.append(given[2]))
        for block in model.net.net.blocks
    ]
    t = torch.full((40,), step / model.net.schedule.steps)
    model.net.net(x_t, t, known.codes, known.numbers)
    for hook in hooks:
        hook.remove()
    for layer, w in enumerate(caught):
        rates = torch.stack(
            [sum(explicit_rate(head, 0.1) for head in cell.unflatten(1, (2, 16)).unbind(1)) for cell in w]
        )
        row = found.table[(found.table["layer"] == layer) & (found.table["time"] == time)].iloc[0]
        assert row["rate_before"] == pytest.approx(rates.mean().item(), rel=1e-4)
        assert row["rate_before_sd"] == pytest.approx(rates.std().item(), rel=1e-3)
    assert row["cells"] == 40


def test_the_rates_after_are_those_of_the_same_subspaces(model, cells, found):
    """After attention and after the token map, through the norm and modulation of this layer's attention."""
    last = model.net.schedule.steps
    x_t, known = noised(model, cells, n=40, step=last)
    net = model.net.net
    rows = net.rows(torch.ones(40), known.codes, known.numbers, torch.float32)
    h = net.enter(x_t, torch.ones(40), known.codes)
    for layer, block in enumerate(net.blocks):
        shift, scale, gate, shift2, scale2, gate2 = (row[:, None] for row in rows[6 * layer : 6 * layer + 6])

        def seen(h, shift=shift, scale=scale):
            return torch.layer_norm(h, (32,), eps=1e-6) * (1 + scale) + shift

        mixed = h + gate * block.mixer(seen(h))
        y = seen(mixed, shift2, scale2)
        end = mixed + gate2 * block.token_map.code(y)
        row = found.table[(found.table["layer"] == layer) & (found.table["time"] == 1)].iloc[0]
        for place, stream in (("before", h), ("after", mixed), ("end", end)):
            w = (seen(stream) @ block.mixer.subspaces.weight.T).unflatten(2, (2, 16))
            expected = np.mean([sum(explicit_rate(head, 0.1) for head in c.unbind(1)).item() for c in w])
            whole = np.mean([explicit_rate(cell, 0.1).item() for cell in seen(stream)])
            assert row[f"rate_{place}"] == pytest.approx(expected, rel=1e-4)
            assert row[f"whole_{place}"] == pytest.approx(whole, rel=1e-4)
        code = block.token_map.code(y)
        assert row["zeros"] == pytest.approx((code == 0).float().mean().item(), abs=1e-3)
        assert row["l1"] == pytest.approx(code.abs().sum(-1).mean().item(), rel=1e-4)
        price = (code * block.token_map.threshold()).sum(-1).mean().item()
        assert row["price_after"] == pytest.approx(price, rel=1e-4)
        cost = 0.5 * (y - code @ block.token_map.dictionary.T).square().sum(-1).mean().item() + price
        assert row["cost_after"] == pytest.approx(cost, rel=1e-4)
        assert row["gate_mixer"] == pytest.approx(gate.mean().item(), abs=1e-5)
        assert row["gate_mixer_negative"] == pytest.approx((gate < 0).float().mean().item(), abs=1e-5)
        h = end


def opened(adata, amount):
    """A tied, orthonormal model whose attention gates are all ``amount``."""
    model = trained(adata, steps=1, tied=True, positive_gates=False, learned_threshold=False)
    modulation = model.net.net.modulation.project
    torch.nn.init.zeros_(modulation.weight)
    torch.nn.init.zeros_(modulation.bias)
    with torch.no_grad():
        for layer in range(2):
            modulation.bias.view(-1, 32)[6 * layer + 2] = amount
    return model


def test_a_compressing_attention_is_seen_to_compress_and_an_expanding_one_to_expand(cells):
    """Tied orthonormal bases: a positive gate draws tokens together, a negative one apart."""
    pull, push = (opened(cells, gate).interpret(cells, n_times=4, max_cells=30) for gate in (0.05, -0.05))
    assert pull.share_falling == 1
    assert pull.table["falls_clearly"].all()
    assert push.share_falling == 0
    assert (push.table["gate_mixer_negative"] == 1).all()
    assert pull.table["gate_mixer_size"].to_numpy() == pytest.approx(0.05)
    closed = opened(cells, 0.0).interpret(cells, n_times=4, max_cells=30)
    assert (closed.table["change"] == 0).all()
    assert closed.share_falling == 0


def test_only_raw_tokens_show_that_all_shrink(cells):
    """LayerNorm and unit length take the scale away before the rate is measured."""
    model = opened(cells, 0.0)
    plain = {
        tokens: model.interpret(cells, n_times=2, max_cells=20, tokens=tokens)
        for tokens in ("raw", "normalised")
    }
    for part in ("weight", "bias", "position"):
        getattr(model.net.net.tokens, part).data *= 0.5
    half = {tokens: model.interpret(cells, n_times=2, max_cells=20, tokens=tokens) for tokens in plain}
    first = {
        tokens: (a.table["rate_before"] / plain[tokens].table["rate_before"]) for tokens, a in half.items()
    }
    assert first["normalised"].to_numpy() == pytest.approx(1, abs=1e-3)
    assert (first["raw"] < 0.97).all()


def test_epsilon_is_squared(model, cells):
    fine, coarse = (model.interpret(cells, n_times=1, max_cells=10, epsilon=e) for e in (0.1, 1.0))
    assert (fine.table["rate_before"] > 2 * coarse.table["rate_before"]).all()
    assert "epsilon 1 (squared 1)" in coarse.headline()[0]


def test_blocks_of_cells_change_nothing(model, cells, found, monkeypatch):
    monkeypatch.setattr(interpretation, "_MOST", 32 * 10 * 7)
    again = model.interpret(cells, n_times=3, max_cells=40)
    pd.testing.assert_frame_equal(again.table, found.table, rtol=1e-5, atol=1e-6)


def test_paired_changes_and_flags(found):
    t = found.table
    np.testing.assert_allclose(t["change"], t["rate_after"] - t["rate_before"], atol=1e-9)
    np.testing.assert_allclose(t["block_change"], t["rate_end"] - t["rate_before"], atol=1e-9)
    assert (t["falls"] == (t["rate_after"] < t["rate_before"])).all()
    assert (t["falls"] | ~t["falls_clearly"]).all()
    # cells differ far more than what a layer does to each of them
    assert (t["change_se"] < t["rate_before_sd"]).all()
    assert found.share_falling == t["falls"].sum() / 6


def test_orthogonality():
    assert orthogonality(3 * torch.eye(8), 2) == pytest.approx(
        {"orthogonality": 0, "within": 0, "between": 0, "basis_scale": 9}
    )
    doubled = torch.eye(8)
    doubled[4:] = doubled[:4]  # both heads look the same way
    same = orthogonality(doubled, 2)
    assert same["within"] == 0
    assert same["between"] == pytest.approx(1)
    flat = orthogonality(torch.eye(8)[[0, 0, 0, 0, 4, 4, 4, 4]], 2)  # heads of one dimension each
    assert flat["within"] == pytest.approx(math.sqrt(3))
    assert flat["between"] == 0
    chance = orthogonality(torch.randn(256, 256, generator=torch.Generator().manual_seed(0)), 4)
    assert chance["orthogonality"] == pytest.approx(1, abs=0.05)
    assert chance["orthogonality"] ** 2 == pytest.approx(chance["within"] ** 2 + chance["between"] ** 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_is_saved_and_looked_into(cells, tmp_path, variant):
    model, fresh = (trained(cells, steps=steps, variant=variant) for steps in (60, 1))
    assert all(math.isfinite(value) for value in model.history[-1].values())
    learnt = dict(model.net.net.blocks.named_parameters())
    for name, start in fresh.net.net.blocks.named_parameters():
        fixed = name.endswith("level") and not model.config.shape.learned_threshold
        assert fixed == torch.allclose(start, learnt[name], atol=1e-4), name
    model.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["variant"] == variant
    loaded = WhiteBoxDiffusionTransformer.load(tmp_path / "model")
    assert loaded.variant == variant
    found, again = (m.interpret(cells, n_times=2, max_cells=20) for m in (model, loaded))
    pd.testing.assert_frame_equal(found.table, again.table)
    shape, columns = model.config.shape, set(found.table)
    assert ("zeros" in columns) == (shape.token_map != "mlp")
    assert ("gate_sparse" in columns) == shape.residual
    if shape.positive_gates is True and shape.residual:
        assert not found.table["gate_sparse_negative"].any()
    if shape.positive_gates:
        assert not found.table["gate_mixer_negative"].any()
        assert (found.table["gate_mixer"] > 0).all()
    assert (found.table[["rate_before", "rate_after", "rate_end"]] > 0).all(axis=None)
    if "cost_after" in columns and shape.token_map == "overcomplete":
        assert (found.table["cost_after"] < found.table["cost_before"]).all()
    found.save(tmp_path / "found.png")
    assert f"of {len(found.table)}" in found.summary()


def test_a_variant_stands_for_its_switches_and_gives_way_to_them(cells):
    for name, variant in VARIANTS.items():
        shape = WhiteBoxDiffusionTransformer(cells, variant=name, **SMALL).config.shape
        assert {switch: getattr(shape, switch) for switch in variant.switches} == variant.switches
        assert variant_of(shape) == name
    changed = WhiteBoxDiffusionTransformer(cells, variant="tied", residual=False, **SMALL)
    assert changed.variant == "derived"
    assert (
        WhiteBoxDiffusionTransformer(cells, variant="tied", mixer="statistics", **SMALL).variant == "custom"
    )
    assert WhiteBoxDiffusionTransformer(cells, preset="published", library=False).variant == "published"
    assert WhiteBoxDiffusionTransformer(cells).variant == "default"


def test_the_documentation_tells_the_variants_as_they_are():
    text = (Path(__file__).parents[2] / "docs" / "white_box.md").read_text()
    for name, variant in VARIANTS.items():
        told = [{True: "yes", False: "no"}.get(value, str(value)) for value in variant.switches.values()]
        assert f"| `{name}` | {' | '.join(told)} |" in text


def test_orthonormality_can_be_priced(cells):
    free, priced = (trained(cells, steps=80, weight_orthonormal=w).net.net.deviation() for w in (0.0, 3.0))
    assert priced < 0.3 * free
    model = trained(cells, steps=2, weight_orthonormal=1.0)
    assert model.history[-1]["orthonormal"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "best"}, "variant='best'; choose one of: default .*tost"),
        ({"variant": "tied", "config": TransformerConfig()}, "ignored beside config="),
        ({"mixer": "attention", "weight_orthonormal": 1.0}, "weight_orthonormal=1.0 needs subspaces"),
    ],
)
def test_refuses_and_says_what_to_do(cells, changes, message):
    with pytest.raises(InputError, match=message):
        WhiteBoxDiffusionTransformer(cells, **changes)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0"),
        ({"tokens": "unit"}, "tokens='unit'; choose one of normalised, raw"),
        ({"n_times": 0}, "n_times=0"),
        ({"max_cells": 0}, "max_cells=0"),
    ],
)
def test_refuses_how_it_can_not_be_measured(model, cells, how, message):
    with pytest.raises(InputError, match=message):
        model.interpret(cells, **how)


def test_genes_are_found_by_name(model, cells, found):
    shuffled = cells[:, np.random.default_rng(0).permutation(cells.n_vars)].copy()
    again = model.interpret(shuffled, n_times=3, max_cells=40)
    pd.testing.assert_frame_equal(again.table, found.table, rtol=1e-4, atol=1e-5)


def test_one_cell_has_no_spread(model, cells):
    table = model.interpret(cells, n_times=1, max_cells=1).table
    assert table["rate_before_sd"].isna().all()
    assert not table["falls_clearly"].any()


def test_files_and_words(found, tmp_path):
    for suffix in (".png", ".svg", ".pdf", ".csv"):
        found.save(tmp_path / f"found{suffix}")
        assert (tmp_path / f"found{suffix}").stat().st_size > 500
    back = pd.read_csv(tmp_path / "found.csv")
    pd.testing.assert_frame_equal(back, found.table, check_dtype=False)
    first = (tmp_path / "found.svg").read_bytes()
    found.save(tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == first
    with pytest.raises(InputError, match=r"ends in \.csv or \.png"):
        found.save(tmp_path / "found.xlsx")
    falls = found.table["falls"].sum()
    assert f"R^c falls over the attention in {falls} of 6 (layer, time) cells" in str(found)
    assert "<table" in found._repr_html_()
    assert "6 rows" in repr(found)
    assert list(found.by_layer()["times"]) == [3, 3]
