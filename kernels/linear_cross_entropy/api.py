"""The public function: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from .._check import (
    require_choice,
    require_device_of,
    require_dims,
    require_dtype_of,
    require_float,
    require_integer,
    require_like,
    require_shape,
    require_whole,
)
from .._dispatch import is_fused
from . import ops, reference

if TYPE_CHECKING:
    from torch import Tensor

    from .._dispatch import Implementation

Reduction = Literal["mean", "sum", "none"]


def masked_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    max_masked: int | None = None,
    reduction: Reduction = "mean",
    implementation: Implementation = "auto",
) -> Tensor:
    """``cross_entropy(hidden[masked] @ weight.T + bias, target[masked])`` without the logits in memory.

    A token `t` is masked, and so predicted, where ``target[t] != ignore_index``; the others are not computed.
    The logits exist for one chunk of tokens at a time (256 MiB), in the dtype of `hidden` as those of
    `torch.nn.functional.linear`; their softmax is taken in float32. When a mean or a sum is to be
    differentiated, its gradients are computed chunk by chunk while the logits are there, as in Liger [1]_,
    and only scaled later. With ``reduction="none"`` the logits are computed a second time in the backward.

    Parameters
    ----------
    hidden
        Tokens, ``[T, D]``. float32, bfloat16, float16 or float64. Copied if not contiguous.
    weight
        Embedding of each gene, ``[V, D]``, with the dtype and device of `hidden`. Any V is read fast, also
        one that is not a multiple of 8.
    target
        The gene of each token, ``[T]`` of int32 or int64 in ``[0, V)``, or `ignore_index`. A target out of
        range raises on a CPU; a GPU can not, and makes its loss NaN.
    bias
        Added to the logits, ``[V]``, as `weight`; or None.
    ignore_index
        The target of tokens that are not masked.
    max_masked
        The most masked tokens there can be. How many there are is known to the GPU only, and to ask would
        wait for it; so without a bound the work is that of all T tokens. If there are more, the loss is NaN:
        choose it with room to spare. A CPU knows the number and needs none, but obeys.
    reduction
        * ``"mean"``: over the masked tokens; NaN where there is none, as `torch.nn.functional.cross_entropy`.
        * ``"sum"``: over the masked tokens; zero where there is none.
        * ``"none"``: the loss of each token, ``[T]``, zero where it is not masked.
    implementation
        * ``"auto"``: cuBLAS and a Triton kernel on CUDA, else chunks of PyTorch.
        * ``"reference"``: the definition in plain PyTorch with all logits in memory, which can be
          differentiated any number of times.
        * ``"triton"``: the kernel, or an error where it can not run.

    Returns
    -------
    Tensor
        The loss in float32 (float64 for float64 input): a scalar, or ``[T]``. Differentiable once in
        `hidden`, `weight` and `bias`; the gradients are deterministic.

    Raises
    ------
    TypeError
        An argument is not a tensor, or its dtype is not supported or differs from that of `hidden`.
    ValueError
        A shape or device does not fit, `max_masked` is negative, or `reduction` or `implementation` is
        unknown or can not be had.

    References
    ----------
    .. [1] P. Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024.

    Examples
    --------
    >>> target = torch.where(masked, gene, -100)
    >>> bound = round(0.2 * target.numel())  # 15% are masked at random
    >>> loss = scdd.kernels.masked_linear_cross_entropy(hidden, embedding, target, max_masked=bound)
    """
    _check(hidden, weight, target, bias, max_masked, ignore_index, reduction)
    if not is_fused(implementation, hidden):
        losses = reference.linear_cross_entropy(hidden, weight, bias, target, ignore_index)
        losses = reference.refuse_surplus(losses, target, ignore_index, max_masked)
        return reference.reduce(losses, target, ignore_index, reduction)
    rows = target.shape[0] if max_masked is None else min(target.shape[0], max_masked)
    arguments = (hidden, weight, bias, target, ignore_index, rows)
    if reduction == "none":
        return ops.LinearCrossEntropies.apply(*arguments)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias)):
        return ops.LinearCrossEntropy.apply(*arguments, reduction)
    return reference.reduce(ops.losses(*arguments), target, ignore_index, reduction)


def _check(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    max_masked: int | None,
    ignore_index: int,
    reduction: str,
) -> None:
    """Refuse what no implementation can take."""
    require_float("hidden", hidden)
    require_dims("hidden", hidden, (2,), "[T, D]")
    require_float("weight", weight)
    require_dims("weight", weight, (2,), "[V, D]")
    if weight.shape[0] == 0 or hidden.shape[1] == 0:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}; "
            "give them one channel and one gene at least"
        )
    require_shape("weight", weight, (weight.shape[0], hidden.shape[1]), "[V, D]")
    require_dtype_of("weight", weight, "hidden", hidden)
    require_device_of("weight", weight, "hidden", hidden)
    require_integer("target", target)
    require_shape("target", target, (hidden.shape[0],), "[T]")
    require_device_of("target", target, "hidden", hidden)
    if bias is not None:
        require_like("bias", bias, (weight.shape[0],), "[V]", "hidden", hidden)
    require_whole("ignore_index", ignore_index)
    if max_masked is not None:
        require_whole("max_masked", max_masked)
    if max_masked is not None and max_masked < 0:
        raise ValueError(f"max_masked is {max_masked}; it counts tokens, or pass None for no bound")
    require_choice("reduction", reduction, get_args(Reduction))
