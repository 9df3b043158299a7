"""The same sums block by block, in bounded memory: what a CPU runs.

Blocks of 1024 x 1024 pairs stay near the caches, and with their temporaries take some 16 MB in float32,
whatever the samples. Only blocks on and above the diagonal are formed. Beside them there is one centred copy
of the samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from .reference import derivative_factors, joint_mean, rounding, wide, wide_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK: Final = 1024


@dataclass(frozen=True, slots=True)
class _Joint:
    """The centred joint sample [N, G], the squared length of each row [N], weights [N], and the rows of x."""

    z: Tensor
    lengths: Tensor
    weights: Tensor | None
    rows_x: int


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows `i` and columns `j` of the matrix of pairs, each of one sample, and their squared distances."""

    i: slice
    j: slice
    kind: int
    d2: Tensor

    @property
    def diagonal(self) -> bool:
        return self.i == self.j


def forward(
    x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None, rates: Tensor, form: str
) -> Tensor:
    """The three sums over pairs, [3, K] in float64."""
    joint = _join(x, y, weights_x, weights_y)
    sums = torch.zeros(3, len(rates), dtype=torch.float64, device=x.device)
    for block in _blocks(joint):
        for k, kernel in enumerate(_kernels(block, rates, form)):
            total = _weighted_total(kernel, joint.weights, block)
            sums[block.kind, k] += total / 2 if block.diagonal else total
    return sums


def backward(
    dsums: Tensor, x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None,
    rates: Tensor, form: str, need_x: bool, need_y: bool, need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, y and both weights; empty where they are not needed."""
    joint = _join(x, y, weights_x, weights_y)
    factors = derivative_factors(dsums, rates, form).to(joint.z.dtype).tolist()
    values = dsums.to(joint.z.dtype).tolist()
    wanted = (need_x, need_y)
    pull, push = torch.zeros_like(joint.z), torch.zeros_like(joint.lengths)
    dweights = torch.zeros_like(joint.lengths) if need_weights else None
    for block in _blocks(joint):
        sides = (wanted[block.kind > 1], wanted[block.kind > 0])
        if dweights is not None:
            matrix = _combine(_kernels(block, rates, form), values[block.kind])
            _scatter_weights(dweights, joint, block, matrix)
        if any(sides):
            matrix = _combine(_kernels(block, rates, form, slopes=True), factors[block.kind])
            _scatter_rows(pull, push, joint, block, matrix, sides)
    dz = joint.z.mul_(push[:, None]).sub_(pull)
    none = x.new_empty(0)
    dweights_x, dweights_y = (none, none) if dweights is None else dweights.split([len(x), len(y)])
    return (
        dz[: len(x)].to(x.dtype, copy=True) if need_x else none,
        dz[len(x) :].to(x.dtype, copy=True) if need_y else none,
        dweights_x.clone(),
        dweights_y.clone(),
    )


def products(x: Tensor, y: Tensor, rates: Tensor, form: str, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix of pairs times `labels`, [N, Q], and its column sums, [N]."""
    joint = _join(x, y, None, None)
    out, columns = torch.zeros_like(labels), labels.new_zeros(len(labels))
    for block in _blocks(joint):
        matrix = _combine(_kernels(block, rates, form), [1.0] * len(rates)).to(labels.dtype)
        out[block.i].addmm_(matrix, labels[block.j])
        columns[block.j] += matrix.sum(0)
        if not block.diagonal:
            out[block.j].addmm_(matrix.T, labels[block.i])
            columns[block.i] += matrix.sum(1)
    return out, columns


def _join(x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None) -> _Joint:
    centre = wide(joint_mean(x, y))
    z = torch.empty((len(x) + len(y), x.shape[1]), dtype=wide_dtype(x), device=x.device)
    torch.sub(x, centre, out=z[: len(x)])
    torch.sub(y, centre, out=z[len(x) :])
    lengths = torch.linalg.vecdot(z, z)
    weights = None if weights_x is None or weights_y is None else torch.cat((weights_x, weights_y))
    return _Joint(z, lengths, weights, len(x))


def _blocks(joint: _Joint) -> Iterator[_Block]:
    """Every block on and above the diagonal; none holds rows of both samples on one side."""
    rows, cut = len(joint.z), joint.rows_x
    parts = [slice(a, min(a + BLOCK, cut)) for a in range(0, cut, BLOCK)]
    parts += [slice(a, min(a + BLOCK, rows)) for a in range(cut, rows, BLOCK)]
    for index, i in enumerate(parts):
        for j in parts[index:]:
            kind = int(i.start >= cut) + int(j.start >= cut)
            yield _Block(i, j, kind, _squared_distances(joint, i, j))


def _squared_distances(joint: _Joint, i: slice, j: slice) -> Tensor:
    lengths = joint.lengths[i, None] + joint.lengths[j]
    d2 = torch.addmm(lengths, joint.z[i], joint.z[j].T, alpha=-2)
    d2.masked_fill_(d2 <= lengths.mul_(rounding(d2)), 0)
    return d2.fill_diagonal_(0) if i == j else d2


def _kernels(block: _Block, rates: Tensor, form: str, *, slopes: bool = False) -> Iterator[Tensor]:
    """The K functions of a block, zero on the diagonal; each is overwritten once the next is asked for."""
    if form == "distance":
        kernel = block.d2.sqrt()
        if slopes:
            kernel = kernel.reciprocal_().masked_fill_(block.d2 == 0, 0)
        yield kernel
        return
    for k, rate in enumerate(rates.tolist()):
        if form == "doubling" and k:
            kernel.square_()
        else:
            kernel = (block.d2 * -rate).exp2_()
            if block.diagonal:
                kernel.fill_diagonal_(0)
        yield kernel


def _combine(kernels: Iterator[Tensor], factors: list[float]) -> Tensor:
    total = None
    for kernel, factor in zip(kernels, factors, strict=True):
        total = kernel * factor if total is None else total.add_(kernel, alpha=factor)
    assert total is not None
    return total


def _weighted_total(kernel: Tensor, weights: Tensor | None, block: _Block) -> Tensor:
    if weights is None:
        return kernel.sum(1).sum(dtype=torch.float64)
    return (kernel @ weights[block.j]).double() @ weights[block.i].double()


def _scatter_weights(dweights: Tensor, joint: _Joint, block: _Block, matrix: Tensor) -> None:
    assert joint.weights is not None
    dweights[block.i] += matrix @ joint.weights[block.j]
    if not block.diagonal:
        dweights[block.j] += joint.weights[block.i] @ matrix


def _scatter_rows(
    pull: Tensor, push: Tensor, joint: _Joint, block: _Block, matrix: Tensor, sides: tuple[bool, bool]
) -> None:
    """Add what a block gives to ``sum_j c_ij z_j`` and to ``sum_j c_ij``, on the sides that are wanted."""
    i, j = block.i, block.j
    if joint.weights is not None:
        matrix.mul_(joint.weights[i, None]).mul_(joint.weights[j])
    if sides[0]:
        pull[i].addmm_(matrix, joint.z[j])
        push[i] += matrix.sum(1)
    if sides[1] and not block.diagonal:
        pull[j].addmm_(matrix.T, joint.z[i])
        push[j] += matrix.sum(0)
