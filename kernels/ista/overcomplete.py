"""The public functions of the step with an overcomplete dictionary and a readout of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._check import require_device_of, require_dims, require_dtype_of, require_like, require_number
from .._dispatch import is_fused
from . import overcomplete_ops, overcomplete_reference
from .api import IstaOutput, check_rows, level_of, needs_gradient

if TYPE_CHECKING:
    from torch import Tensor

    from .._dispatch import Implementation


def overcomplete_ista_step(
    x: Tensor,
    dictionary: Tensor,
    readout: Tensor | None = None,
    *,
    step_size: float = 0.1,
    threshold: float | Tensor = 0.1,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """``residual + gate[c] * (E z2)``, where z2 is the sparse code of `x` after two proximal-gradient steps.

    ``z1 = relu(s D^T x - s t)`` and ``z2 = relu(z1 - s D^T (D z1 - x) - s t)``, with the step size s and the
    threshold t, for ``min_{z >= 0} |x - D z|^2 / 2 + t |z|_1``: the sparsifying half of a CRATE-alpha
    block [1]_. A rectifier lies between the steps, so unlike in :func:`ista_step` all four products remain;
    what surrounds each is fused into it.

    Parameters
    ----------
    x
        ``[C, R, N]`` (`R` rows for each of `C` cells) or ``[C, N]``. float32, bfloat16, float16 or float64.
        Copied if not contiguous.
    dictionary
        D, ``[N, K]``, one atom a column and usually ``K = 4 N``; with the dtype and device of `x`.
    readout
        E, ``[N, K]``; the dictionary itself if None.
    step_size
        Step along the gradient, a positive number.
    threshold
        Price of a nonzero: a number not below zero, or a tensor, one number or one for each atom, ``[K]``.
    residual
        Added to the result; shaped like `x`.
    gate
        Weight of what is read out for each cell, ``[C, N]``. Pieces of one larger tensor are read in place.
    implementation
        As in :func:`ista_step`.

    Returns
    -------
    Tensor
        Shaped like `x`. Differentiable once in every tensor; the gradients are deterministic.

    Raises
    ------
    TypeError, ValueError
        As in :func:`ista_step`.

    References
    ----------
    .. [1] J. Yang et al., "Scaling White-Box Transformers for Vision", NeurIPS 2024.

    Examples
    --------
    >>> stream = scdd.kernels.overcomplete_ista_step(branch, dictionary, readout, residual=stream)
    """
    return _step(
        x, dictionary, readout, step_size, threshold, residual, gate, implementation, count=False
    ).out


def overcomplete_ista_step_with_zeros(
    x: Tensor,
    dictionary: Tensor,
    readout: Tensor | None = None,
    *,
    step_size: float = 0.1,
    threshold: float | Tensor = 0.1,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    implementation: Implementation = "auto",
) -> IstaOutput:
    """:func:`overcomplete_ista_step`, and how many elements of `z2` are exactly zero.

    Parameters
    ----------
    x, dictionary, readout, step_size, threshold, residual, gate, implementation
        As in :func:`overcomplete_ista_step`.

    Returns
    -------
    IstaOutput
        `out` as of :func:`overcomplete_ista_step`, and `zeros`, of ``C * R * K`` elements.

    Raises
    ------
    TypeError, ValueError
        As in :func:`ista_step`.

    Examples
    --------
    >>> out, zeros = scdd.kernels.overcomplete_ista_step_with_zeros(branch, dictionary)
    >>> sparsity = zeros / (branch.shape[0] * branch.shape[1] * dictionary.shape[1])
    """
    return _step(x, dictionary, readout, step_size, threshold, residual, gate, implementation, count=True)


def _step(
    x: Tensor, dictionary: Tensor, readout: Tensor | None, step_size: float, threshold: float | Tensor,
    residual: Tensor | None, gate: Tensor | None, implementation: Implementation, *, count: bool,
) -> IstaOutput:  # fmt: skip
    check_rows("x", x, residual, gate)
    _check_dictionary(x, dictionary)
    if readout is None:
        readout = dictionary
    require_like("readout", readout, tuple(dictionary.shape), "that of dictionary", "x", x)
    require_number("step_size", step_size)
    level, offset = level_of(x, dictionary.shape[1], step_size, threshold)
    if not is_fused(implementation, x):
        return IstaOutput(
            *overcomplete_reference.overcomplete_step(
                x, dictionary, readout, level, offset, step_size, residual, gate
            )
        )
    keep = needs_gradient(x, dictionary, readout, level, residual, gate)
    return IstaOutput(
        *overcomplete_ops.OvercompleteIstaStep.apply(
            x, dictionary, readout, level, residual, gate, offset, step_size, keep, count
        )
    )


def _check_dictionary(x: Tensor, dictionary: Tensor) -> None:
    require_dtype_of("dictionary", dictionary, "x", x)
    require_device_of("dictionary", dictionary, "x", x)
    require_dims("dictionary", dictionary, (2,), "[N, K]")
    if dictionary.shape[0] != x.shape[-1] or dictionary.shape[1] == 0:
        raise ValueError(
            f"dictionary has shape {tuple(dictionary.shape)}; give it [N, K] with N = {x.shape[-1]} and K > 0"
        )
