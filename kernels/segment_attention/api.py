"""The public functions: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from .._biases import Biases, require_biases
from .._check import (
    require_device_of,
    require_dims,
    require_float,
    require_like,
    require_number,
)
from .._dispatch import is_fused
from .._segments import require_lengths, require_schedule, segment_schedule
from . import ops, reference, tiles

if TYPE_CHECKING:
    from torch import Tensor

    from .._dispatch import Implementation
    from .._segments import SegmentSchedule


class SegmentAttentionOutput(NamedTuple):
    """What :func:`segment_attention_with_lse` returns."""

    out: Tensor
    """``[T, H, D]``, as :func:`segment_attention` returns it."""
    lse: Tensor
    """``[T, H]``, the natural logarithm of the sum of exponentials of each row's scores; float32 (float64 for
    float64 input) and without a gradient. A view whose rows are not contiguous."""


def segment_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float | None = None,
    key_weight: Tensor | None = None,
    key_value: Tensor | None = None,
    slope: Tensor | None = None,
    coordinate: Tensor | None = None,
    schedule: SegmentSchedule | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """``softmax_j(scale q_i.k_j + weight log1p(value_j) - slope |coordinate_i - coordinate_j|) v_j``.

    Attention among the rows of each segment of a packed batch, without a mask, padding or a matrix of scores
    in memory [1]_. Both biases are optional, are computed in the kernel and have a weight for each head: one
    prefers keys by a value of their own (an expression count), one prefers keys that are near on a line, as
    ALiBi does [2]_. All arithmetic is in float32 (float64 for float64 input). Gradients are deterministic.

    Parameters
    ----------
    q, k, v
        Queries, keys and values, ``[T, H, D]``: the rows of all segments end to end. float32, bfloat16,
        float16 or float64. Pieces of one larger projection are read in place.
    cu_seqlens
        int32 or int64 ``[S + 1]``, the row where each segment starts; it begins with 0 and ends with ``T``.
        Segments may be empty. On the device of `q`, or on the CPU.
    scale
        Positive; by default ``1 / sqrt(D)``.
    key_weight, key_value
        ``[H]`` and ``[T]``, given together: a key's score rises by ``key_weight * log1p(key_value)``. Values
        are at least 0. float32 whatever the dtype of `q` (float64 for float64).
    slope, coordinate
        ``[H]`` and ``[T]``, given together: a score falls by ``slope`` for each unit between query and key.
        float32 as above. No gradient flows to `coordinate`.
    schedule
        How the rows are cut into tiles, from a loader or :func:`segment_schedule`. It is trusted to be that
        of `cu_seqlens`. By default it is made anew in each call, which on a GPU costs some 50 small kernels.
    implementation
        * ``"auto"``: the Triton kernels on CUDA, else PyTorch, segment by segment.
        * ``"reference"``: the definition in plain PyTorch, which can be differentiated any number of times.
        * ``"triton"``: the kernels, or an error where they can not run. They take `D` of 32, 64, 96 and 128.

    Returns
    -------
    Tensor
        ``[T, H, D]`` with the dtype of `q`. Differentiable once in `q`, `k`, `v`, `key_weight`, `key_value`
        and `slope`.

    Raises
    ------
    TypeError
        An argument is not a tensor, or its dtype is not supported or does not fit.
    ValueError
        A shape or device does not fit, one of a pair of arguments is missing, `scale` is not positive,
        `cu_seqlens` is wrong (on a GPU without `schedule` the device stops with an assertion, with it values
        are not checked), or `implementation` is unknown or can not be had.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning",
       ICLR 2024.
    .. [2] O. Press, N. A. Smith and M. Lewis, "Train Short, Test Long: Attention with Linear Biases Enables
       Input Length Extrapolation", ICLR 2022.

    Examples
    --------
    >>> cu_seqlens = torch.tensor([0, 1200, 1200, 3500])
    >>> out = scdd.kernels.segment_attention(q, k, v, cu_seqlens, key_weight=weight, key_value=counts)
    """
    biases = Biases(key_weight, key_value, slope, coordinate)
    return _run(q, k, v, cu_seqlens, scale, biases, schedule, implementation)[0]


def segment_attention_with_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float | None = None,
    key_weight: Tensor | None = None,
    key_value: Tensor | None = None,
    slope: Tensor | None = None,
    coordinate: Tensor | None = None,
    schedule: SegmentSchedule | None = None,
    implementation: Implementation = "auto",
) -> SegmentAttentionOutput:
    """``segment_attention`` and ``lse_i = log sum_j exp(score_ij)``, from which each weight can be had again.

    Parameters
    ----------
    q, k, v, cu_seqlens, scale, key_weight, key_value, slope, coordinate, schedule, implementation
        As in :func:`segment_attention`.

    Returns
    -------
    SegmentAttentionOutput
        `out` ``[T, H, D]``, and `lse` ``[T, H]`` without a gradient.

    Raises
    ------
    TypeError, ValueError
        As in :func:`segment_attention`.

    Examples
    --------
    >>> out, lse = scdd.kernels.segment_attention_with_lse(q, k, v, cu_seqlens)
    """
    biases = Biases(key_weight, key_value, slope, coordinate)
    out, lse, unit = _run(q, k, v, cu_seqlens, scale, biases, schedule, implementation)
    return SegmentAttentionOutput(out, lse if unit == 1 else lse * unit)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float | None,
    biases: Biases,
    schedule: SegmentSchedule | None,
    implementation: Implementation,
) -> tuple[Tensor, Tensor, float]:
    """`out` [T, H, D], `lse` [T, H] and the unit of the latter."""
    _check(q, k, v, cu_seqlens, scale, schedule)
    _check_biases(q, biases)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if not is_fused(implementation, q, limit=_limit(q)):
        return *reference.segment_attention(q, k, v, cu_seqlens, scale, biases), 1.0
    cut: tuple[Tensor | None, Tensor | None, int] = (None, None, 0)
    unit = 1.0
    if tiles.are_used(q.device):
        cut = schedule or _schedule(q, cu_seqlens)
        unit = math.log(2)
    out, lse = ops.SegmentAttention.apply(q, k, v, cu_seqlens, *cut[:2], *biases, scale, cut[2])
    return out, lse.mT, unit


def _schedule(q: Tensor, cu_seqlens: Tensor) -> SegmentSchedule:
    """The schedule of lengths that came without one."""
    made = segment_schedule(cu_seqlens, len(q), tile_rows=tiles.TILE_ROWS)
    return made._replace(tiles=made.tiles.to(q.device), segments=made.segments.to(q.device))


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float | None,
    schedule: SegmentSchedule | None,
) -> None:
    """Refuse what no implementation can take; biases apart."""
    require_float("q", q)
    require_dims("q", q, (3,), "[T, H, D]")
    if not q.shape[1] or not q.shape[2]:
        raise ValueError(f"q has shape {tuple(q.shape)}; reshape it to [T, H, D] with H > 0 and D > 0")
    for name, value in (("k", k), ("v", v)):
        require_like(name, value, tuple(q.shape), "that of q", "q", q)
    require_lengths(cu_seqlens, len(q))
    if cu_seqlens.device.type != "cpu":
        require_device_of("cu_seqlens", cu_seqlens, "q", q)
    if scale is not None:
        require_number("scale", scale)
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; it must be positive, None for 1 / sqrt(D)")
    if schedule is not None:
        require_schedule(schedule, len(q), q.device)


def _check_biases(q: Tensor, biases: Biases) -> None:
    require_biases(q, biases)
    if biases.coordinate is not None and biases.coordinate.requires_grad and torch.is_grad_enabled():
        raise ValueError("coordinate wants a gradient and gets none; pass coordinate.detach()")


def _limit(q: Tensor) -> str | None:
    """Why the kernels can not take the head dimension of `q`, if so."""
    if q.shape[-1] in tiles.WIDTHS:
        return None
    known = ", ".join(map(str, tiles.WIDTHS))
    return f"q has head dimension {q.shape[-1]} and the kernels take {known}; pad q, k and v"
