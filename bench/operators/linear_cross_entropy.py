"""Cross-entropy of the masked tokens over all genes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scdd.kernels.linear_cross_entropy import masked_linear_cross_entropy

from .case import Case, Operator, Unavailable, Work, normal

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def _ours(hidden: Tensor, weight: Tensor, target: Tensor, max_masked: int) -> tuple[Tensor, ...]:
    return (masked_linear_cross_entropy(hidden, weight, target, max_masked=max_masked),)


def _eager(hidden: Tensor, weight: Tensor, target: Tensor, max_masked: int) -> tuple[Tensor, ...]:
    some = (target != -100).nonzero().squeeze(1)
    return (F.cross_entropy(F.linear(hidden[some], weight).float(), target[some]),)


def _unbounded(inputs: dict[str, object]) -> Callable[..., tuple[Tensor, ...]]:
    """The operator on tokens that were picked with a wait for the device, instead of a bound."""

    def run(hidden: Tensor, weight: Tensor, target: Tensor, max_masked: int) -> tuple[Tensor, ...]:
        some = (target != -100).nonzero().squeeze(1)
        return (masked_linear_cross_entropy(hidden[some], weight, target[some]),)

    return run


def _liger(inputs: dict[str, object]) -> Callable[..., tuple[Tensor, ...]]:
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError as missing:
        raise Unavailable("liger-kernel is not installed") from missing

    def run(hidden: Tensor, weight: Tensor, target: Tensor, max_masked: int) -> tuple[Tensor, ...]:
        some = (target != -100).nonzero().squeeze(1)
        return (liger_fused_linear_cross_entropy(hidden[some], weight, target[some]).float(),)

    return run


def _inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    tokens, masked, width, genes = shape
    generator = torch.Generator().manual_seed(2)
    target = torch.full((tokens,), -100)
    chosen = torch.randperm(tokens, generator=generator)[:masked]
    target[chosen] = torch.randint(genes, (masked,), generator=generator)
    weight = normal((genes, width), dtype, device, seed=1, grad=False) * width**-0.5
    return {
        "hidden": normal((tokens, width), dtype, device, seed=0),
        "weight": weight.requires_grad_(),
        "target": target.to(device),
        # a real bound has room to spare
        "max_masked": min(tokens, masked + masked // 16),
    }


def _work(shape: tuple[int, int, int, int], size: int) -> Work:
    tokens, masked, width, genes = shape
    rows, weight, product = masked * width, genes * width, 2 * masked * width * genes
    # of the gradient of `hidden` every token is written, and the rows of the masked ones read
    return Work(size * (rows + weight), size * (rows + 2 * weight + tokens * width), product, 2 * product)


# tokens, masked tokens, width, genes; the third vocabulary is odd
_SHAPES = (
    (65_536, 8192, 512, 20_000),
    (65_536, 8192, 512, 60_000),
    (65_536, 8192, 512, 36_601),
    (512, 96, 64, 2000),
)


def _case(shape: tuple[int, int, int, int]) -> Case:
    tokens, masked, width, genes = shape
    return Case(
        label=f"T={tokens} masked={masked} D={width} V={genes}",
        inputs=partial(_inputs, shape),
        work=partial(_work, shape),
        small=shape == _SHAPES[-1],
        unit="masked tokens",
        units=masked,
    )


OPERATORS = (
    Operator(
        name="masked_linear_cross_entropy",
        ours=_ours,
        eager=_eager,
        cases=tuple(_case(shape) for shape in _SHAPES),
        baselines={"picked with a wait": _unbounded, "liger": _liger},
    ),
)
