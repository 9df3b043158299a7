"""The public function: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

import torch

from .._check import (
    require_choice,
    require_device_of,
    require_float,
    require_integer,
    require_like,
    require_number,
    require_shape,
    require_whole,
)
from .._dispatch import is_fused, outside_autocast
from . import ops, reference
from .tiles import MAX_COLUMNS, MAX_HIDDEN, MAX_WIDTH

if TYPE_CHECKING:
    from torch import Tensor

    from .._dispatch import Implementation

Norm = Literal["none", "rms", "layer"]
Activation = Literal["silu", "gelu"]

_NORMS: Final = {"none": reference.NO_NORM, "rms": reference.RMS_NORM, "layer": reference.LAYER_NORM}
_ACTIVATIONS: Final = {"silu": reference.SILU_MLP, "gelu": reference.GELU_MLP}


class SoftBins(NamedTuple):
    """A value as a mixture of `K` learned bins, ``softmax(scores(x)) @ table``: auto-discretisation [1]_.

    ``scores(x) = weight * x + bias`` without `mixing`, else ``mixing @ leaky_relu(weight * x + bias)`` with
    slope 0.1. The residual of [1]_, ``mixing @ h + alpha * h``, is ``mixing + alpha * I``.
    """

    weight: Tensor
    """[M], the first layer; ``M = K`` without `mixing`."""
    bias: Tensor
    """[M]"""
    table: Tensor
    """[K, D], the embedding of each bin."""
    mixing: Tensor | None = None
    """[K, M], the second layer."""


class ValueMLP(NamedTuple):
    """A value through two layers, ``activation(weight * x + bias) @ table + offset``."""

    weight: Tensor
    """[M]"""
    bias: Tensor
    """[M]"""
    table: Tensor
    """[M, D], the second layer (the transpose of a `torch.nn.Linear`'s weight)."""
    offset: Tensor
    """[D], its bias."""
    activation: Activation = "silu"
    """``"silu"``, or ``"gelu"`` (by its tanh approximation)."""


def embed_genes(
    genes: Tensor,
    values: Tensor | None = None,
    *,
    gene_table: Tensor,
    encoding: SoftBins | ValueMLP | None = None,
    streams: Tensor | None = None,
    stream_table: Tensor | None = None,
    value_stream: int | None = None,
    prefix_table: Tensor | None = None,
    norm: Norm = "layer",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    implementation: Implementation = "auto",
) -> Tensor:
    """``norm(gene_table[gene] + encoding(value) + stream_table[stream]) * weight + bias`` for each token.

    The input layer of a single-cell transformer over packed cells: one read of the gene's row, one write of
    the token. The arrays `indices` and `data` of a CSR matrix are `genes` and `values` as they are, and its
    `indptr` is the ``cu_seqlens`` of attention over the result.

    Parameters
    ----------
    genes
        Gene of each token, ``[T]``, int32 or int64: a row of `gene_table`. A negative id ``-1 - j`` is a
        learned token such as CLS: it takes row `j` of `prefix_table` in place of a gene's, and no value. On
        CUDA ids are not checked, as that would wait for the GPU; one past the end of its table reads as a row
        of zeros.
    values
        Expression of each token, ``[T]``, of any supported dtype; given if and only if `encoding` is. What
        stands where a token has no value is not looked at.
    gene_table
        ``[G, D]``, float32, bfloat16, float16 or float64; all weights have its dtype.
    encoding
        How a value becomes a row of `D` numbers: :class:`SoftBins` or :class:`ValueMLP`.
    streams, stream_table
        Stream of each token, ``[T]``, int32 or int64, and the row of each stream, ``[S, D]``, also added to
        learned tokens. A `stream_table` of one row needs no `streams`.
    value_stream
        The only stream whose tokens have values (the other orders its genes by rank, and says so within
        attention); None: all have.
    prefix_table
        ``[P, D]``, learned tokens; needed if and only if ids are negative. A mask token belongs here if its
        value is to be hidden too, else at the end of `gene_table`.
    norm
        ``"layer"``: subtract the mean and divide by the deviation; ``"rms"``: divide by the root mean square;
        ``"none"``: neither (what enters the residual stream of a pre-norm transformer).
    weight, bias
        Gain and shift after `norm`, ``[D]``; None for 1 and 0.
    eps
        Added to the variance or the mean square.
    implementation
        * ``"auto"``: the Triton kernels on CUDA, else PyTorch.
        * ``"reference"``: the definition in plain PyTorch, which can be differentiated any number of times.
        * ``"triton"``: the kernels, or an error where they can not run.

    Returns
    -------
    Tensor
        ``[T, D]`` in the dtype of `gene_table`. Differentiable once in `values` and in every weight; the
        gradients are deterministic, that of `gene_table` too, which is dense.

    Raises
    ------
    TypeError
        An argument is not a tensor, or its dtype is not supported or differs from that of `gene_table`.
    ValueError
        A shape or device does not fit, arguments that belong together are not given together, `eps` is
        negative, `norm` or `implementation` is unknown or can not be had.

    References
    ----------
    .. [1] J. Gong et al., "xTrimoGene: An Efficient and Scalable Representation Learner for Single-Cell
       RNA-Seq Data", NeurIPS 2023.

    Examples
    --------
    >>> bins = scdd.kernels.SoftBins(weight, bias, table)
    >>> tokens = scdd.kernels.embed_genes(
    ...     indices, data.log1p(), gene_table=gene_table, encoding=bins, norm="none"
    ... )
    """
    _check_tokens(genes, values, streams, gene_table)
    _check_weights(gene_table, encoding, stream_table, prefix_table, weight, bias)
    _check_together(values, encoding, streams, stream_table, value_stream)
    require_choice("norm", norm, get_args(Norm))
    require_number("eps", eps)
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; it is added to a variance and can not be negative")
    if values is not None:
        values = values.to(torch.float64 if gene_table.dtype == torch.float64 else torch.float32)
    operands = (
        genes, values, streams if stream_table is not None or value_stream is not None else None,
        gene_table, prefix_table, *_operands_of(encoding, stream_table), weight, bias,
        _mode(encoding), -1 if value_stream is None else value_stream, _NORMS[norm], eps,
    )  # fmt: skip
    if is_fused(implementation, gene_table, limit=_limit(operands)):
        return ops.EmbedGenes.apply(*operands)
    return reference.embed(*operands)


@outside_autocast
def _operands_of(
    encoding: SoftBins | ValueMLP | None, stream_table: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """`weight`, `bias`, `mixing`, and all rows that are added to a gene's as one table."""
    rows = []
    if encoding is not None:
        rows.append(encoding.table)
    if isinstance(encoding, ValueMLP):
        rows.append(encoding.offset[None])
    if stream_table is not None:
        rows.append(stream_table)
    table = torch.cat(rows) if len(rows) > 1 else rows[0] if rows else None
    if encoding is None:
        return None, None, None, table
    return encoding.weight, encoding.bias, getattr(encoding, "mixing", None), table


def _mode(encoding: SoftBins | ValueMLP | None) -> int:
    if encoding is None:
        return reference.NO_VALUES
    if isinstance(encoding, ValueMLP):
        return _ACTIVATIONS[encoding.activation]
    return reference.SOFT_BINS if encoding.mixing is None else reference.MIXED_BINS


def _limit(operands: tuple) -> str | None:
    """Why the kernels can not hold these sizes, if so."""
    x = reference.Operands(*operands)
    width = x.gene_table.shape[1]
    if width > MAX_WIDTH:
        return (
            f"gene_table has width {width} and the kernels take at most {MAX_WIDTH}; make the model narrower"
        )
    if x.table is not None and x.table.shape[0] > MAX_COLUMNS:
        return (
            f"bins (or hidden units), offset and streams are {x.table.shape[0]} rows together, the kernels "
            f"take at most {MAX_COLUMNS}; use fewer bins"
        )
    if x.mixing is not None and x.mixing.shape[1] > MAX_HIDDEN:
        columns = x.mixing.shape[1]
        return f"encoding.mixing has {columns} columns, the kernels take at most {MAX_HIDDEN}; use fewer"
    return None


def _check_tokens(genes: Tensor, values: Tensor | None, streams: Tensor | None, gene_table: Tensor) -> None:
    require_float("gene_table", gene_table)
    if gene_table.ndim != 2 or gene_table.shape[0] == 0 or gene_table.shape[1] == 0:
        raise ValueError(f"gene_table has shape {tuple(gene_table.shape)}; give it [G, D] with G and D > 0")
    require_integer("genes", genes)
    if genes.ndim != 1:
        raise ValueError(f"genes has shape {tuple(genes.shape)}; pack the tokens of all cells, [T]")
    require_device_of("genes", genes, "gene_table", gene_table)
    if values is not None:
        require_float("values", values)
        require_shape("values", values, tuple(genes.shape), "[T], one a token")
        require_device_of("values", values, "gene_table", gene_table)
    if streams is not None:
        require_integer("streams", streams)
        require_shape("streams", streams, tuple(genes.shape), "[T], one a token")
        require_device_of("streams", streams, "gene_table", gene_table)


def _check_weights(
    gene_table: Tensor, encoding: SoftBins | ValueMLP | None, stream_table: Tensor | None,
    prefix_table: Tensor | None, weight: Tensor | None, bias: Tensor | None,
) -> None:  # fmt: skip
    like = ("gene_table", gene_table)
    width = gene_table.shape[1]
    for name, table, rows in (("stream_table", stream_table, "S"), ("prefix_table", prefix_table, "P")):
        if table is not None:
            _require_table(name, table, rows, gene_table)
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            require_like(name, vector, (width,), "[D]", *like)
    if encoding is None:
        return
    if not isinstance(encoding, (SoftBins, ValueMLP)):
        raise TypeError(f"encoding is a {type(encoding).__name__}; pass SoftBins or ValueMLP")
    _require_table("encoding.table", encoding.table, "K", gene_table)
    hidden = count = encoding.table.shape[0]
    if isinstance(encoding, ValueMLP):
        require_like("encoding.offset", encoding.offset, (width,), "[D]", *like)
        require_choice("encoding.activation", encoding.activation, get_args(Activation))
    elif encoding.mixing is not None:
        hidden = encoding.weight.shape[-1]
        require_like("encoding.mixing", encoding.mixing, (count, hidden), "[K, M]", *like)
    for name, vector in (("weight", encoding.weight), ("bias", encoding.bias)):
        require_like(f"encoding.{name}", vector, (hidden,), "[M]", *like)


def _require_table(name: str, table: Tensor, rows: str, gene_table: Tensor) -> None:
    require_float(name, table)
    if table.ndim != 2 or table.shape[0] == 0:
        raise ValueError(f"{name} has shape {tuple(table.shape)}; give it [{rows}, D] with {rows} > 0")
    shape = (table.shape[0], gene_table.shape[1])
    require_like(name, table, shape, f"[{rows}, D]", "gene_table", gene_table)


def _check_together(
    values: Tensor | None, encoding: object, streams: Tensor | None, stream_table: Tensor | None,
    value_stream: int | None,
) -> None:  # fmt: skip
    if (values is None) != (encoding is None):
        given, missing = ("encoding", "values") if values is None else ("values", "encoding")
        raise ValueError(f"{given} is given and {missing} is not; give both, or neither")
    if stream_table is not None and streams is None and stream_table.shape[0] != 1:
        raise ValueError(
            f"stream_table has {stream_table.shape[0]} rows and streams is None; "
            "pass the stream of each token, or one row"
        )
    if value_stream is not None:
        require_whole("value_stream", value_stream)
    if value_stream is not None and streams is None:
        raise ValueError(f"value_stream is {value_stream} and streams is None; pass the stream of each token")
    if value_stream is not None and value_stream < 0:
        raise ValueError(f"value_stream is {value_stream}; streams count from 0, and None is for all")
