"""The public functions: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from .. import _dispatch
from .._biases import Biases, bias_dtype, require_biases
from .._check import (
    require_device_of,
    require_dims,
    require_flag,
    require_float,
    require_integer,
    require_like,
    require_number,
    require_shape,
    require_whole,
)
from .._dispatch import is_fused
from .._segments import require_lengths, require_schedule, segment_schedule
from . import ops, reference, tiles

if TYPE_CHECKING:
    from torch import Tensor

    from .._dispatch import Implementation
    from .._segments import SegmentSchedule


class AttentionRows(NamedTuple):
    """What :func:`attention_rows` returns; those of several batches may be added."""

    sums: Tensor
    """``[R, n_genes]``, or ``[R, H, n_genes]`` per head; float32 (float64 for float64 input)."""
    counts: Tensor
    """int32 ``[R, n_genes]``, how many pairs of tokens each sum is over: with a gene once in a segment, the
    number of segments that hold both."""


def attention_mass(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
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
    """``mass_jh = sum_i exp(score_ijh - lse_ih)``: how much attention token `j` gets from its segment.

    The scores are those of :func:`segment_attention` over the same arguments, ``scale q_i.k_j + key_weight_h
    log1p(key_value_j) - slope_h |coordinate_i - coordinate_j|``, and `lse` is what
    :func:`segment_attention_with_lse` returned for them. No map of attention is ever in memory.

    Parameters
    ----------
    q, k
        Queries and keys, ``[T, H, D]``: the rows of all segments end to end. float32, bfloat16, float16 or
        float64. Pieces of one larger projection are read in place.
    lse
        Logarithm of the sum of exponentials of each query's scores, ``[T, H]``, float32 (float64 for
        float64).
    cu_seqlens
        int32 or int64 ``[S + 1]``, the row where each segment starts.
    scale
        Positive; by default ``1 / sqrt(D)``.
    key_weight, key_value, slope, coordinate
        ``[H]``, ``[T]``, ``[H]``, ``[T]``, as in :func:`segment_attention`; each pair together or not at all.
    schedule
        How the rows are cut into tiles; by default made anew.
    implementation
        * ``"auto"``: the Triton kernel on CUDA, else PyTorch.
        * ``"reference"``: the definition in plain PyTorch.
        * ``"triton"``: the kernel, or an error where it can not run. It takes `D` of 32, 64, 96 and 128.

    Returns
    -------
    Tensor
        ``[T, H]``, float32 (float64 for float64). Over the tokens of a segment it sums to its length. It has
        no gradient: inputs that ask for one are detached.

    Raises
    ------
    TypeError
        An argument is not a tensor, or its dtype is not supported or does not fit.
    ValueError
        A shape or device does not fit, one of a pair of arguments is missing, `scale` is not positive,
        `cu_seqlens` is wrong, or `implementation` is unknown or can not be had.

    Examples
    --------
    >>> _, lse = scdd.kernels.segment_attention_with_lse(q, k, v, cu_seqlens)
    >>> importance = scdd.kernels.attention_mass(q, k, lse, cu_seqlens).mean(1)
    """
    _check(q, k, lse, cu_seqlens, scale)
    biases = _biases(q, key_weight, key_value, slope, coordinate)
    if schedule is not None:
        require_schedule(schedule, len(q), q.device)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    q, k, lse = q.detach(), k.detach(), lse.detach()
    if not is_fused(implementation, q, limit=_limit(q)):
        return reference.attention_mass(q, k, lse, cu_seqlens, None, None, *biases, scale, 0)
    cut: tuple[Tensor | None, Tensor | None, int] = (None, None, 0)
    if q.device.type != "cpu" or _dispatch.INTERPRET:
        cut = schedule or _schedule(q, cu_seqlens)
    return ops.mass(q, k, lse, cu_seqlens, *cut[:2], *biases, scale, cut[2])


def attention_rows(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    genes: Tensor,
    chosen: Tensor,
    n_genes: int,
    *,
    per_head: bool = False,
    scale: float | None = None,
    key_weight: Tensor | None = None,
    key_value: Tensor | None = None,
    slope: Tensor | None = None,
    coordinate: Tensor | None = None,
    implementation: Implementation = "auto",
) -> AttentionRows:
    """``sums_rg = sum of attention_ij over i of gene chosen_r, j of gene g in i's segment``, mean over heads.

    Attention from the tokens of a few genes (transcription factors) to those of all genes, added up over the
    segments of a batch: a matrix of genes, without a map of attention in memory. Divide `sums` by `counts`
    for the mean over the cells that hold both. The scores are those of :func:`attention_mass`.

    Parameters
    ----------
    q, k, lse, cu_seqlens
        As in :func:`attention_mass`.
    genes
        Gene of each token, ``[T]``, int32 or int64. Tokens whose id is negative (CLS) or at least `n_genes`
        are left out on both sides.
    chosen
        The genes whose rows are wanted, ``[R]``, int32 or int64, each once.
    n_genes
        Number of genes, the columns of the result.
    per_head
        Keep the heads apart.
    scale, key_weight, key_value, slope, coordinate, implementation
        As in :func:`attention_mass`.

    Returns
    -------
    AttentionRows
        `sums` and `counts`, without a gradient; the same bits every time. On a GPU sums are exact multiples
        of 2^-40, up to 2^23, and a row with a number that is not finite (or a weight of 2 or more, which no
        `lse` of these scores gives) is NaN as a whole.

    Raises
    ------
    TypeError, ValueError
        As in :func:`attention_mass`; `n_genes` is below 1, or `chosen` has an id twice or outside `n_genes`.
        On a GPU the values of `chosen` are checked without waiting: the device stops with an assertion.

    Examples
    --------
    >>> sums, counts = scdd.kernels.attention_rows(q, k, lse, cu_seqlens, genes, factors, 20_000)
    >>> network = sums / counts.clamp(min=1)
    """
    _check(q, k, lse, cu_seqlens, scale)
    biases = _biases(q, key_weight, key_value, slope, coordinate)
    for name, ids in (("genes", genes), ("chosen", chosen)):
        require_integer(name, ids)
        require_dims(name, ids, (1,), "[T]" if name == "genes" else "[R]")
        require_device_of(name, ids, "q", q)
    require_shape("genes", genes, (q.shape[0],), "[T], one a token")
    require_whole("n_genes", n_genes)
    require_flag("per_head", per_head)
    if n_genes < 1:
        raise ValueError(f"n_genes is {n_genes}; pass the size of the vocabulary")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    operands = (
        q.detach(), k.detach(), lse.detach(), cu_seqlens, genes.contiguous(), chosen, *biases, n_genes, scale,
        per_head,
    )  # fmt: skip
    if not is_fused(implementation, q, limit=_limit(q)):
        return AttentionRows(*reference.attention_rows(*operands))
    return AttentionRows(*ops.rows(*operands))


def _schedule(q: Tensor, cu_seqlens: Tensor) -> SegmentSchedule:
    """The schedule of lengths that came without one."""
    made = segment_schedule(cu_seqlens, len(q), tile_rows=tiles.TILE_ROWS)
    return made._replace(tiles=made.tiles.to(q.device), segments=made.segments.to(q.device))


def _check(q: Tensor, k: Tensor, lse: Tensor, cu_seqlens: Tensor, scale: float | None) -> None:
    """Refuse what no implementation can take; biases apart."""
    require_float("q", q)
    require_dims("q", q, (3,), "[T, H, D]")
    if not q.shape[1] or not q.shape[2]:
        raise ValueError(f"q has shape {tuple(q.shape)}; reshape it to [T, H, D] with H > 0 and D > 0")
    require_like("k", k, tuple(q.shape), "that of q", "q", q)
    require_float("lse", lse)
    require_shape("lse", lse, tuple(q.shape[:2]), "[T, H]")
    if lse.dtype != bias_dtype(q):
        raise TypeError(f"lse has dtype {lse.dtype}; cast it with lse.to({bias_dtype(q)})")
    require_device_of("lse", lse, "q", q)
    require_lengths(cu_seqlens, len(q))
    if cu_seqlens.device.type != "cpu":
        require_device_of("cu_seqlens", cu_seqlens, "q", q)
    if scale is not None:
        require_number("scale", scale)
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; it must be positive, None for 1 / sqrt(D)")


def _biases(
    q: Tensor, key_weight: Tensor | None, key_value: Tensor | None, slope: Tensor | None,
    coordinate: Tensor | None,
) -> Biases:  # fmt: skip
    """The biases without their gradients, once they are known to fit."""
    biases = Biases(key_weight, key_value, slope, coordinate)
    require_biases(q, biases)
    return Biases(*(None if b is None else b.detach().contiguous() for b in biases))


def _limit(q: Tensor) -> str | None:
    """Why the kernels can not take the head dimension of `q`, if so."""
    if q.shape[-1] in tiles.WIDTHS:
        return None
    known = ", ".join(map(str, tiles.WIDTHS))
    return f"q has head dimension {q.shape[-1]} and the kernels take {known}; pad q and k"
