"""Cells of many numbers go through the references one by one, so that what one needs stays in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

# Numbers of a cell from which on it is worth calls of its own (128 KiB of float32).
_OWN_CALLS = 32_768


def goes_one_by_one(x: Tensor) -> bool:
    """Whether the cells of `x` [C, R, N] are that large; of [C, N] they never are."""
    return x.ndim == 3 and x.shape[1] * x.shape[2] >= _OWN_CALLS


def sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """``a * b`` summed over the rows of each cell: [C, R, N] to [C, N]; of [C, N] the products themselves."""
    if a.ndim == 2:
        return a * b
    if not goes_one_by_one(a):
        return (a * b).sum(1)
    found, products = a.new_empty(a.shape[0], a.shape[2]), torch.empty_like(a[0])
    for rows, others, total in zip(a, b, found, strict=True):
        torch.sum(torch.mul(rows, others, out=products), 0, out=total)
    return found
