"""The final layer of a diffusion transformer and its weighted squared error."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from scdd.kernels.denoise_loss import denoise_loss
from scdd.kernels.noise_patch_embed import patch_noise

from .case import Case, Operator, Work, normal

if TYPE_CHECKING:
    from torch import Tensor


def _ours(h: Tensor, kept: Tensor, **inputs: Any) -> tuple[Tensor, ...]:
    # rounded, as the one number may be right by luck where PyTorch's every term is rounded
    return (denoise_loss(h, **inputs).loss.to(h.dtype),)


def _loss(
    eps: Tensor, h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, x0: Tensor,
    signal: Tensor, noise: Tensor, cell_weight: Tensor, prediction: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    y = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    predicted = F.linear(y, weight, bias).flatten(1)[:, : x0.shape[1]].to(x0.dtype)
    target = eps if prediction == "eps" else signal[:, None] * eps - noise[:, None] * x0
    return (((predicted - target).square().mean(1) * cell_weight).mean().to(h.dtype),)


def _eager(h: Tensor, seed: Tensor, kept: Tensor, **inputs: Any) -> tuple[Tensor, ...]:
    # the noise is kept from where it was added
    return _loss(kept, h, **inputs)


def _truth(
    h: Tensor, seed: Tensor, kept: Tensor, x0: Tensor, weight: Tensor, **inputs: Any
) -> tuple[Tensor, ...]:
    eps = patch_noise(seed, *x0.shape, patch=len(weight), device=x0.device, dtype=x0.dtype)
    return _loss(eps, h, x0=x0, weight=weight, **inputs)


def _inputs(
    cells: int, genes: int, patch: int, width: int, prediction: str, dtype: torch.dtype, device: torch.device
) -> dict[str, object]:
    angle = torch.linspace(0.05, 1.5, cells)
    patches = -(-genes // patch)
    return {
        "h": normal((cells, patches, width), dtype, device, seed=0),
        "shift": normal((cells, width), dtype, device, seed=1),
        "scale": normal((cells, width), dtype, device, seed=2),
        "weight": normal((patch, width), dtype, device, seed=3),
        "bias": normal((patch,), dtype, device, seed=4),
        "x0": normal((cells, genes), torch.float32, device, seed=5, grad=False),
        "signal": angle.cos().to(device),
        "noise": angle.sin().to(device),
        "cell_weight": angle.cos().square().to(device),
        "prediction": prediction,
        "seed": torch.tensor(17, device=device),
        "kept": normal((cells, genes), torch.float32, device, seed=6, grad=False),
    }


def _work(cells: int, genes: int, patch: int, width: int, prediction: str, size: int) -> Work:
    patches = -(-genes // patch)
    rows = cells * patches
    tokens, modulation, residual = rows * width, 2 * cells * width, rows * patch
    flops = 2 * tokens * patch
    return Work(
        forward_bytes=size * (tokens + modulation + residual + patch * width)
        + 4 * (4 * rows + cells * genes * (prediction != "eps")),
        backward_bytes=size * (2 * tokens + 2 * modulation + residual + 2 * patch * width) + 4 * 4 * rows,
        forward_flops=flops,
        backward_flops=2 * flops,
    )


def _case(
    cells: int, genes: int, patch: int, width: int, prediction: str = "eps", *, small: bool = False
) -> Case:
    sizes = (cells, genes, patch, width, prediction)
    return Case(
        label=f"B={cells} G={genes} P={patch} D={width} {prediction}",
        inputs=partial(_inputs, *sizes),
        work=partial(_work, *sizes),
        small=small,
        unit="cells",
        units=cells,
    )


OPERATORS = (
    Operator(
        name="denoise_loss",
        ours=_ours,
        eager=_eager,
        truth=_truth,
        cases=(
            _case(16, 2000, 10, 256, small=True),
            _case(512, 2000, 10, 768),
            _case(512, 2000, 10, 768, "v"),
            _case(512, 2048, 8, 768, "v"),
            _case(512, 2048, 8, 512, "v"),
        ),
    ),
)
