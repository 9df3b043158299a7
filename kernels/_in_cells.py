"""Elementwise work on large cells, one at a time, so that it stays in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# Numbers of a cell from which on it is worth calls of its own (512 KiB of float32).
_OWN_CALLS = 131_072


def in_cells(compute: Callable[..., tuple[Tensor, ...]], *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """What `compute` makes of `tensors`, whose first axis are cells; of large ones [C, R, N] cell by cell.

    Between its steps a cell then need not go through memory, nor do float32 copies of 16 bits. The first
    axis of all results is that of cells as well, unless they are empty.
    """
    first = tensors[0]
    assert first is not None
    if first.ndim < 3 or len(first) < 2 or first[0].numel() < _OWN_CALLS:
        return compute(*tensors)
    whole: list[Tensor] = []
    for c in range(len(first)):
        found = compute(*(None if tensor is None else tensor[c : c + 1] for tensor in tensors))
        if not whole:
            whole = [part.new_empty((len(first) * len(part), *part.shape[1:])) for part in found]
        for to, part in zip(whole, found, strict=True):
            to[c : c + 1] = part
    return tuple(whole)
