"""What the operator computes, in plain PyTorch.

`embed` is the definition, written for reading. `embed_forward` and `embed_backward` are what CPU tensors get:
the same numbers, with the gradients written out.

Shapes, in all of them: `genes` and `streams` [T], `values` [T]; `gene_table` [G, D], `prefix_table` [P, D];
`weight` and `bias` [M]; `mixing` [K, M]; `table` [E, D]; `gain` and `shift` [D]; `y` [T, D]; `mean` and
`rstd` [T, 1].

All that is added to the row of a gene is one product ``weights @ table``. The rows of `table` are the K bins
or hidden units of the value encoding, for an MLP its output bias, and one row for each stream; `weights` [T,
E] are the activations, whether the token has a value, and a one in the column of its stream.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._dispatch import outside_autocast

# How values are encoded, and how tokens are normalised, as the operators name it.
NO_VALUES, SOFT_BINS, MIXED_BINS, SILU_MLP, GELU_MLP = range(5)
NO_NORM, RMS_NORM, LAYER_NORM = range(3)

LEAK: Final = 0.1
GELU_SCALE: Final = 0.7978845608028654
GELU_CUBIC: Final = 0.044715


class Operands(NamedTuple):
    """All that the operators take, in the order of their schema."""

    genes: Tensor
    values: Tensor | None
    streams: Tensor | None
    gene_table: Tensor
    prefix_table: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mixing: Tensor | None
    table: Tensor | None
    gain: Tensor | None
    shift: Tensor | None
    mode: int
    value_stream: int
    norm: int
    eps: float


class Columns(NamedTuple):
    """Where the columns of ``weights`` lie: activations, the bias of an MLP, streams."""

    activations: int
    first_stream: int
    streams: int


def columns(x: Operands) -> Columns:
    """Read the layout of ``x.table`` off the shapes of the encoding."""
    if x.table is None:
        return Columns(0, 0, 0)
    mixer = x.mixing if x.mixing is not None else x.weight
    count = 0 if mixer is None else mixer.shape[0]
    first = count + (x.mode in (SILU_MLP, GELU_MLP))
    return Columns(count, first, x.table.shape[0] - first)


@outside_autocast
def embed(*operands: Tensor | float | None) -> Tensor:
    """``norm(gene_table[gene] + weights @ table)``, or the row of `prefix_table` in place of a gene's."""
    x = Operands(*operands)  # type: ignore[arg-type]
    token = _rows_of(x)
    if x.table is not None:
        token = token + _weights(x) @ _wide(x.table)
    if x.norm == LAYER_NORM:
        token = token - token.mean(-1, keepdim=True)
    if x.norm != NO_NORM:
        token = token * torch.rsqrt(token.square().mean(-1, keepdim=True) + x.eps)
    token = token if x.gain is None else token * _wide(x.gain)
    return (token if x.shift is None else token + _wide(x.shift)).to(x.gene_table.dtype)


def embed_forward(*operands: Tensor | float | None) -> tuple[Tensor, Tensor, Tensor]:
    """`y`, and the `mean` (of layer norm) and `rstd` that the gradient needs, empty where there is none."""
    x = Operands(*operands)  # type: ignore[arg-type]
    token = _token(x)
    token, mean, rstd = _normalise(token, x.norm, x.eps)
    if x.gain is not None:
        token = token.mul_(_wide(x.gain)) if x.norm != NO_NORM else token * _wide(x.gain)
    if x.shift is not None:
        token = token.add_(_wide(x.shift)) if x.norm != NO_NORM else token + _wide(x.shift)
    return token.to(x.gene_table.dtype), mean, rstd


def embed_backward(
    dy: Tensor, mean: Tensor, rstd: Tensor, tables: bool, *operands: Tensor | float | None
) -> tuple[Tensor, ...]:
    """Gradients of `values` and of the nine tensors from `gene_table` to `shift`; empty where there is none.

    Without `tables` those of `gene_table` and `prefix_table` are left out, and empty.
    """
    x = Operands(*operands)  # type: ignore[arg-type]
    dy = _wide(dy)
    if x.norm == NO_NORM:
        dtoken, dgain, dshift = dy, dy, dy
        if x.gain is not None:
            dgain, dtoken = dy * _token(x), dy * _wide(x.gain)
    else:
        normed = (_token(x) - mean if x.norm == LAYER_NORM else _token(x)).mul_(rstd)
        dgain, dshift = dy * normed, dy
        dnormed = dy if x.gain is None else dy * _wide(x.gain)
        along = (dnormed * normed).mean(-1, keepdim=True)
        dtoken = torch.addcmul(dnormed, normed, along, value=-1)
        if x.norm == LAYER_NORM:
            dtoken = dtoken.sub_(dnormed.mean(-1, keepdim=True))
        dtoken = dtoken.mul_(rstd)
    tokens = _scatter_rows(x, dtoken) if tables else (_nothing(x), _nothing(x))
    encoding = _encoding_backward(x, dtoken)
    ends = (dgain.sum(0) if x.gain is not None else None, dshift.sum(0) if x.shift is not None else None)
    likes = (x.gene_table, x.prefix_table, x.weight, x.bias, x.mixing, x.table, x.gain, x.shift)
    grads = (*tokens, *encoding[1:], *ends)
    narrow = (
        _nothing(x) if g is None or o is None else g.to(o.dtype) for g, o in zip(grads, likes, strict=True)
    )
    return (_nothing(x, x.values) if encoding[0] is None else encoding[0], *narrow)


def scores_backward(x: Operands, dweights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `values`, `weight`, `bias` and `mixing` from that of the activations, [T, K]."""
    assert x.values is not None
    assert x.weight is not None
    assert x.bias is not None
    valued = _valued(x)[:, None]
    value = torch.where(valued, _wide(x.values)[:, None], 0.0)
    hidden = torch.addcmul(_wide(x.bias), value, _wide(x.weight))
    dhidden = torch.where(valued, dweights, 0.0)
    dmixing = None
    if x.mode in (SILU_MLP, GELU_MLP):
        dhidden = dhidden * _slope(hidden, x.mode)
    else:
        bins = _activations(x, hidden)
        dhidden = bins * (dhidden - (bins * dhidden).sum(-1, keepdim=True))
        if x.mixing is not None:
            dmixing = dhidden.T @ F.leaky_relu(hidden, LEAK)
            dhidden = (dhidden @ _wide(x.mixing)) * (hidden > 0).to(hidden.dtype).mul_(1 - LEAK).add_(LEAK)
    dvalue = torch.where(valued[:, 0], dhidden @ _wide(x.weight), 0.0)
    return dvalue, (dhidden * value).sum(0), dhidden.sum(0), dmixing


def _encoding_backward(x: Operands, dtoken: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of `values`, `weight`, `bias`, `mixing` and `table`."""
    if x.table is None:
        return (None,) * 5
    dtable = _weights(x).T @ dtoken
    if x.values is None:
        return None, None, None, None, dtable
    count = columns(x).activations
    return *scores_backward(x, dtoken @ _wide(x.table[:count]).T), dtable


def _scatter_rows(x: Operands, dtoken: Tensor) -> tuple[Tensor, Tensor | None]:
    """Sum the rows of `dtoken` by gene, and by slot of the prefix."""
    is_gene = (x.genes >= 0)[:, None]
    dgenes = dtoken.new_zeros(x.gene_table.shape)
    dgenes.index_add_(0, x.genes.clamp(min=0), torch.where(is_gene, dtoken, 0.0))
    if x.prefix_table is None:
        return dgenes, None
    slots = (-1 - x.genes.long()).clamp(min=0)
    return dgenes, dtoken.new_zeros(x.prefix_table.shape).index_add_(
        0, slots, torch.where(is_gene, 0.0, dtoken)
    )


def _rows_of(x: Operands) -> Tensor:
    """The row of each token's gene, or of its slot in the prefix: [T, D]."""
    genes = _wide(x.gene_table[x.genes.clamp(min=0).long()])
    if x.prefix_table is None:
        return genes
    slots = (-1 - x.genes.long()).clamp(min=0)
    return torch.where((x.genes >= 0)[:, None], genes, _wide(x.prefix_table[slots]))


def _token(x: Operands) -> Tensor:
    """Tokens before they are normalised."""
    token = _rows_of(x)
    return token if x.table is None else torch.addmm(token, _weights(x), _wide(x.table))


def _normalise(token: Tensor, norm: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if norm == NO_NORM:
        return token, token.new_empty(0), token.new_empty(0)
    if norm == LAYER_NORM:
        return torch.native_layer_norm(token, token.shape[-1:], None, None, eps)
    rstd = torch.rsqrt(token.square().mean(-1, keepdim=True) + eps)
    return token * rstd, token.new_empty(0), rstd


def _weights(x: Operands) -> Tensor:
    """What each token takes of each row of `table`: [T, E]."""
    assert x.table is not None
    layout = columns(x)
    parts = []
    if x.values is not None:
        assert x.weight is not None
        assert x.bias is not None
        valued = _valued(x)[:, None]
        # a token without a value may hold anything there
        value = torch.where(valued, _wide(x.values)[:, None], 0.0)
        hidden = torch.addcmul(_wide(x.bias), value, _wide(x.weight))
        parts.append(torch.where(valued, _activations(x, hidden), 0.0))
        if layout.first_stream > layout.activations:
            parts.append(valued.to(hidden.dtype))
    if layout.streams:
        streams = x.genes.new_zeros(x.genes.shape) if x.streams is None else x.streams
        every = torch.arange(layout.streams, device=x.genes.device)
        parts.append((streams[:, None] == every).to(_wide(x.table[:0]).dtype))
    return torch.cat(parts, 1)


def _activations(x: Operands, hidden: Tensor) -> Tensor:
    """Soft bins or hidden units [T, K] of ``hidden = weight * value + bias`` [T, M]."""
    if x.mode == SILU_MLP:
        return F.silu(hidden)
    if x.mode == GELU_MLP:
        return F.gelu(hidden, approximate="tanh")
    if x.mixing is not None:
        hidden = F.leaky_relu(hidden, LEAK) @ _wide(x.mixing).T
    return hidden.softmax(-1)


def _slope(hidden: Tensor, mode: int) -> Tensor:
    """Derivative of the MLP's activation."""
    if mode == SILU_MLP:
        gate = hidden.sigmoid()
        return gate * (1 + hidden * (1 - gate))
    square = hidden.square()
    gate = (2 * GELU_SCALE * hidden * (1 + GELU_CUBIC * square)).sigmoid()
    return gate + 2 * GELU_SCALE * hidden * gate * (1 - gate) * (1 + 3 * GELU_CUBIC * square)


def _valued(x: Operands) -> Tensor:
    """Whether a token has a value: genes do, within the stream that has values."""
    valued = x.genes >= 0
    return valued if x.value_stream < 0 or x.streams is None else valued & (x.streams == x.value_stream)


def _wide(tensor: Tensor) -> Tensor:
    """`tensor` in the dtype that it is computed in: float64 as it is, all else in float32."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _nothing(x: Operands, like: Tensor | None = None) -> Tensor:
    return (x.gene_table if like is None else like).new_empty(0)
