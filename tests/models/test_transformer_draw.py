"""What is prepared, shared or recorded for sampling changes no number, and never outlives its weights."""

import copy
from dataclasses import replace

import pytest
import torch

from scdd.diffusion.samplers import plan, sample
from scdd.errors import InputError
from scdd.models.transformer_config import PRESETS
from scdd.models.transformer_draw import Drawn, RecordedDraw, draw_once, sampling_device
from scdd.models.transformer_net import TransformerDiffusion

HOW = {"sampler": "dpm++", "steps": 4, "guidance": 0.5, "eta": 0.0}
KINDS = pytest.mark.parametrize("kind", ["white_box", "attention"])


def module(kind, **changes):
    torch.manual_seed(0)
    config = PRESETS[kind]["default"]
    shape = replace(config.shape, patch=4, width=32, heads=2, depth=2)
    config = replace(config, shape=shape, device="cpu", **changes)
    found = TransformerDiffusion(30, config, conditions=[3], numbers=1)
    # gates and last layer start at zero, where every network says the same
    with torch.no_grad():
        for weight in found.net.parameters():
            if not weight.any():
                weight.normal_(std=0.2)
    return found.requires_grad_(False).eval()


def block(cells=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.tensor([0, 1, 1, -1, 0, 2])[:cells, None]
    # two pairs of cells alike, one without its number
    numbers = torch.tensor([0.3, 1.0, 1.0, torch.nan, 0.3, -2.0])[:cells, None]
    return codes, numbers, torch.randn(cells, 30, generator=generator)


def plainly(found, codes, numbers, noise, seed):
    """The calls as the definition has them: every cell for itself, nothing prepared."""
    c, net = found.config, found.net

    def denoise(x, t):
        null = torch.full_like(codes, -1), torch.full_like(numbers, torch.nan)
        return net(x, t, codes, numbers).prediction, net(x, t, *null).prediction

    chosen = plan(found.schedule, "dpm++", 4, c.parameterisation, last=found.last)
    x0 = sample(denoise, found.schedule, noise, chosen, guidance=1.5, seed=seed)
    if not c.shape.hurdle:
        return Drawn(x0)
    last = torch.full((len(x0),), 1 / found.schedule.steps)
    return Drawn(x0, net(x0, last, codes, numbers).zero_logit)


def assert_close(mine, wanted):
    for a, b in zip(mine, wanted, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-3, atol=1e-4)


@KINDS
def test_prepared_is_plain(kind):
    found = module(kind)
    drawn = found.draw(*block(), seed=7, **HOW)
    assert_close(drawn, plainly(found, *block(), seed=7))
    other = found.draw(*block(seed=2), seed=7, **HOW)
    assert (other.x0 - drawn.x0).abs().max() > 1e-2


@KINDS
def test_changed_weights_are_seen(kind):
    found = module(kind)
    before = found.draw(*block(), seed=7, **HOW)
    with torch.no_grad():
        for weight in found.net.blocks.parameters():
            weight.mul_(1.3)
    after = found.draw(*block(), seed=7, **HOW)
    assert (after.x0 - before.x0).abs().max() > 1e-2
    assert torch.allclose(after.x0, plainly(found, *block(), seed=7)[0], rtol=1e-3, atol=1e-4)


@KINDS
def test_drawing_leaves_the_module_alone(kind):
    found = module(kind)
    before = copy.deepcopy(found.state_dict())
    found.draw(*block(), seed=7, **HOW)
    assert before.keys() == found.state_dict().keys()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in before.items())


@KINDS
def test_16_bits_are_close(kind):
    wide, narrow = module(kind), module(kind, precision="bf16-mixed")
    one, other = (m.draw(*block(), seed=7, **HOW).x0 for m in (wide, narrow))
    assert other.dtype == torch.float32
    assert 1e-6 < (one - other).norm() / one.norm() < 0.05


@KINDS
def test_recorded_is_drawn(kind):
    """The steps that a graph records, run one by one: other inputs and weights than at first."""
    found = module(kind)
    recorded = RecordedDraw(found.net, found.config, found.schedule, *block(), record=False, **HOW)
    with torch.no_grad():
        for weight in found.net.blocks.parameters():
            weight.mul_(1.3)
    for seed in (2, 3):
        mine = recorded(found.net, *block(seed=seed), seed)
        wanted = draw_once(found.net, found.config, found.schedule, *block(seed=seed), seed=seed, **HOW)
        assert_close(mine, wanted)


def test_noise_of_every_step_has_its_seed():
    found, how = module("white_box"), {**HOW, "sampler": "ddim", "eta": 1.0}
    recorded = RecordedDraw(found.net, found.config, found.schedule, *block(), record=False, **how)
    first, second = (recorded(found.net, *block(), seed).x0 for seed in (1, 2))
    assert (first - second).abs().max() > 1e-2
    assert torch.equal(recorded(found.net, *block(), 1).x0, first)


def test_a_graph_needs_a_gpu():
    with pytest.raises(InputError, match=r"graph=True on cpu.*device='cuda'"):
        module("white_box").draw(*block(), seed=0, graph=True, **HOW)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_devices_without_a_gpu():
    assert sampling_device("auto").type == "cpu"
    assert sampling_device("mps").type == "cpu"
    with pytest.raises(InputError, match="sees no CUDA device"):
        sampling_device("cuda:0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@KINDS
def test_graph_on_a_gpu(kind):
    found = module(kind)
    wanted = found.draw(*block(), seed=7, **HOW)
    found.config = replace(found.config, device="cuda")
    plain = found.draw(*block(), seed=7, **HOW)
    assert plain.x0.device.type == "cpu"
    assert torch.allclose(plain.x0, wanted.x0, rtol=1e-2, atol=1e-2)
    for seed in (7, 8):
        replayed = found.draw(*block(seed=seed), seed=seed, graph=True, **HOW)
        eager = found.draw(*block(seed=seed), seed=seed, **HOW)
        assert torch.allclose(replayed.x0, eager.x0, rtol=1e-3, atol=1e-3)
    assert len(found._graphs) == 1
    assert not copy.deepcopy(found)._graphs
