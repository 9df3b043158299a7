"""The public function: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .. import _dispatch
from .._check import require_device_of, require_dims, require_float, require_number
from .._segments import require_lengths, require_schedule, segment_schedule
from . import ops, reference
from .tiles import PIECES, ROWS

if TYPE_CHECKING:
    from torch import Tensor

    from .._dispatch import Implementation
    from .._segments import SegmentSchedule


def multihead_subspace_attention(
    w: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    schedule: SegmentSchedule | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """``softmax(scale * w_h w_h^T) w_h`` for each head `h`: attention with one tensor for all three roles.

    The multi-head subspace self-attention (MSSA) of white-box transformers [1]_: every head projects the
    tokens on a subspace, and the projected tokens are queries, keys and values at once. One tensor is read
    where attention reads three, and it has one gradient, the sum over the three roles, which is written once
    and not added up from three tensors. The scores never lie in memory.

    Scores, weights and sums are in float32 (float64 for float64 input); weights are rounded to the dtype of
    `w` for the product with `w`, as in every fused attention.

    Parameters
    ----------
    w
        Projected tokens, ``[B, N, H, P]`` for `B` inputs of `N` tokens each, or ``[T, H, P]`` with
        `cu_seqlens`. A projection to ``[B, N, H * P]`` becomes this with ``.unflatten(-1, (H, P))``, without
        a copy. float32, bfloat16, float16 or float64. Copied if not contiguous. The kernels take `P` of 32,
        64, 96 or 128.
    scale
        Factor of the scores, above 0; ``1 / sqrt(P)`` if None.
    cu_seqlens
        int32 or int64 ``[S + 1]``, where each of `S` segments of tokens starts, the last number being `T`.
        Tokens attend to those of their own segment. Segments may be empty.
    schedule
        The tiles of those segments from :func:`segment_schedule`, or a loader, cut to at most 128 rows, to be
        used for all layers. None makes one, on a GPU without waiting for it.
    implementation
        * ``"auto"``: the Triton kernels on CUDA, else PyTorch.
        * ``"reference"``: the definition in plain PyTorch, which can be differentiated any number of times.
        * ``"triton"``: the kernels, or an error where they can not run.

    Returns
    -------
    Tensor
        Shaped like `w`, differentiable once in it; the gradient is deterministic.

    Raises
    ------
    TypeError
        An argument is not a tensor, or has an unsupported dtype.
    ValueError
        A shape, device or setting does not fit, or `implementation` is unknown or can not be had. Wrong
        values in a `cu_seqlens` on a GPU stop the device with an assertion instead.

    References
    ----------
    .. [1] Y. Yu et al., "White-Box Transformers via Sparse Rate Reduction", NeurIPS 2023.

    Examples
    --------
    >>> w = projection(tokens).unflatten(-1, (heads, -1))
    >>> branch = output(scdd.kernels.multihead_subspace_attention(w).flatten(-2))
    """
    scale = _checked_scale(w, scale)
    _check_segments(w, cu_seqlens, schedule)
    if not _dispatch.is_fused(implementation, w, limit=_limit(w, schedule)):
        return reference.multihead_subspace_attention(w, scale, cu_seqlens)
    if cu_seqlens is not None and schedule is None and (w.device.type != "cpu" or _dispatch.INTERPRET):
        schedule = segment_schedule(cu_seqlens, w.shape[0], tile_rows=ROWS[0])
    return ops.SubspaceAttention.apply(w, scale, cu_seqlens, schedule)


def _checked_scale(w: Tensor, scale: float | None) -> float:
    require_float("w", w)
    if w.ndim not in (3, 4) or 0 in w.shape[-2:]:
        raise ValueError(
            f"w has shape {tuple(w.shape)}; reshape it to [B, N, H, P], or [T, H, P] and cu_seqlens; H, P > 0"
        )
    if scale is None:
        return w.shape[-1] ** -0.5
    require_number("scale", scale)
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale is {scale}; pass a finite number above 0, or None for 1 / sqrt(P)")
    return float(scale)


def _check_segments(w: Tensor, cu_seqlens: Tensor | None, schedule: SegmentSchedule | None) -> None:
    if cu_seqlens is None:
        require_dims("w", w, (4,), "[B, N, H, P], or give cu_seqlens with [T, H, P]")
        if schedule is not None:
            raise ValueError("schedule is given without cu_seqlens; pass both, or neither for a fixed length")
        return
    require_dims("w", w, (3,), "[T, H, P], or leave cu_seqlens out")
    require_lengths(cu_seqlens, w.shape[0])
    require_device_of("cu_seqlens", cu_seqlens, "w", w)
    if schedule is not None:
        require_schedule(schedule, w.shape[0], w.device)


def _limit(w: Tensor, schedule: SegmentSchedule | None) -> str | None:
    """Why the kernels can not take these sizes, if so."""
    if w.shape[-1] not in PIECES:
        known = ", ".join(str(width) for width in PIECES)
        return f"w has heads of {w.shape[-1]} and the kernels take {known}; choose another number of heads"
    if schedule is not None and schedule.tile_rows > ROWS[-1]:
        return f"schedule.tile_rows is {schedule.tile_rows} and the kernels take {ROWS[-1]}; cut it to that"
    return None
