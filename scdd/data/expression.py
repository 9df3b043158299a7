"""Which kind of expression values a matrix holds: raw counts, log1p-normalised or fractional."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from scdd.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from scdd.data.formats.matrix import RowMatrix
    from scdd.data.source import Source

Expression = Literal["counts", "log1p", "fractional"]

# log1p of a million is 13.8: nothing normalised to CP10k or CPM and logged lies above.
_LOG1P_CEILING = 15.0
_SAMPLED_ROWS = 2_048
# Even where 99 of 100 counts are 1, so many are all 1 in one data set of 20,000.
_ENOUGH_ONES = 1_000


class Faults(NamedTuple):
    """First row with a value of each kind, as `scdd._csr` reports them while it reads; -1 for none."""

    nan: int = -1
    infinite: int = -1
    negative: int = -1
    fractional: int = -1

    def merge(self, other: Faults) -> Faults:
        """The first rows of both."""
        pairs = zip(self, other, strict=True)
        return Faults(*(max(pair) if min(pair) < 0 else min(pair) for pair in pairs))

    def of(self, expression: str) -> int | None:
        """The first row whose values cannot be of this kind."""
        found = [self.nan, self.infinite, self.negative]
        found += [self.fractional] if expression == "counts" else []
        return min((row for row in found if row >= 0), default=None)


class Values(NamedTuple):
    """What was seen in a sample of a matrix.

    ``n`` values that are not zero, the rows of those at fault, and ``peak``, the row of the largest.
    """

    finite: bool
    negative: bool
    integer: bool
    largest: float
    n: int = 0
    faults: Faults = Faults()
    peak: int = -1

    def fits(self, expression: str) -> bool:
        """Whether the values can be of this kind."""
        if not self.finite or self.negative:
            return False
        if expression == "counts":
            return self.integer
        if expression == "log1p":
            return not self.integer and self.largest <= _LOG1P_CEILING
        # Fractional counts reach past the range of logarithms somewhere; log data never does.
        return self.integer or self.largest > _LOG1P_CEILING

    @property
    def only_ones(self) -> bool:
        """Whether this is a mask rather than counts: of so many counts, however shallow, some are above 1."""
        return self.fits("counts") and self.largest == 1 and self.n >= _ENOUGH_ONES

    def describe(self, cells: pd.Index | None = None) -> str:
        """In a few words, for an error message; ``cells`` are the names of the rows."""
        if not self.finite:
            return "holds NaN or infinity" + _where(cells, self.faults.nan, self.faults.infinite)
        if self.negative:
            return "holds negative values (scaled or corrected data)" + _where(cells, self.faults.negative)
        if self.integer:
            return "holds only 0 and 1" if self.only_ones else "holds whole numbers"
        kind = "looks like log1p data" if self.largest <= _LOG1P_CEILING else "holds fractional values"
        # Of data that is fractional all over, the first cell says nothing.
        first = self.faults.fractional
        where = f", first fraction in {row_name(first, cells)}" if first > 0 and cells is not None else ""
        return f"{kind} (largest value {self.largest:.4g}){where}"


def row_name(row: int, cells: pd.Index | None) -> str:
    """A row by its number in the file and the name of its cell."""
    return f"row {row}" if cells is None else f"row {row} (cell {str(cells[row])!r})"


def _where(cells: pd.Index | None, *rows: int) -> str:
    row = min((row for row in rows if row >= 0), default=None)
    return "" if row is None else f", first seen in {row_name(row, cells)}"


def look(matrix: RowMatrix) -> Values:
    """Inspect up to 2,048 rows, taken from eight places of the matrix."""
    n = matrix.shape[0]
    size = min(_SAMPLED_ROWS // 8, n)
    starts = sorted({int(start) for start in np.linspace(0, n - size, 8)})
    seen = []
    for start in starts:
        block = matrix.read(start, start + size)
        faults = faults_of(block, np.arange(start, start + size))
        peak = int(np.searchsorted(block.indptr, block.data.argmax(), side="right")) - 1 if block.nnz else 0
        seen.append(values_of(block.data)._replace(faults=faults, peak=start + peak))
    return _combine(seen)


def values_of(data: np.ndarray) -> Values:
    """Inspect stored values."""
    if not len(data):
        return Values(True, False, True, 0.0)
    finite = bool(np.isfinite(data).all())
    integer = finite and bool((data == np.rint(data)).all())
    largest = float(data.max()) if finite else np.inf
    return Values(finite, bool((data < 0).any()), integer, largest, int(np.count_nonzero(data)))


def faults_of(matrix: sparse.csr_matrix, rows: np.ndarray) -> Faults:
    """First row, by its number, of each kind of fault; a quick look says that there is none."""
    data = matrix.data
    seen = values_of(data)
    if seen.fits("counts"):
        return Faults()

    def first(wrong: np.ndarray) -> int:
        at = np.flatnonzero(wrong)
        return int(rows[np.searchsorted(matrix.indptr, at, side="right") - 1].min()) if len(at) else -1

    nan, infinite = (-1, -1) if seen.finite else (first(np.isnan(data)), first(np.isinf(data)))
    negative = first(data < 0) if seen.negative else -1
    return Faults(nan, infinite, negative, first(np.isfinite(data) & (data != np.rint(data))))


def _combine(seen: list[Values]) -> Values:
    faults = Faults()
    for part in seen:
        faults = faults.merge(part.faults)
    return Values(
        all(v.finite for v in seen),
        any(v.negative for v in seen),
        all(v.integer for v in seen),
        max((v.largest for v in seen), default=0.0),
        sum(v.n for v in seen),
        faults,
        max(seen, key=lambda v: v.largest).peak if seen else -1,
    )


def check_faults(faults: Faults, source: Source) -> None:
    """Refuse values that cannot be of the stated kind; called on all that is read."""
    row = faults.of(source.expression)
    if row is None:
        return
    place = f"{source.matrix.place}, {row_name(row, source.obs.index)},"
    seen = values_of(source.matrix.read(row, row + 1).data)
    if not seen.finite or seen.negative or (source.expression == "counts" and not seen.integer):
        raise InputError(
            f"{place} {seen.describe()}, not {source.expression}; {remedy(seen, source.expression)}"
        )
    raise InputError(f"{place} changed while it was read; open the atlas again")


def remedy(seen: Values, expression: str) -> str:
    """What to pass instead."""
    if not seen.finite:
        return "repair or drop those cells first"
    if seen.negative:
        return "point layer= (--layer) to unscaled data, e.g. layers/counts or raw/X"
    if seen.fits("log1p"):
        return "pass expression='log1p' (--expression log1p), or layer= (--layer) with raw counts"
    if expression == "counts":
        return "pass expression='fractional' (--expression fractional) for corrected, non-integer counts"
    return "pass expression='counts' (--expression counts)"
