"""What the step with an overcomplete dictionary computes, in plain PyTorch.

`overcomplete_step` is the definition, written for reading. `forward` and `backward` are the same mathematics
with its gradient written out; they are what a CPU runs.

Shapes: `x`, `residual`, `v`, `missed`, `out` and their gradients are [C, R, N] or [C, N]; `z1` and `z2` alike
with K columns, one for each atom; `gate` is [C, N], `dictionary` and `readout` [N, K], and `level`, the step
size times the threshold, [K]. Where there is no `level` it is the float `offset`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._dispatch import outside_autocast
from .reference import count_zeros, gated, none, per_row, sum_rows, wide


@outside_autocast
def overcomplete_step(
    x: Tensor, dictionary: Tensor, readout: Tensor, level: Tensor | None, offset: float, step_size: float,
    residual: Tensor | None, gate: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Two steps from zero towards the sparse code of `x`, read out; and the number of zeros of the code."""
    wide_x, d = wide(x), wide(dictionary)
    price = offset if level is None else level
    z1 = torch.relu(step_size * wide_x @ d - price)
    z2 = torch.relu(z1 - step_size * (z1 @ d.mT - wide_x) @ d - price)
    return gated(z2 @ wide(readout).mT, residual, gate).to(x.dtype), count_zeros(z2, x.dtype)


def forward(
    x: Tensor, dictionary: Tensor, readout: Tensor, level: Tensor | None, offset: float, step_size: float,
    residual: Tensor | None, gate: Tensor | None, keep: bool, count: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`out`; `z1`, ``missed = x - D z1``, `z2` and `v`, each empty unless to be kept; the number of zeros."""
    rows, d = wide(x).flatten(0, -2), wide(dictionary)
    price = offset if level is None else level
    z1 = (rows @ d).mul_(step_size).sub_(price).relu_()
    missed = torch.addmm(rows, z1, d.mT, alpha=-1)
    z2 = torch.sub(z1, price).addmm_(missed, d, alpha=step_size).relu_()
    v = (z2 @ wide(readout).mT).view(x.shape)
    zeros = count_zeros(z2, x.dtype) if count else none(x, torch.int64)
    ungated = residual is None and gate is None
    out = (v if ungated else gated(v, residual, gate)).to(x.dtype)
    if not keep:
        return out, *(none(x) for _ in range(4)), zeros
    kept = (t.to(x.dtype).view(*x.shape[:-1], t.shape[-1]) for t in (z1, missed, z2))
    return out, *kept, none(x) if gate is None else v.to(x.dtype), zeros


def backward(
    dout: Tensor, x: Tensor, dictionary: Tensor, readout: Tensor, z1: Tensor, missed: Tensor, z2: Tensor,
    v: Tensor, gate: Tensor | None, step_size: float,
    need_x: bool, need_dictionary: bool, need_readout: bool, need_level: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`dx`, `ddictionary`, `dreadout`, `dlevel` and `dgate`, each empty where it is not needed."""
    g, dgate = wide(dout), none(x)
    if gate is not None:
        dgate = sum_rows(g * wide(v)).to(x.dtype)
        g = g * per_row(gate, x)
    g, d = g.flatten(0, -2), wide(dictionary)
    first, second, rows, error = (wide(t).flatten(0, -2) for t in (z1, z2, x, missed))
    g2 = torch.ops.aten.threshold_backward(g @ wide(readout), second, 0)
    dmissed = (g2 @ d.mT).mul_(step_size)
    g1 = torch.ops.aten.threshold_backward(torch.addmm(g2, dmissed, d, alpha=-1), first, 0)
    dx = torch.addmm(dmissed, g1, d.mT, alpha=step_size).to(x.dtype).view(x.shape) if need_x else none(x)
    ddictionary = none(x)
    if need_dictionary:
        total = (rows.mT @ g1).addmm_(error.mT, g2, beta=step_size, alpha=step_size)
        ddictionary = total.addmm_(dmissed.mT, first, alpha=-1).to(x.dtype)
    dreadout = (g.mT @ second).to(x.dtype) if need_readout else none(x)
    return dx, ddictionary, dreadout, -(g1.sum(0) + g2.sum(0)) if need_level else none(g), dgate
