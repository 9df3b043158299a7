"""The public functions: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from .._check import require_choice, require_dims, require_flag, require_float, require_number
from .._dispatch import is_fused
from .._segments import require_packed
from . import ops, reference, tiles

if TYPE_CHECKING:
    from torch import Tensor

    from .._dispatch import Implementation

Reduction = Literal["sum", "none"]


def coding_rate(z: Tensor, *, eps: float, normalise: bool = False) -> Tensor:
    """``R(Z) = 1/2 logdet(I + d / (N eps^2) Z Z^T)``, the coding rate of `N` tokens of width `d`.

    The length in nats of a code for the tokens to within `eps`, were they drawn from one Gaussian; the term
    that CRATE's objective makes large [1]_. The determinant is taken on the smaller side, N x N or d x d,
    which by Sylvester's identity are equal. There is no kernel: the work is a product of matrices and a
    Cholesky factorisation, which cuBLAS and cuSOLVER have, in float32 (float64 for float64 input; whether
    float32 may become tf32 is up to `torch.set_float32_matmul_precision`).

    Parameters
    ----------
    z
        Tokens, ``[B, N, d]``. float32, bfloat16, float16 or float64.
    eps
        Precision of the code. Where ``d / (N eps^2)`` times the largest eigenvalue of the Gram matrix passes
        1e6 the smallest factors drown in the rounding of float32: pass float64.
    normalise
        Scale every token to length one first.

    Returns
    -------
    Tensor
        ``[B]`` in float32 (float64 for float64 input), differentiable in `z` any number of times. NaN where
        the factorisation fails, zero where there is no token.

    Raises
    ------
    TypeError
        `z` is not a tensor, or its dtype is not supported.
    ValueError
        The shape does not fit, or `eps` is not positive.

    References
    ----------
    .. [1] Y. Yu et al., "White-Box Transformers via Sparse Rate Reduction", NeurIPS 2023.

    Examples
    --------
    >>> scdd.kernels.coding_rate(tokens, eps=0.5, normalise=True).mean()
    """
    require_float("z", z)
    require_dims("z", z, (3,), "[B, N, d]")
    _check_eps(eps)
    require_flag("normalise", normalise)
    return reference.coding_rate(z, eps, normalise)


def subspace_coding_rate(
    w: Tensor,
    *,
    eps: float,
    normalise: bool = False,
    cu_seqlens: Tensor | None = None,
    reduction: Reduction = "sum",
    implementation: Implementation = "auto",
) -> Tensor:
    """``R^c(Z | U) = 1/2 sum_h logdet(I + P / (N eps^2) W_h^T W_h)`` for projections ``W_h = Z U_h``.

    The length in nats of a code for `N` tokens to within `eps`, were each drawn from one of `H` subspaces of
    `P` dimensions; the term that CRATE's attention makes small [1]_. The determinants are taken on the
    smaller side, N x N as in the paper or P x P, equal by Sylvester's identity. All arithmetic is in float32
    (float64 for float64 input).

    CRATE's own code for its figures writes ``P / (N * 0.01)`` where the paper has ``P / (N eps^2)``, and
    scales each token to length one within its head. To repeat it, pass ``eps=0.1, normalise=True``.

    Parameters
    ----------
    w
        The projected tokens, ``[B, N, H, P]``, or ``[T, H, P]`` packed by `cu_seqlens`. float32, bfloat16,
        float16 or float64. Copied if not contiguous.
    eps
        Precision of the code. Where ``P / (N eps^2)`` times the largest eigenvalue of the Gram matrix passes
        1e6 the smallest factors drown in the rounding of float32: pass float64.
    normalise
        Scale every token to length one within its head first.
    cu_seqlens
        Where the segments of packed tokens begin, ``[S + 1]`` of int32 or int64: it starts with 0, ends with
        T, never falls, and may repeat. On a GPU only its shape is checked.
    reduction
        ``"sum"`` over the heads as in the paper, or ``"none"``.
    implementation
        * ``"auto"``: the Triton kernels on CUDA for heads of up to 128 channels, else PyTorch.
        * ``"reference"``: the definition in plain PyTorch, which can be differentiated any number of times;
          with `cu_seqlens` it waits for the device, once.
        * ``"triton"``: the kernels, or an error where they can not run.

    Returns
    -------
    Tensor
        ``[B]`` or ``[S]``; with ``reduction="none"`` ``[B, H]`` or ``[S, H]``, in float32 (float64 for
        float64 input). Differentiable once in `w`; the gradient is deterministic. NaN where the factorisation
        fails, zero where a segment is empty.

    Raises
    ------
    TypeError
        An argument is not a tensor, or its dtype is not supported.
    ValueError
        A shape or device or `cu_seqlens` does not fit, `eps` is not positive, or `reduction` or
        `implementation` is unknown or can not be had.

    References
    ----------
    .. [1] Y. Yu et al., "White-Box Transformers via Sparse Rate Reduction", NeurIPS 2023.

    Examples
    --------
    >>> w = (tokens @ subspaces).unflatten(-1, (heads, -1))
    >>> compressed = scdd.kernels.subspace_coding_rate(w, eps=0.1, normalise=True)
    """
    _check(w, eps, cu_seqlens, reduction)
    require_flag("normalise", normalise)
    if is_fused(implementation, w, limit=_limit(w)):
        rate = ops.SubspaceCodingRate.apply(w, cu_seqlens, eps, normalise)
    else:
        rate = reference.subspace_coding_rate(w, cu_seqlens, eps, normalise)
    return rate.sum(-1) if reduction == "sum" else rate


def _check(w: Tensor, eps: float, cu_seqlens: Tensor | None, reduction: str) -> None:
    """Refuse what no implementation can take."""
    require_float("w", w)
    if cu_seqlens is None:
        require_dims("w", w, (4,), "[B, N, H, P], or pass cu_seqlens with [T, H, P]")
    else:
        require_dims("w", w, (3,), "[T, H, P], the packed form that cu_seqlens asks for")
        require_packed(cu_seqlens, "w", w)
    if w.shape[-1] == 0 or w.shape[-2] == 0:
        raise ValueError(f"w has shape {tuple(w.shape)}; it needs one head and one channel at least")
    _check_eps(eps)
    require_choice("reduction", reduction, get_args(Reduction))


def _check_eps(eps: float) -> None:
    require_number("eps", eps)
    if not eps > 0:
        raise ValueError(f"eps is {eps}; a code has a positive precision")


def _limit(w: Tensor) -> str | None:
    """Why the kernels can not hold a head of `w`, if so."""
    if w.shape[-1] <= tiles.MAX_CHANNELS:
        return None
    return (
        f"w has heads of {w.shape[-1]} channels and the kernels hold {tiles.MAX_CHANNELS}; use narrower heads"
    )
