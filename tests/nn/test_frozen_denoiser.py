"""The packed denoiser says what the denoiser says."""

from __future__ import annotations

import pytest
import torch

from scdd.nn.denoiser import Denoiser
from scdd.nn.frozen_denoiser import FrozenDenoiser


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    net = Denoiser(6, [3, 2], width=32, depth=3)
    with torch.no_grad():
        for parameter in net.parameters():  # adaLN-Zero starts with closed gates
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return net.double().requires_grad_(False)


@pytest.mark.parametrize("span", [None, 0.4])
def test_it_equals_the_denoiser_and_its_gradient(denoiser, span):
    g = torch.Generator().manual_seed(1)
    codes = torch.stack(
        [torch.randint(-1, 3, (50,), generator=g), torch.randint(-1, 2, (50,), generator=g)], 1
    )
    t = torch.full((50,), 0.25, dtype=torch.float64)
    over = None if span is None else torch.full_like(t, span)
    found = []
    for network in (denoiser, FrozenDenoiser(denoiser)):
        z = torch.randn(
            50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
        ).requires_grad_()
        out = network(z, t, codes, over)
        found.append((out.detach(), torch.autograd.grad(out.square().sum(), z)[0]))
    for plain, packed in zip(*found, strict=True):
        torch.testing.assert_close(packed, plain, rtol=1e-9, atol=1e-9)


def test_it_knows_when_the_weights_have_moved(denoiser):
    packed = FrozenDenoiser(denoiser)
    assert packed.is_current()
    with torch.no_grad():
        denoiser.leave.bias.add_(1)
    assert not packed.is_current()


def test_the_generator_packs_frozen_weights_anew_when_they_change(generator):
    import copy

    net = copy.deepcopy(generator.net)
    code, fields = torch.randn(5, 6), torch.zeros(5, 2, dtype=torch.long)

    def step():
        return net.one_step(code, torch.zeros(5, 6), fields, t_star=250, guidance=0.5).detach()

    frozen = step()
    assert net._packed is not None
    net.denoiser.requires_grad_(True)
    torch.testing.assert_close(step(), frozen, rtol=1e-4, atol=1e-5)
    net.denoiser.requires_grad_(False)
    with torch.no_grad():
        net.denoiser.leave.bias.add_(1)
    assert not torch.allclose(step(), frozen)
    assert not any("packed" in name for name in net.state_dict())
