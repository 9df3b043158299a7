"""Which kind of expression values a matrix holds: raw counts, log1p-normalised or fractional."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.data.formats.matrix import RowMatrix

Expression = Literal["counts", "log1p", "fractional"]

# log1p of a million is 13.8: nothing normalised to CP10k or CPM and logged lies above.
_LOG1P_CEILING = 15.0
_SAMPLED_ROWS = 2_048


class Values(NamedTuple):
    """What was seen in a sample of a matrix."""

    finite: bool
    negative: bool
    integer: bool
    largest: float

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

    def describe(self) -> str:
        """In a few words, for an error message."""
        if not self.finite:
            return "holds NaN or infinity"
        if self.negative:
            return "holds negative values (scaled or corrected data)"
        if self.integer:
            return "holds whole numbers"
        kind = "looks like log1p data" if self.largest <= _LOG1P_CEILING else "holds fractional values"
        return f"{kind} (largest value {self.largest:.4g})"


def look(matrix: RowMatrix) -> Values:
    """Inspect up to 2,048 rows, taken from eight places of the matrix."""
    n = matrix.shape[0]
    size = min(_SAMPLED_ROWS // 8, n)
    starts = sorted({int(start) for start in np.linspace(0, n - size, 8)})
    return _combine([values_of(matrix.read(start, start + size).data) for start in starts])


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


def values_of(data: np.ndarray) -> Values:
    """Inspect stored values."""
    if not len(data):
        return Values(True, False, True, 0.0)
    finite = bool(np.isfinite(data).all())
    integer = finite and bool((data == np.rint(data)).all())
    return Values(finite, bool((data < 0).any()), integer, float(data.max()) if finite else np.inf)


def _combine(seen: list[Values]) -> Values:
    return Values(
        all(v.finite for v in seen),
        any(v.negative for v in seen),
        all(v.integer for v in seen),
        max((v.largest for v in seen), default=0.0),
    )


def check_faults(faults: Faults, expression: str, matrix: RowMatrix) -> None:
    """Refuse values that cannot be of the stated kind; called on all that is read."""
    row = faults.of(expression)
    if row is not None:
        place = f"{matrix.place}, row {row},"
        check_block(matrix.read(row, row + 1).data, expression, place)
        raise InputError(f"{place} changed while it was read; open the atlas again")


def check_block(data: np.ndarray, expression: str, place: str) -> None:
    """Refuse values that cannot be of the stated kind."""
    seen = values_of(data)
    if not seen.finite or seen.negative or (expression == "counts" and not seen.integer):
        raise InputError(f"{place} {seen.describe()}, not {expression}; {remedy(seen, expression)}")


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
