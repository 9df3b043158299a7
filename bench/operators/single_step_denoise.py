"""The conditional denoiser of latent codes in one step, at the sizes of the presets of SCDG."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from scdd.kernels.single_step_denoise import DenoiserWeights, single_step_denoise

from .case import Case, Operator, Unavailable, Work, normal

if TYPE_CHECKING:
    from torch import Tensor

    from .case import Function

_SIGNAL, _NOISE = 0.724, 0.69  # of step 250 of 1000, where codes are denoised


def _ours(
    z: Tensor,
    eps: Tensor,
    condition: Tensor,
    context: Tensor,
    rows: Tensor,
    rows_bias: Tensor,
    **weights: Tensor,
) -> tuple[Tensor, ...]:
    modulation = F.linear(F.silu(context), rows, rows_bias)
    pack = DenoiserWeights(**weights)
    return (
        single_step_denoise(z, modulation, pack, condition=condition, eps=eps, signal=_SIGNAL, noise=_NOISE),
    )


def _eager(
    z: Tensor, eps: Tensor, condition: Tensor, context: Tensor, rows: Tensor, rows_bias: Tensor,
    w_in: Tensor, b_in: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w_out: Tensor, b_out: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """As a module does it: every code brings its own embedding and has its modulation computed."""
    depth, _, width = w1.shape
    piece = F.linear(F.silu(context[condition]), rows, rows_bias).chunk(3 * depth + 2, dim=1)
    z_t = _SIGNAL * z + _NOISE * eps
    h = F.linear(z_t, w_in, b_in)
    for block in range(depth):
        shift, scale, gate = piece[3 * block : 3 * block + 3]
        y = F.layer_norm(h, (width,), eps=1e-6) * (1 + scale) + shift
        h = h + gate * F.linear(F.silu(F.linear(y, w1[block], b1[block])), w2[block], b2[block])
    y = F.layer_norm(h, (width,), eps=1e-6) * (1 + piece[-1]) + piece[-2]
    return (_SIGNAL * z_t - _NOISE * F.linear(y, w_out, b_out),)


def _graph(inputs: dict[str, Any]) -> Function:
    if inputs["z"].device.type != "cuda":
        raise Unavailable("a CUDA graph needs a GPU")
    return torch.compile(_eager, mode="reduce-overhead")


def _inputs(
    codes: int, latent: int, width: int, depth: int, conditions: int, dtype: torch.dtype, device: torch.device
) -> dict[str, object]:
    shapes = {
        "z": (codes, latent), "eps": (codes, latent), "context": (conditions, width),
        "rows": ((3 * depth + 2) * width, width), "rows_bias": ((3 * depth + 2) * width,),
        "w_in": (width, latent), "b_in": (width,), "w1": (depth, 2 * width, width), "b1": (depth, 2 * width),
        "w2": (depth, width, 2 * width), "b2": (depth, width), "w_out": (latent, width), "b_out": (latent,),
    }  # fmt: skip
    drawn = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        drawn[name] = normal(shape, torch.float32, device, seed=seed, grad=False)
        if name.startswith(("w", "rows")) and len(shape) > 1:
            drawn[name] *= shape[-1] ** -0.5
        drawn[name] = drawn[name].to(dtype)
    drawn["z"].requires_grad_()
    picked = torch.randint(conditions, (codes,), generator=torch.Generator().manual_seed(0))
    return drawn | {"condition": picked.to(device)}


def _work(codes: int, latent: int, width: int, depth: int, conditions: int, size: int) -> Work:
    """Weights once from memory; the gradient takes one more product a block than a value, and no weight's."""
    weights = 2 * width * latent + depth * 4 * width**2
    rows = conditions * (3 * depth + 2) * width
    return Work(
        forward_bytes=size * (3 * codes * latent + weights + rows),
        backward_bytes=size * (2 * codes * latent + weights + rows),
        forward_flops=2 * codes * weights + 2 * rows * width,
        # to the codes alone: no product for a weight, and none computed again
        backward_flops=2 * codes * weights,
    )


def _case(codes: int, latent: int, width: int, depth: int, *, small: bool = False) -> Case:
    sizes = (codes, latent, width, depth, 20)
    return Case(
        label=f"B={codes} d={latent} W={width} L={depth}",
        inputs=partial(_inputs, *sizes),
        work=partial(_work, *sizes),
        small=small,
        unit="codes",
        units=codes,
    )


OPERATORS = (
    Operator(
        name="single_step_denoise",
        ours=_ours,
        eager=_eager,
        # the presets fast and quality, a width between, and as many codes as fill a GPU
        cases=(
            _case(512, 32, 128, 3, small=True),
            _case(4096, 32, 128, 3, small=True),
            _case(4096, 64, 256, 3),
            _case(4096, 64, 512, 4),
            _case(65_536, 64, 256, 3),
        ),
        baselines={"compile + CUDA graph": _graph},
    ),
)
