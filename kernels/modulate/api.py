"""The public functions: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .._check import require_float, require_like, require_number, require_tensor
from .._dispatch import is_fused
from . import ops, reference
from .tiles import MAX_WIDTH

if TYPE_CHECKING:
    from torch import Tensor

    from .._dispatch import Implementation


class ModulateOutput(NamedTuple):
    """What :func:`gated_residual_modulate` returns."""

    y: Tensor
    """The normalised and modulated rows, the input of the next branch."""
    h: Tensor
    """The residual stream after the gated branch was added, the `residual` of the next block."""


def modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    *,
    eps: float = 1e-6,
    implementation: Implementation = "auto",
) -> Tensor:
    """``layer_norm(x) * (1 + scale[c]) + shift[c]``, for rows that share a condition `c`.

    The adaptive layer norm of diffusion transformers (adaLN) [1]_, in one pass over memory. Mean and variance
    are taken over the last dimension, the variance without Bessel's correction. All arithmetic is in float32
    (float64 for float64 input), and the result has the dtype of `x`.

    Parameters
    ----------
    x
        Rows to normalise, ``[C, R, N]`` (`R` rows for each of `C` conditions) or ``[C, N]`` (one row each).
        float32, bfloat16, float16 or float64. Copied if not contiguous.
    shift, scale
        Bias and gain of each condition, ``[C, N]``, with the dtype and device of `x`. Pieces of one larger
        tensor (``modulation.chunk(3, dim=-1)``) and expanded rows are read in place.
    eps
        Added to the variance.
    implementation
        * ``"auto"``: the Triton kernels on CUDA, else PyTorch.
        * ``"reference"``: the definition in plain PyTorch, which can be differentiated any number of times.
        * ``"triton"``: the kernels, or an error where they can not run.

    Returns
    -------
    Tensor
        Shaped like `x`. Differentiable once in `x`, `shift` and `scale`; the gradients are deterministic.

    Raises
    ------
    TypeError
        An argument is not a tensor, or its dtype is not supported or differs from that of `x`.
    ValueError
        A shape or device does not fit, `eps` is negative, or `implementation` is unknown or can not be had.

    References
    ----------
    .. [1] W. Peebles and S. Xie, "Scalable Diffusion Models with Transformers", ICCV 2023.

    Examples
    --------
    >>> shift, scale = condition_to_modulation(condition).chunk(2, dim=-1)
    >>> y = scdd.kernels.modulate(x, shift, scale)
    """
    _check(x, eps, (("shift", shift), ("scale", scale)))
    if is_fused(implementation, x, limit=_limit(x)):
        return ops.Modulate.apply(x, shift, scale, eps)
    return reference.modulate(x, shift, scale, eps)


def gated_residual_modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    *,
    residual: Tensor,
    gate: Tensor,
    eps: float = 1e-6,
    implementation: Implementation = "auto",
) -> ModulateOutput:
    """``h = residual + gate[c] * x`` and ``y = layer_norm(h) * (1 + scale[c]) + shift[c]``.

    The seam between two adaLN-Zero blocks [1]_: the end of one branch (gate, add to the residual stream)
    and the start of the next (:func:`modulate`) in one pass over memory. `h` is rounded to the dtype of `x`
    before it is normalised, so that `y` depends on the `h` that is returned.

    Parameters
    ----------
    x
        What the branch computed, ``[C, R, N]`` or ``[C, N]``; as in :func:`modulate`.
    shift, scale
        Bias and gain of each condition for the next branch, ``[C, N]``; as in :func:`modulate`.
    residual
        The residual stream that the branch started from, shaped like `x`.
    gate
        Weight of the branch for each condition, ``[C, N]``; as `shift`. Zero leaves the stream as it was.
    eps, implementation
        As in :func:`modulate`.

    Returns
    -------
    ModulateOutput
        `y` and `h`, each shaped like `x` and differentiable once in all five tensors; the gradients are
        deterministic.

    Raises
    ------
    TypeError, ValueError
        As in :func:`modulate`.

    References
    ----------
    .. [1] W. Peebles and S. Xie, "Scalable Diffusion Models with Transformers", ICCV 2023.

    Examples
    --------
    >>> branch, stream = scdd.kernels.gated_residual_modulate(
    ...     mlp(branch), shift, scale, residual=stream, gate=gate
    ... )
    """
    require_tensor("residual", residual)
    _check(x, eps, (("shift", shift), ("scale", scale), ("gate", gate)), residual=residual)
    if is_fused(implementation, x, limit=_limit(x)):
        return ModulateOutput(*ops.GatedResidualModulate.apply(x, residual, gate, shift, scale, eps))
    return ModulateOutput(*reference.gated_residual_modulate(x, residual, gate, shift, scale, eps))


def _check(
    x: Tensor, eps: float, rows: tuple[tuple[str, Tensor], ...], residual: Tensor | None = None
) -> None:
    """Refuse what no implementation can take."""
    require_float("x", x)
    if x.ndim not in (2, 3) or x.shape[-1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; reshape it to [C, R, N] or [C, N] with N > 0")
    require_number("eps", eps)
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it is added to a variance and can not be negative")
    for name, row in rows:
        require_like(name, row, (x.shape[0], x.shape[-1]), "[C, N]", "x", x)
    if residual is not None:
        require_like("residual", residual, tuple(x.shape), "that of x", "x", x)


def _limit(x: Tensor) -> str | None:
    """Why the kernels can not hold a row of `x`, if so."""
    if x.shape[-1] <= MAX_WIDTH:
        return None
    return f"x has width {x.shape[-1]} and the kernels hold a row of at most {MAX_WIDTH}; split the rows"
