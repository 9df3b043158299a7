"""The masked tokens gathered, and their logits made and spent one chunk at a time.

The products are left to the BLAS: at this size they are nearly all of the work, and a kernel of our own would
have to compute the logits twice to keep them out of memory. What a kernel saves is the traffic of the softmax
between them, so that alone is passed in, as `softmax`.

The number of masked tokens is on the device. `index` therefore always has `rows` places; those left over hold
T, one past the last token, and stand for a token of zeros that is ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor

from . import tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Problem(NamedTuple):
    """The arguments of the operator, and the function that turns logits into losses or gradients."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    ignore_index: int
    softmax: Callable[..., None]


class Gradients(NamedTuple):
    """Of the gathered tokens [rows, D], the weight [V, D] and the bias [V]; empty where not wanted."""

    rows: Tensor
    weight: Tensor
    bias: Tensor


class _Chunk(NamedTuple):
    where: slice
    hidden: Tensor
    target: Tensor
    logits: Tensor


# numbers of a row of logits that the BLAS and the kernel read fast whatever the vocabulary: 128 bytes
_ALIGNED_ROW: Final = 64


def gather(target: Tensor, ignore_index: int, rows: int) -> Tensor:
    """Positions of the first `rows` masked tokens in their order, [rows]; T where there are fewer."""
    tokens = target.shape[0]
    masked = target != ignore_index
    place = torch.where(masked, masked.cumsum(0) - 1, rows).clamp_max_(rows)
    # all that has no place is written to one more, which is cut off
    index = torch.full((rows + 1,), tokens, dtype=torch.int64, device=target.device)
    return index.scatter_(0, place, torch.arange(tokens, device=target.device))[:rows]


def scatter(values: Tensor, index: Tensor, tokens: int) -> Tensor:
    """The inverse of `gather`: [rows, ...] to [T, ...], zero where no row belongs."""
    out = values.new_zeros((tokens + 1, *values.shape[1:]))
    return out.index_copy_(0, index, values)[:tokens]


def forward(problem: Problem, index: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and logarithms of the sums of exponentials, both [rows]."""
    losses, lse = _statistics(problem, index), _statistics(problem, index)
    for chunk in _chunks(problem, index):
        _softmax(problem, chunk, losses, lse, None, lse_known=False, gradient=False)
    return losses, lse


def gradients(
    problem: Problem, index: Tensor, wanted: tuple[bool, bool, bool], *,
    lse: Tensor | None = None, dlosses: Tensor | None = None,
) -> tuple[Tensor, Gradients]:  # fmt: skip
    """Losses [rows] (unless `lse` is known) and the gradients of their sum, weighted by `dlosses`."""
    losses, known = _statistics(problem, index), lse is not None
    lse = _statistics(problem, index) if lse is None else lse
    want_hidden, want_weight, want_bias = wanted
    hidden, weight = problem.hidden, problem.weight
    dhidden = hidden.new_zeros((index.shape[0], hidden.shape[1]) if want_hidden else 0)
    dweight, dbias = _Sum(weight, want_weight), _Sum(weight[:, 0], want_bias)
    for chunk in _chunks(problem, index):
        _softmax(problem, chunk, losses, lse, dlosses, lse_known=known, gradient=True)
        if want_hidden:
            torch.mm(chunk.logits, weight, out=dhidden[chunk.where])
        if want_weight:
            dweight.add_product(chunk.logits.t(), chunk.hidden)
        if want_bias:
            dbias.add(chunk.logits.sum(0, dtype=lse.dtype))
    return losses, Gradients(dhidden, dweight.total(), dbias.total())


class _Sum:
    """A gradient shaped like `like` added up in float32 over the chunks; empty if it is not wanted."""

    def __init__(self, like: Tensor, wanted: bool) -> None:
        self.like, self.wanted = like, wanted
        self.sum: Tensor | None = None

    def add(self, part: Tensor) -> None:
        if self.sum is None:
            # one chunk is often all there is, and then this is the result
            self.sum = part
        elif self.sum.dtype == part.dtype and part.dtype in (torch.float32, torch.float64):
            self.sum += part
        else:
            self.sum = self.sum.float().add_(part)

    def add_product(self, a: Tensor, b: Tensor) -> None:
        if self.sum is not None and self.sum.dtype == a.dtype and a.dtype in (torch.float32, torch.float64):
            self.sum.addmm_(a, b)
        else:
            self.add(torch.mm(a, b))

    def total(self) -> Tensor:
        if not self.wanted:
            return self.like.new_empty(0)
        if self.sum is None:
            return self.like.new_zeros(self.like.shape)
        return self.sum.to(self.like.dtype)


def _statistics(problem: Problem, index: Tensor) -> Tensor:
    dtype = torch.float64 if problem.hidden.dtype == torch.float64 else torch.float32
    return torch.zeros(index.shape[0], dtype=dtype, device=index.device)


def rows_to_compute(index: Tensor, tokens: int) -> int:
    """Those of the masked tokens where their number is at hand, else all that were gathered."""
    return index.shape[0] if index.is_cuda else int((index < tokens).sum())


def _chunks(problem: Problem, index: Tensor) -> Iterator[_Chunk]:
    """Tokens of each chunk with their targets and logits; the logits of the last chunk are written over."""
    hidden, weight, _, target, ignore_index, _ = problem
    tokens, vocabulary = hidden.shape[0], weight.shape[0]
    rows = rows_to_compute(index, tokens)
    if not rows:
        return
    size = tiles.chunk_rows(rows, vocabulary, hidden.element_size(), on_gpu=hidden.is_cuda)
    width = -(-vocabulary // _ALIGNED_ROW) * _ALIGNED_ROW
    buffer = hidden.new_empty((size, width))
    # a BLAS may read past the end of a row, times zero: oneDNN does where the vocabulary is odd
    buffer[:, vocabulary:].zero_()
    for first in range(0, rows, size):
        where = slice(first, min(first + size, rows))
        place = index[where]
        absent = place == tokens
        place = place.clamp_max(tokens - 1)
        # zeros, as the product with a gradient of zero would keep a NaN
        some = hidden[place].masked_fill_(absent.unsqueeze(1), 0)
        logits = torch.mm(some, weight.t(), out=buffer[: some.shape[0], :vocabulary])
        yield _Chunk(where, some, target[place].masked_fill_(absent, ignore_index), logits)


def _softmax(
    problem: Problem, chunk: _Chunk, losses: Tensor, lse: Tensor, dlosses: Tensor | None, *,
    lse_known: bool, gradient: bool,
) -> None:  # fmt: skip
    problem.softmax(
        chunk.logits, problem.bias, chunk.target, problem.ignore_index, losses[chunk.where],
        lse[chunk.where], None if dlosses is None else dlosses[chunk.where],
        lse_known=lse_known, gradient=gradient,
    )  # fmt: skip
