"""What a selector is: one class's cells in, a few weighted rows out."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from scdd.errors import InputError


class ClassCells(NamedTuple):
    """The candidate cells of one class."""

    expression: np.ndarray  # float32 [n, G], log1p of counts per 10,000 over the selected genes
    embedding: np.ndarray  # float32 [n, d], where distances are taken: PCA fitted once over all classes
    rows: np.ndarray  # int64 [n], row ids in the training atlas


class Selection(NamedTuple):
    """The rows that stand for one class."""

    expression: np.ndarray  # float32 [m, G]
    weight: np.ndarray  # float64 [m], cells each row stands for; sums to n
    rows: np.ndarray  # int64 [m], the row id where the row is a real cell, else -1


Selector = Callable[[ClassCells, int, np.random.Generator], Selection]


def _same(k: int) -> int:
    return k


@dataclass(frozen=True)
class SelectorSpec:
    """A selector with what a command line and a results table must know about it.

    `rows_per_class(k)` is what the rule writes for a class of ample size at a budget of k: a rule that
    needs two rows at k = 1 must be listed at two.
    """

    function: Selector
    summary: str
    real_cells: bool
    rows_per_class: Callable[[int], int] = _same


# A limit on thread pools holds for the whole process, so two selectors at once would lift each other's.
_ONE_AT_A_TIME = threading.RLock()


def selector(rule: Selector) -> Selector:
    """Check the arguments of `rule` and run it on one thread, so that its result is the same bit for bit.

    OpenMP and BLAS sum in an order that depends on the number of threads; a tie broken the other way
    would select another cell.

    Raises
    ------
    InputError
        If k < 1, the class has no cells, the shapes disagree, or a value is not finite.
    """

    @functools.wraps(rule)
    def checked(cells: ClassCells, k: int, rng: np.random.Generator) -> Selection:
        _check(cells, k)
        with _ONE_AT_A_TIME, threadpool_limits(1):
            return rule(cells, k, rng)

    return checked


def _check(cells: ClassCells, k: int) -> None:
    if k < 1:
        raise InputError(f"k is {k}: ask for at least one row a class")
    n = len(cells.rows)
    if n == 0:
        raise InputError("cells is empty: leave classes without cells out")
    for name in ("expression", "embedding"):
        values = getattr(cells, name)
        if values.ndim != 2 or len(values) != n:
            raise InputError(f"cells.{name} has shape {values.shape}: expected two dimensions and {n} rows")
        # A sum of finite float32 values in float64 is finite: one pass and no mask the size of the data.
        if not np.isfinite(values.sum(dtype=np.float64)):
            raise InputError(f"cells.{name} holds NaN or infinite values: remove those cells first")


def real(cells: ClassCells, chosen: Sequence[int] | np.ndarray) -> Selection:
    """Make a selection of real cells, equally weighted: w = n / m."""
    index = np.asarray(chosen, dtype=np.int64)
    return Selection(cells.expression[index], equal_weight(cells, len(index)), cells.rows[index])


def averages(cells: ClassCells, groups: Sequence[np.ndarray], weight: np.ndarray | None = None) -> Selection:
    """Average each group of cells in log1p space; a group of one is that real cell and keeps its row id.

    Parameters
    ----------
    cells
        The class.
    groups
        m arrays of indices into `cells`.
    weight
        float64 [m]; n / m each if not given.
    """
    expression = np.empty((len(groups), cells.expression.shape[1]), dtype=np.float32)
    rows = np.full(len(groups), -1, dtype=np.int64)
    for i, members in enumerate(groups):
        # Float64 sums: float32 would drift by 1e-4 over a class of 5,000 cells.
        expression[i] = cells.expression[members].mean(axis=0, dtype=np.float64)
        if len(members) == 1:
            rows[i] = cells.rows[members[0]]
    return Selection(expression, equal_weight(cells, len(groups)) if weight is None else weight, rows)


def equal_weight(cells: ClassCells, m: int) -> np.ndarray:
    """Share the n cells equally among m rows."""
    return np.full(m, len(cells.rows) / m)
