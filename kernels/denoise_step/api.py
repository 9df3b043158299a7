"""The public functions: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from .. import _philox
from .._check import (
    require_device_of,
    require_dims,
    require_float,
    require_like,
    require_number,
    require_shape,
    require_tensor,
)
from .._dispatch import is_fused
from . import ops, reference

if TYPE_CHECKING:
    from torch import Tensor

    from .._dispatch import Implementation


class DenoisedStep(NamedTuple):
    """What :func:`denoise_step_with_estimate` returns."""

    x: Tensor
    """The cells at the next time, ``[B, G]``."""
    x0: Tensor
    """The estimate of the clean cells, ``[B, G]``, the `previous` of the next step of a multistep solver."""


def denoise_step(
    x: Tensor,
    output: Tensor,
    coefficients: Tensor,
    *,
    unconditional: Tensor | None = None,
    guidance: float = 1.0,
    previous: Tensor | None = None,
    seed: int | Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """``c[2] x + c[3] x0 + c[4] previous + c[5] eps`` where ``x0 = clamp(c[0] x + c[1] output)``.

    One update of a sampler in one pass: the combination of classifier-free guidance [1]_, the estimate of the
    clean cells, the solver, and noise that is drawn where it is added. Which sampler, and what the network
    predicts, lies in the six coefficients: see :func:`ddpm_coefficients`, :func:`ddim_coefficients` and
    :func:`dpm_solver_coefficients`. Arithmetic is in float32 (float64 where `x` is). There is no gradient.

    Parameters
    ----------
    x
        Cells at the time at hand, ``[B, G]``. float32, bfloat16, float16 or float64.
    output
        What the network said of them, ``[B, G]``, of any floating-point dtype.
    coefficients
        ``[6]``, or ``[B, 6]`` where each cell has its own time; on the device of `x`. A CUDA graph may
        change them.
    unconditional
        What the network said without the condition, like `output`. Then ``unconditional + guidance (output -
        unconditional)`` takes the place of `output`.
    guidance
        Scale of the guidance; 1 is none.
    previous
        The estimate `x0` of the step before, like `x`, for a multistep solver; nothing if not given.
    seed
        Of the noise: an int, or a tensor of one int64 on the device of `x`. Each step needs another. No
        noise is added if it is not given, whatever ``c[5]``. Element `j` of cell `b` is number ``j % 4`` of
        counter ``b ceil(G / 4) + j // 4``.
    clamp
        Least and largest value of the estimate: ``(0, math.inf)`` keeps expression from being negative.
    implementation
        * ``"auto"``: the Triton kernel on CUDA, else PyTorch.
        * ``"reference"``: plain PyTorch, which can be differentiated.
        * ``"triton"``: the kernel, or an error where it can not run.

    Returns
    -------
    Tensor
        ``[B, G]``, in the dtype of `x`.

    Raises
    ------
    TypeError
        An argument is not a tensor, or its dtype is not supported.
    ValueError
        A shape or device does not fit, `clamp` is empty, something wants a gradient, or `implementation` is
        unknown or can not be had.

    References
    ----------
    .. [1] J. Ho and T. Salimans, "Classifier-Free Diffusion Guidance", 2022.

    Examples
    --------
    >>> table = scdd.kernels.ddim_coefficients(alpha_bar[times[:-1]], alpha_bar[times[1:]], eta=1.0)
    >>> for i, t in enumerate(times[:-1]):
    ...     x = scdd.kernels.denoise_step(x, network(x, t), table[i], seed=i)
    """
    arguments = (x, output, coefficients, unconditional, previous)
    return _denoise_step(arguments, seed, guidance, clamp, False, implementation)[0]


def denoise_step_with_estimate(
    x: Tensor,
    output: Tensor,
    coefficients: Tensor,
    *,
    unconditional: Tensor | None = None,
    guidance: float = 1.0,
    previous: Tensor | None = None,
    seed: int | Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    implementation: Implementation = "auto",
) -> DenoisedStep:
    """Return what :func:`denoise_step` does, and the estimate of the clean cells.

    Parameters
    ----------
    x, output, coefficients, unconditional, guidance, previous, seed, clamp, implementation
        As in :func:`denoise_step`.

    Returns
    -------
    DenoisedStep
        `x` and `x0`, both ``[B, G]`` in the dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`denoise_step`.

    Examples
    --------
    >>> table = scdd.kernels.ddim_coefficients(alpha_bar[times[:-1]], alpha_bar[times[1:]])
    >>> previous = None
    >>> for i, t in enumerate(times[:-1]):
    ...     x, previous = scdd.kernels.denoise_step_with_estimate(
    ...         x, network(x, t), table[i], previous=previous
    ...     )
    """
    arguments = (x, output, coefficients, unconditional, previous)
    return DenoisedStep(*_denoise_step(arguments, seed, guidance, clamp, True, implementation))


def _denoise_step(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    seed: int | Tensor | None,
    guidance: float,
    clamp: tuple[float, float] | None,
    with_estimate: bool,
    implementation: Implementation,
) -> tuple[Tensor, Tensor]:
    _check(*tensors)
    require_number("guidance", guidance)
    lowest, highest = (-math.inf, math.inf) if clamp is None else _bounds(clamp)
    if not lowest <= highest:
        raise ValueError(f"clamp is {clamp}; give the least value and then the largest")
    seeded = None if seed is None else _philox.as_seed(seed, tensors[0].device)
    settings = (seeded, float(guidance), float(lowest), float(highest), with_estimate)
    if not is_fused(implementation, tensors[0]):
        return reference.denoise_step(*tensors, *settings)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise ValueError(
            "a tensor wants a gradient and the operator gives none; call it under torch.no_grad(), or ask "
            "for implementation='reference'"
        )
    return ops.denoise_step(*(t if t is None else t.contiguous() for t in tensors), *settings)


def _bounds(clamp: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(clamp, (tuple, list)) or len(clamp) != 2:
        raise TypeError(f"clamp is {clamp!r}; pass two numbers, the least value and the largest")
    require_number("clamp[0]", clamp[0])
    require_number("clamp[1]", clamp[1])
    return clamp[0], clamp[1]


def _check(
    x: Tensor, output: Tensor, coefficients: Tensor, unconditional: Tensor | None, previous: Tensor | None
) -> None:
    """Refuse what no implementation can take."""
    require_float("x", x)
    require_dims("x", x, (2,), "[B, G]")
    shape = tuple(x.shape)
    require_tensor("output", output)
    for name, value in {"output": output, "unconditional": unconditional}.items():
        if value is not None:
            require_float(name, value)
            require_shape(name, value, shape, "that of x")
            require_device_of(name, value, "x", x)
    if previous is not None:
        require_like("previous", previous, shape, "that of x", "x", x)
    require_float("coefficients", coefficients)
    if coefficients.shape not in ((6,), (shape[0], 6)):
        raise ValueError(
            f"coefficients has shape {tuple(coefficients.shape)}; give it [6], or ({shape[0]}, 6) for one "
            "row a cell"
        )
    require_device_of("coefficients", coefficients, "x", x)
