"""The public functions: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .._check import require_device_of, require_dims, require_float, require_like, require_number
from .._dispatch import is_fused
from . import ops, reference

if TYPE_CHECKING:
    from .._dispatch import Implementation


class IstaOutput(NamedTuple):
    """What :func:`ista_step_with_zeros` and :func:`overcomplete_ista_step_with_zeros` return."""

    out: Tensor
    """The result, shaped like the input."""
    zeros: Tensor
    """How many elements of the sparse code are exactly zero: an int64 scalar, without gradient."""


def ista_operator(
    dictionary: Tensor, step_size: float | Tensor, *, implementation: Implementation = "auto"
) -> Tensor:
    """``step_size * (D^T - D^T D)``, all that :func:`ista_step` needs of a dictionary `D`.

    To be formed once where many steps share a dictionary (sampling) and passed as `operator`. In float32 and
    cast afterwards it is also more accurate than from a dictionary of 16 bits.

    Parameters
    ----------
    dictionary
        ``[N, N]``; one atom a column, so that `D z` is ``torch.nn.functional.linear(z, dictionary)``.
    step_size
        Step along the gradient, a positive number or a scalar tensor.
    implementation
        As in :func:`ista_step`. There is no kernel of its own: anything but ``"reference"`` takes one matrix
        product of PyTorch each way.

    Returns
    -------
    Tensor
        ``[N, N]``, with the dtype of `dictionary`; differentiable once in `dictionary` and `step_size`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`ista_step`.

    Examples
    --------
    >>> operator = scdd.kernels.ista_operator(dictionary, 0.1)
    >>> for _ in range(3):
    ...     branch = scdd.kernels.ista_step(branch, operator=operator, step_size=0.1)
    """
    require_float("dictionary", dictionary)
    if dictionary.ndim != 2 or dictionary.shape[0] != dictionary.shape[1]:
        raise ValueError(f"dictionary has shape {tuple(dictionary.shape)}; give it a square one, [N, N]")
    check_step_size(step_size, dictionary)
    # the product is PyTorch's wherever it runs, and so is had on any device
    anywhere = isinstance(implementation, str) and implementation == "triton"
    if not is_fused("auto" if anywhere else implementation, dictionary):
        return reference.ista_operator(dictionary, step_size)
    if isinstance(step_size, Tensor):
        return step_size.to(dictionary.dtype) * ops.IstaOperator.apply(dictionary, 1.0)
    return ops.IstaOperator.apply(dictionary, step_size)


def ista_step(
    y: Tensor,
    dictionary: Tensor | None = None,
    *,
    operator: Tensor | None = None,
    step_size: float | Tensor = 0.1,
    threshold: float | Tensor = 0.1,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """``residual + gate[c] * h`` with ``h = relu(y + step_size * (D^T (y - D y) - threshold))``.

    One proximal-gradient step, from `y`, of ``min_{z >= 0} |y - D z|^2 / 2 + threshold * |z|_1``: the
    sparsifying half of a white-box transformer block [1]_, with the gated residual that follows it in a
    diffusion transformer. As no nonlinearity lies between them, the two products with the dictionary are one
    product with :func:`ista_operator`: ``h = relu(y + y B^T - step_size * threshold)``. Sums are in float32
    (float64 for float64 input) and the result has the dtype of `y`.

    Parameters
    ----------
    y
        ``[C, R, N]`` (`R` rows for each of `C` cells) or ``[C, N]``. float32, bfloat16, float16 or float64.
        Copied if not contiguous.
    dictionary
        ``[N, N]``, with the dtype and device of `y`; `D z` is ``torch.nn.functional.linear(z, dictionary)``.
    operator
        What :func:`ista_operator` made of it with the same `step_size`, instead of `dictionary`.
    step_size
        Step along the gradient: a positive number, or a scalar tensor.
    threshold
        Price of a nonzero: a number not below zero, or a tensor, one number or one for each column, ``[N]``.
    residual
        Added to the result; shaped like `y`.
    gate
        Weight of `h` for each cell, ``[C, N]``. Pieces of one larger tensor are read in place.
    implementation
        * ``"auto"``: the Triton kernels on CUDA, else PyTorch.
        * ``"reference"``: the definition in plain PyTorch, which can be differentiated any number of times.
        * ``"triton"``: the kernels, or an error where they can not run.

    Returns
    -------
    Tensor
        Shaped like `y`. Differentiable once in every tensor; the gradients are deterministic. The gradient of
        the rectifier at zero is zero. NaN stays NaN.

    Raises
    ------
    TypeError
        An argument is not a tensor, or its dtype is not supported or differs from that of `y`.
    ValueError
        A shape or device does not fit, a setting is out of range, not exactly one of `dictionary` and
        `operator` is given, or `implementation` is unknown or can not be had.

    References
    ----------
    .. [1] Y. Yu et al., "White-Box Transformers via Sparse Rate Reduction", NeurIPS 2023.

    Examples
    --------
    >>> stream = scdd.kernels.ista_step(branch, dictionary, residual=stream, gate=gate)
    """
    return _step(
        y, dictionary, operator, step_size, threshold, residual, gate, implementation, count=False
    ).out


def ista_step_with_zeros(
    y: Tensor,
    dictionary: Tensor | None = None,
    *,
    operator: Tensor | None = None,
    step_size: float | Tensor = 0.1,
    threshold: float | Tensor = 0.1,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    implementation: Implementation = "auto",
) -> IstaOutput:
    """:func:`ista_step`, and how many elements of `h` are exactly zero.

    The count is taken where `h` is still in registers and so costs no pass over memory; it is exact and does
    not wait for the GPU. ``zeros / y.numel()`` is the sparsity that white-box models report a layer.

    Parameters
    ----------
    y, dictionary, operator, step_size, threshold, residual, gate, implementation
        As in :func:`ista_step`.

    Returns
    -------
    IstaOutput
        `out` as of :func:`ista_step`, and `zeros`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`ista_step`.

    Examples
    --------
    >>> stream, zeros = scdd.kernels.ista_step_with_zeros(branch, dictionary, residual=stream)
    >>> sparsity = zeros / branch.numel()
    """
    return _step(y, dictionary, operator, step_size, threshold, residual, gate, implementation, count=True)


def _step(
    y: Tensor, dictionary: Tensor | None, operator: Tensor | None, step_size: float | Tensor,
    threshold: float | Tensor, residual: Tensor | None, gate: Tensor | None,
    implementation: Implementation, *, count: bool,
) -> IstaOutput:  # fmt: skip
    check_rows("y", y, residual, gate)
    if (dictionary is None) == (operator is None):
        raise ValueError("pass exactly one of dictionary and operator")
    name, matrix = ("dictionary", dictionary) if operator is None else ("operator", operator)
    require_like(name, matrix, (y.shape[-1], y.shape[-1]), "[N, N]", "y", y)  # type: ignore[arg-type]
    level, offset = level_of(y, y.shape[-1], step_size, threshold)
    fused = is_fused(implementation, y)
    if operator is None:
        operator = ista_operator(
            dictionary, step_size, implementation="auto" if fused else "reference"  # type: ignore[arg-type]
        )  # fmt: skip
    if not fused:
        return IstaOutput(*reference.ista_step(y, operator, level, offset, residual, gate))
    keep = needs_gradient(y, operator, level, residual, gate)
    return IstaOutput(*ops.IstaStep.apply(y, operator, level, residual, gate, offset, keep, count))


def check_rows(name: str, rows: Tensor, residual: Tensor | None, gate: Tensor | None) -> None:
    """Refuse rows that are not [C, R, N] or [C, N], or what does not go with them."""
    require_float(name, rows)
    require_dims(name, rows, (2, 3), "[C, R, N] or [C, N]")
    if rows.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}; give it rows of N > 0 elements")
    if residual is not None:
        require_like("residual", residual, tuple(rows.shape), f"that of {name}", name, rows)
    if gate is not None:
        require_like("gate", gate, (rows.shape[0], rows.shape[-1]), "[C, N]", name, rows)


def check_step_size(step_size: float | Tensor, like: Tensor) -> None:
    """Refuse a step that is not a positive number or a scalar on the device of `like`."""
    if isinstance(step_size, Tensor):
        require_device_of("step_size", step_size, "the dictionary", like)
        if step_size.numel() != 1:
            raise ValueError(f"step_size has shape {tuple(step_size.shape)}; pass a scalar")
        return
    require_number("step_size", step_size)
    if not step_size > 0:
        raise ValueError(f"step_size is {step_size}; pass a positive number")


def level_of(
    rows: Tensor, width: int, step_size: float | Tensor, threshold: float | Tensor
) -> tuple[Tensor | None, float]:
    """What is taken off before the rectifier: [width] in float32 or float64, or None and a number."""
    check_step_size(step_size, rows)
    if isinstance(threshold, Tensor):
        require_float("threshold", threshold)
        require_device_of("threshold", threshold, "the rows", rows)
        if threshold.numel() != 1 and threshold.shape != (width,):
            raise ValueError(f"threshold has shape {tuple(threshold.shape)}; pass a scalar or [{width}]")
    else:
        require_number("threshold", threshold)
        if not threshold >= 0:
            raise ValueError(
                f"threshold is {threshold}; it is the price of a nonzero and can not be negative"
            )
    if not isinstance(threshold, Tensor) and not isinstance(step_size, Tensor):
        return None, step_size * threshold
    dtype = ops.wide_dtype(rows)
    level = _widen(step_size, dtype) * _widen(threshold, dtype)
    return level.reshape(-1).expand(width).contiguous(), 0.0  # type: ignore[union-attr]


def _widen(value: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    return value.to(dtype) if isinstance(value, Tensor) else value


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a gradient will be asked for, and so whether to keep what it needs."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
