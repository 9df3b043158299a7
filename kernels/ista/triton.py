"""The steps as launches of two kernels: a product with what follows it, and a gated gradient.

The naming system inside the kernels is described in `scdd.kernels._triton`. Gradients of the dictionaries are
plain products over all rows, with nothing to fuse, and left to PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .gradient import gated_gradient
from .matmul import matmul, room_for_zeros
from .reference import none

if TYPE_CHECKING:
    from torch import Tensor


def ista_forward(
    y: Tensor, operator: Tensor, level: Tensor | None, offset: float,
    residual: Tensor | None, gate: Tensor | None, keep: bool, count: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the step; see `reference.ista_forward`."""
    separate = keep and (residual is not None or gate is not None)
    h = torch.empty_like(y) if separate else None
    zeros = room_for_zeros(y, y.shape[-1]) if count else None
    out = matmul(
        y, operator, transposed=True, added=y, rectify=True, level=level, offset=offset,
        residual=residual, gate=gate, h=h, zeros=zeros,
    )  # fmt: skip
    return out, none(y) if h is None else h, total_zeros(zeros, y)


def ista_backward(
    dout: Tensor, h: Tensor, y: Tensor, operator: Tensor, gate: Tensor | None,
    need_y: bool, need_operator: bool, need_level: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch its gradient; see `reference.ista_backward`."""
    g, dgate, sums = gated_gradient(dout, h, gate, rectified=True, need_sum=need_level)
    dy = matmul(g, operator, transposed=False, added=g) if need_y else none(y)
    doperator = by_column(g) @ y.flatten(0, -2) if need_operator else none(y)
    dlevel = none(y, torch.float32) if sums is None else -sums
    return dy, doperator, dlevel, none(y) if dgate is None else dgate


def overcomplete_forward(
    x: Tensor, dictionary: Tensor, readout: Tensor, level: Tensor | None, offset: float, step_size: float,
    residual: Tensor | None, gate: Tensor | None, keep: bool, count: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Launch both steps and the readout; see `overcomplete_reference.forward`."""
    rectified: dict[str, Any] = {
        "transposed": False,
        "alpha": step_size,
        "rectify": True,
        "level": level,
        "offset": offset,
    }
    zeros = room_for_zeros(x, dictionary.shape[1]) if count else None
    z1 = matmul(x, dictionary, **rectified)
    missed = matmul(z1, dictionary, transposed=True, alpha=-1.0, added=x)
    z2 = matmul(missed, dictionary, **rectified, added=z1, zeros=zeros)
    v = torch.empty_like(x) if keep and gate is not None else None
    out = matmul(z2, readout, transposed=True, residual=residual, gate=gate, h=v)
    kept = (z1, missed, z2, none(x) if v is None else v) if keep else (none(x),) * 4
    return out, *kept, total_zeros(zeros, x)


def overcomplete_backward(
    dout: Tensor, x: Tensor, dictionary: Tensor, readout: Tensor, z1: Tensor, missed: Tensor, z2: Tensor,
    v: Tensor, gate: Tensor | None, step_size: float,
    need_x: bool, need_dictionary: bool, need_readout: bool, need_level: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Launch their gradient; see `overcomplete_reference.backward`."""
    g, dgate = dout, None
    if gate is not None:
        g, dgate, _ = gated_gradient(dout, v, gate, rectified=False, need_sum=False)
    g2 = matmul(g, readout, transposed=False, mask=z2)
    dmissed = matmul(g2, dictionary, transposed=True, alpha=step_size)
    g1 = matmul(dmissed, dictionary, transposed=False, alpha=-1.0, added=g2, mask=z1)
    dx = matmul(g1, dictionary, transposed=True, alpha=step_size, added=dmissed) if need_x else none(x)
    ddictionary = none(x)
    if need_dictionary:
        ddictionary = by_column(x) @ g1.flatten(0, -2)
        ddictionary.addmm_(by_column(missed), g2.flatten(0, -2), beta=step_size, alpha=step_size)
        ddictionary.addmm_(by_column(dmissed), z1.flatten(0, -2), alpha=-1.0)
    dreadout = by_column(g) @ z2.flatten(0, -2) if need_readout else none(x)
    dlevel = none(x, torch.float32)
    if need_level:
        dlevel = -(total(g1) + total(g2))
    return dx, ddictionary, dreadout, dlevel, none(x) if dgate is None else dgate


def total(rows: Tensor) -> Tensor:
    """The sum over all rows, in float32."""
    return rows.flatten(0, -2).sum(0, dtype=torch.float32)


def by_column(rows: Tensor) -> Tensor:
    """[C, R, N] or [C, N] as a matrix with a row for each column."""
    return rows.flatten(0, -2).mT


def total_zeros(zeros: Tensor | None, like: Tensor) -> Tensor:
    """The sum over all tiles, an int64 scalar; empty where there was nothing to count."""
    return none(like, torch.int64) if zeros is None else zeros.sum()
