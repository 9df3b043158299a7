"""Operators take tensors as they are: under autocast their results are the same, to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scdd import kernels


def noise_patch_embed(draw, implementation):
    x0, level, weight = draw(4, 37), draw(4).detach(), draw(32, 8)
    bias, position = draw(32), draw(5, 32)
    return kernels.noise_patch_embed(
        x0, level, level, weight, bias, position, seed=1, implementation=implementation
    ), (x0, weight)


def denoise_loss(draw, implementation):
    h, shift, scale, weight = draw(4, 5, 32), draw(4, 32), draw(4, 32), draw(8, 32)
    x0, level = draw(4, 37).detach(), draw(4).detach()
    return kernels.denoise_loss(
        h, shift, scale, weight, draw(8), x0, level, level, seed=1, implementation=implementation
    ).loss, (h, weight)


def ista_step(draw, implementation):
    y, dictionary = draw(4, 3, 16), draw(16, 16)
    return kernels.ista_step(y, dictionary, implementation=implementation), (y, dictionary)


def overcomplete_ista_step(draw, implementation):
    y, dictionary = draw(4, 3, 16), draw(16, 32)
    out = kernels.overcomplete_ista_step(y, dictionary, draw(16, 32), implementation=implementation)
    return out, (y, dictionary)


def subspace_coding_rate(draw, implementation):
    w = draw(2, 9, 3, 8)
    return kernels.subspace_coding_rate(w, eps=0.5, implementation=implementation), (w,)


def coding_rate(draw, implementation):
    z = draw(2, 9, 8)
    return kernels.coding_rate(z, eps=0.5), (z,)


def maximum_mean_discrepancy(draw, implementation):
    x, y, weights = draw(30, 12), draw(20, 12), draw(30).detach().abs().requires_grad_()
    found = kernels.maximum_mean_discrepancy(x, y, weights_x=weights, implementation=implementation)
    return found, (x, y, weights)


def energy_distance(draw, implementation):
    x, y = draw(30, 12), draw(20, 12)
    return kernels.energy_distance(x, y, implementation=implementation), (x, y)


def single_step_denoise(draw, implementation):
    z, modulation = draw(6, 8), draw(6, 5 * 32).detach()
    with torch.no_grad():
        branch = nn.Linear(32, 64, device=z.device), nn.Linear(64, 32, device=z.device)
        ends = nn.Linear(8, 32, device=z.device), nn.Linear(32, 8, device=z.device)
        for layer in (*branch, *ends):
            layer.weight.copy_(draw(*layer.weight.shape))
            layer.bias.copy_(draw(*layer.bias.shape))
    pack = kernels.pack_denoiser(ends[0], [branch], ends[1])
    return kernels.single_step_denoise(
        z, modulation, pack, signal=0.8, noise=0.6, seed=1, implementation=implementation
    ), (z,)


OPERATORS = (
    noise_patch_embed,
    denoise_loss,
    ista_step,
    overcomplete_ista_step,
    subspace_coding_rate,
    coding_rate,
    maximum_mean_discrepancy,
    energy_distance,
    single_step_denoise,
)


@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
def test_under_autocast(operator, implementation, device):
    def run(enabled):
        generator = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(*shape, generator=generator).to(device).requires_grad_()

        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            out, inputs = operator(draw, implementation)
            # what a backward hands to PyTorch is cast if it runs here; what operators compute is not
            within = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
        return out, torch.autograd.grad(out.sum(), inputs), within

    out, gradients, within = run(enabled=True)
    expected, expected_gradients, _ = run(enabled=False)
    assert out.dtype == expected.dtype
    assert torch.equal(out, expected)
    fused = implementation == "auto" and operator is not coding_rate
    for found, wanted, inside in zip(gradients, expected_gradients, within, strict=True):
        assert torch.equal(found, wanted)
        assert not fused or torch.equal(inside, wanted)
