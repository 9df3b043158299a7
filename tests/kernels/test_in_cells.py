"""Work on large cells, one at a time: the same as on all at once."""

from __future__ import annotations

import torch
from scdd.kernels._in_cells import _OWN_CALLS, in_cells


def compute(seen):
    def both(x, gate, absent):
        """A result as large as the cells, one of a row each, and an empty one."""
        assert absent is None
        seen.append(len(x))
        return x * gate[:, None] if x.ndim == 3 else x * gate, x.sum(-2, dtype=torch.float64), x.new_empty(0)

    return both


def test_large_cells_go_one_by_one():
    x, gate = torch.randn(3, 8, _OWN_CALLS // 8), torch.randn(3, _OWN_CALLS // 8)
    seen = []
    found = in_cells(compute(seen), x, gate, None)
    assert seen == [1, 1, 1]
    wanted = compute([])(x, gate, None)
    for one, whole in zip(found, wanted, strict=True):
        assert one.dtype == whole.dtype
        torch.testing.assert_close(one, whole)


def test_small_cells_rows_and_a_single_cell_go_at_once():
    for shape in ((3, 8, 4), (3, 2 * _OWN_CALLS), (1, 2, _OWN_CALLS), (0, 2, _OWN_CALLS)):
        x, seen = torch.randn(shape), []
        in_cells(compute(seen), x, torch.randn(shape[0], shape[-1]), None)
        assert seen == [shape[0]]
