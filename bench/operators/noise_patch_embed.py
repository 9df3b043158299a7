"""Noise on the cells, patches of genes and their tokens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from scdd.kernels.noise_patch_embed import noise_patch_embed, patch_noise

from .case import Case, Operator, Work, normal

if TYPE_CHECKING:
    from torch import Tensor


def _ours(**inputs: Any) -> tuple[Tensor, ...]:
    return (noise_patch_embed(**inputs),)


def _embed(
    eps: Tensor, x0: Tensor, signal: Tensor, noise: Tensor, weight: Tensor, bias: Tensor, position: Tensor
):
    noised = (signal[:, None] * x0 + noise[:, None] * eps).to(weight.dtype)
    patch = weight.shape[1]
    patches = F.pad(noised, (0, -x0.shape[1] % patch)).view(len(x0), -1, patch)
    return (F.linear(patches, weight, bias) + position,)


def _eager(x0: Tensor, seed: Tensor, **inputs: Any) -> tuple[Tensor, ...]:
    return _embed(torch.randn_like(x0), x0, **inputs)


def _truth(x0: Tensor, seed: Tensor, weight: Tensor, **inputs: Any) -> tuple[Tensor, ...]:
    patch = weight.shape[1]
    eps = patch_noise(seed, *x0.shape, patch=patch, device=x0.device, dtype=x0.dtype)
    return _embed(eps, x0, weight=weight, **inputs)


def _inputs(
    cells: int,
    genes: int,
    patch: int,
    width: int,
    x0_gradient: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, object]:
    angle = torch.linspace(0.05, 1.5, cells)
    patches = -(-genes // patch)
    return {
        # as a loader delivers it, whatever the dtype of the network
        "x0": normal((cells, genes), torch.float32, device, seed=0, grad=x0_gradient),
        "signal": angle.cos().to(device),
        "noise": angle.sin().to(device),
        "weight": normal((width, patch), dtype, device, seed=1),
        "bias": normal((width,), dtype, device, seed=2),
        "position": normal((patches, width), dtype, device, seed=3),
        "seed": torch.tensor(17, device=device),
    }


def _work(cells: int, genes: int, patch: int, width: int, x0_gradient: bool, size: int) -> Work:
    patches = -(-genes // patch)
    tokens, parameters = cells * patches * width, width * (patch + 1 + patches)
    flops = 2 * tokens * patch
    return Work(
        forward_bytes=size * (tokens + parameters + cells * genes) + 4 * cells * genes,
        # without the gradient of x0 the tokens' is read once, with it twice
        backward_bytes=size * (tokens + parameters + cells * genes) + 4 * cells * genes * x0_gradient,
        forward_flops=flops,
        backward_flops=flops * (1 + x0_gradient),
    )


def _case(
    cells: int, genes: int, patch: int, width: int, *, x0_gradient: bool = False, small: bool = False
) -> Case:
    sizes = (cells, genes, patch, width, x0_gradient)
    return Case(
        label=f"B={cells} G={genes} P={patch} D={width}{' dx0' * x0_gradient}",
        inputs=partial(_inputs, *sizes),
        work=partial(_work, *sizes),
        small=small,
        unit="cells",
        units=cells,
    )


OPERATORS = (
    Operator(
        name="noise_patch_embed",
        ours=_ours,
        eager=_eager,
        truth=_truth,
        cases=(
            _case(16, 2000, 10, 256, small=True),
            _case(512, 2000, 10, 768),
            _case(512, 2048, 8, 768),
            _case(512, 2048, 8, 512),
            _case(512, 2000, 10, 768, x0_gradient=True),
        ),
    ),
)
