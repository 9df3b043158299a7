"""The public function: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._check import require_device_of, require_dims, require_float, require_shape
from .._dispatch import is_fused
from .._segments import require_packed
from . import ops, reference, tiles

if TYPE_CHECKING:
    from torch import Tensor

    from .._dispatch import Implementation


def token_statistics_attention(
    w: Tensor,
    temperature: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """``out[n, h] = -w[n, h] * membership[n, h] / (1 + moment[h])``, in time linear in the tokens.

    Token statistics self-attention (TSSA), in its form for sets of tokens [1]_. Of the tokens `n` of one
    segment, with heads `h` of channels `j`::

        square[h, j]     = sum_n w[n, h, j]^2
        membership[n, h] = softmax over h of temperature[h] * sum_j w[n, h, j]^2 / max(sqrt(square), 1e-12)^2
        moment[h, j]     = sum_n membership[n, h] w[n, h, j]^2 / (sum_n membership[n, h] + 1e-8)

    The norm is taken over the tokens and the softmax over the heads. The minus sign belongs to the operator;
    the residual connection adds what it returns. Tokens have no order: to permute them permutes the result.
    The causal form of the language model is another function, and is not this one. All arithmetic is in
    float32 (float64 for float64 input), and the result has the dtype of `w`.

    Parameters
    ----------
    w
        The projected tokens, ``[B, N, H, P]``, or ``[T, H, P]`` packed by `cu_seqlens`. float32, bfloat16,
        float16 or float64. Copied if not contiguous.
    temperature
        Learned temperature of each head, ``[H]``, of any floating-point dtype.
    cu_seqlens
        Where the segments of packed tokens begin, ``[S + 1]`` of int32 or int64: it starts with 0, ends with
        T, never falls, and may repeat (empty segments). On a GPU only its shape is checked, as its
        values would have to be fetched.
    implementation
        * ``"auto"``: the Triton kernels on CUDA where they hold the sizes, else PyTorch.
        * ``"reference"``: the definition in plain PyTorch, which can be differentiated any number of times.
        * ``"triton"``: the kernels, or an error where they can not run. They hold a row in one program:
          H and P, each rounded up to a power of two, may have a product of 2048 at most.

    Returns
    -------
    Tensor
        Shaped like `w`. Differentiable once in `w` and `temperature`; the gradients of the
        kernels are deterministic.

    Raises
    ------
    TypeError
        An argument is not a tensor, or its dtype is not supported.
    ValueError
        A shape or device or `cu_seqlens` does not fit, or `implementation` is unknown or can not be had.

    References
    ----------
    .. [1] Z. Wu et al., "Token Statistics Transformer: Linear-Time Attention via Variational Rate Reduction",
       ICLR 2025.

    Examples
    --------
    >>> w = projection(tokens).unflatten(-1, (heads, -1))
    >>> out = scdd.kernels.token_statistics_attention(w, temperature).flatten(-2)
    """
    _check(w, temperature, cu_seqlens)
    if is_fused(implementation, w, limit=_limit(w)):
        return ops.TokenStatisticsAttention.apply(w, temperature, cu_seqlens)
    return reference.token_statistics_attention(w, temperature, cu_seqlens)


def _check(w: Tensor, temperature: Tensor, cu_seqlens: Tensor | None) -> None:
    """Refuse what no implementation can take."""
    require_float("w", w)
    if cu_seqlens is None:
        require_dims("w", w, (4,), "[B, N, H, P], or pass cu_seqlens with [T, H, P]")
    else:
        require_dims("w", w, (3,), "[T, H, P], the packed form that cu_seqlens asks for")
        require_packed(cu_seqlens, "w", w)
    if w.shape[-1] == 0 or w.shape[-2] == 0:
        raise ValueError(f"w has shape {tuple(w.shape)}; it needs one head and one channel at least")
    require_float("temperature", temperature)
    require_shape("temperature", temperature, (w.shape[-2],), "[H]")
    require_device_of("temperature", temperature, "w", w)


def _limit(w: Tensor) -> str | None:
    """Why the kernels can not hold a row of `w`, if so."""
    heads, channels = w.shape[-2:]
    if tiles.padded_size(heads, channels) <= tiles.MAX_SIZE:
        return None
    return (
        f"w has {heads} heads of {channels} channels and the kernels hold {tiles.MAX_SIZE} numbers a token, "
        "both counts rounded up to powers of two; use fewer or narrower heads"
    )
