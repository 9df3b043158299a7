"""The diffusion transformer: sizes as published, every weight trained, one meaning of its conditions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from scdd.kernels import patch_noise
from scdd.nn.gene_tokens import GeneTokens
from scdd.nn.modulation import Modulation
from scdd.nn.transformer import DiffusionTransformerNet, TransformerShape

SMALL = {"patch": 10, "width": 64, "heads": 2, "depth": 2}
VARIANTS = {
    "attention": {},
    "white": {"mixer": "subspace", "token_map": "ista"},
    "derived": {
        "mixer": "subspace", "token_map": "ista", "tied": True, "residual": False, "positive_gates": True,
        "learned_threshold": True, "modulation": "low_rank",
    },
    "tost": {"mixer": "statistics", "token_map": "overcomplete", "modulation": "shared", "hurdle": True},
}  # fmt: skip


def make(genes=203, **changes):
    torch.manual_seed(0)
    net = DiffusionTransformerNet(genes, TransformerShape(**SMALL | changes), conditions=(3, 2), numbers=1)
    for parameter in net.parameters():
        # zero starts would hide most of the network
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def batch(cells=6, genes=203):
    generator = torch.Generator().manual_seed(1)
    x0 = torch.relu(torch.randn(cells, genes, generator=generator))
    t = torch.rand(cells, generator=generator)
    codes = torch.randint(-1, 2, (cells, 2), generator=generator)
    numbers = torch.randn(cells, 1, generator=generator)
    return x0, torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2), t, codes, numbers


@pytest.mark.parametrize(("variant", "parameters"), [("attention", 33_870_346), ("white", 17_926_666)])
def test_the_published_sizes(variant, parameters):
    shape = TransformerShape(learned_positions=False, **VARIANTS[variant])
    with torch.device("meta"):
        net = DiffusionTransformerNet(2000, shape)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == parameters


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_weight_is_trained(variant):
    net = make(**variant)
    terms = net.loss(*batch(), seed=torch.tensor(3), prediction="v", zeros=batch()[0] == 0)
    sum(terms.values()).backward()
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_loss_is_that_of_the_prediction(variant, prediction):
    """The loss draws its noise inside; the prediction is asked with the same noise from outside."""
    net = make(**variant).double()
    x0, signal, noise, t, codes, numbers = (v.double() if v.is_floating_point() else v for v in batch())
    eps = patch_noise(5, len(x0), x0.shape[1], patch=10, dtype=torch.float64)
    a, s = signal[:, None], noise[:, None]
    said = net(a * x0 + s * eps, t, codes, numbers).prediction.double()
    wanted = {"eps": eps, "v": a * eps - s * x0, "x0": x0}[prediction]
    loss = net.loss(x0, signal, noise, t, codes, numbers, seed=torch.tensor(5), prediction=prediction)
    torch.testing.assert_close(loss["diffusion"].double(), F.mse_loss(said, wanted), rtol=1e-5, atol=1e-6)


def test_starts_at_zero():
    net = DiffusionTransformerNet(203, TransformerShape(**SMALL))
    x0, *_, t, codes, numbers = batch()
    assert not net(x0, t, codes, numbers).prediction.any()


def test_a_condition_left_out_is_not_the_first_one():
    net = make()
    x0, *_, t, codes, numbers = batch()
    known = net(x0, t, torch.zeros_like(codes), numbers).prediction
    left_out = net(x0, t, torch.full_like(codes, -1), numbers).prediction
    assert (known - left_out).abs().max() > 1e-4
    no_number = net(x0, t, codes, torch.full_like(numbers, torch.nan)).prediction
    zero = net(x0, t, codes, torch.zeros_like(numbers)).prediction
    assert no_number.isfinite().all()
    assert (no_number - zero).abs().max() > 1e-4


def test_under_autocast():
    net = make(**VARIANTS["tost"])
    terms = {}
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            terms[enabled] = net.loss(*batch(), seed=torch.tensor(3), prediction="v")["diffusion"]
    torch.testing.assert_close(terms[True], terms[False], rtol=0.03, atol=0.01)


@pytest.mark.parametrize(("genes", "patch", "tokens"), [(20, 10, 2), (23, 10, 3), (7, 1, 7), (5, 5, 1)])
def test_tokens_of_any_number_of_genes(genes, patch, tokens):
    layer = GeneTokens(genes, patch, 16)
    x = torch.randn(3, genes)
    assert layer(x).shape == (3, tokens, 16)
    # what lies past the last gene is zero: it changes nothing
    patches = F.pad(x, (0, tokens * patch - genes)).unflatten(1, (tokens, patch))
    torch.testing.assert_close(layer.leave(patches), x)
    torch.testing.assert_close(layer(x), F.linear(patches, layer.weight, layer.bias) + layer.position)


def test_positions_differ_in_every_column():
    table = GeneTokens(2000, 10, 768, learned=False).position
    assert (table.std(0) > 0).all()


@pytest.mark.parametrize("kind", ["full", "shared", "low_rank"])
def test_modulation_gives_rows_for_every_norm(kind):
    layer = Modulation(16, 3, kind=kind, rank=4)
    rows = layer(torch.randn(5, 16))
    assert len(rows) == 20
    assert all(row.shape == (5, 16) and not row.any() for row in rows)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"mixer": "rnn"}, "mixer"),
        ({"token_map": "x"}, "token_map"),
        ({"modulation": "x"}, "low_rank"),
        ({"patch": 0}, "patch"),
    ],
)
def test_refuses_unknown_parts(changes, word):
    with pytest.raises(ValueError, match=word):
        make(**changes)
