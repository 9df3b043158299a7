"""What the runner must know of an operator to check it and to time it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

# any operator over the inputs of a case, its results always as a tuple
Function = Callable[..., "tuple[Tensor, ...]"]


class Unavailable(Exception):
    """A baseline can not run here: no GPU, an older PyTorch, a dtype it does not take. Says why."""


class Work(NamedTuple):
    """What any implementation must move and compute in one call; the backward without the forward."""

    forward_bytes: int
    backward_bytes: int
    forward_flops: int = 0
    backward_flops: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One operator at one size.

    Attributes
    ----------
    label
        The sizes in words, unique for the operator: ``"C=64 R=2048 N=1024"``.
    inputs
        Makes the inputs of a dtype on a device, by the name of the parameter: tensors drawn from a fixed seed
        (never zeros, which flatter a GPU) that ask for gradients where the operator has them, and settings.
    work
        What must be moved and computed, for the bytes of an element.
    small
        Whether a CPU does it in well under a second. Cases that are not small are for GPUs.
    unit, units
        What a rate is counted in besides bytes and flops: ``"cells"``, and how many of them a call does.
    """

    label: str
    inputs: Callable[[torch.dtype, torch.device], dict[str, object]]
    work: Callable[[int], Work]
    small: bool = False
    unit: str | None = None
    units: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Operator:
    """One operator of `scdd.kernels` with what it is compared with.

    Attributes
    ----------
    ours
        The operator, called with the inputs of a case by name.
    eager
        The same in plain PyTorch, as its users write it today: the baseline, also compiled.
    truth
        What the gate compares both with, in float64; `eager` unless that is something else in part (random
        numbers of its own) or does not fit.
    peer
        What may be half as wrong in the dtype that is timed; `truth` unless that computes in a wider one, which
        no fused kernel equals.
    baselines
        Other ways by name, made for the inputs of a case: the function to time, called with the inputs by name.
        A maker raises `Unavailable` where it can not run.
    dtypes
        Names of the dtypes that are timed on a GPU, the first alone on a CPU unless `cpu_dtype` says otherwise.
    """

    name: str
    ours: Function
    eager: Function
    cases: tuple[Case, ...]
    truth: Function | None = None
    peer: Function | None = None
    baselines: Mapping[str, Callable[[dict[str, object]], Function]] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    cpu_dtype: str = "float32"
    differentiable: bool = True


def normal(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, seed: int, grad: bool = True
) -> Tensor:
    """Standard normal numbers, the same on every device."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(device, dtype).requires_grad_(grad)
