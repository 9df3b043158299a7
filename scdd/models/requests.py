"""What cells a user asks of a generator: how many, of which conditions, of which sizes."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdd.errors import DataFileError, InputError
from scdd.models.condition_fields import Number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scdd.models.conditions import Conditions

# Columns of a table that say how often its row is wanted.
_COUNTS = ("n", "n_cells")
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


@dataclass(frozen=True)
class Request:
    """``n`` cells of condition codes, -1 where one is left open.

    Cell ``i`` has the codes ``codes[rows[i]]`` int64 [F] and, where sizes are asked for, ``totals[i]``.
    ``record`` is what the result says of it, ``notes`` what the user should know.
    """

    n: int
    codes: np.ndarray
    rows: np.ndarray | None = None
    totals: np.ndarray | None = None
    record: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def block(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Codes [b, F] and sizes [b] of the cells from ``start`` on."""
        stop = min(stop, self.n)
        rows = np.zeros(stop - start, dtype=np.int64) if self.rows is None else self.rows[start:stop]
        return self.codes[rows], None if self.totals is None else self.totals[start:stop]


def by_conditions(conditions: Conditions, n: int | None, condition: Mapping[str, Any]) -> Request:
    """Cells of one value, or one value a cell, for each column of ``condition``."""
    lengths = {len(value) for value in condition.values() if np.ndim(value)}
    if len(lengths) > 1 or (n is not None and lengths and lengths != {n}):
        raise InputError(
            f"condition columns have lengths {sorted(lengths)} for n={n}; give one value each, or n values"
        )
    n = whole_number(n if n is not None else next(iter(lengths), None))
    codes = conditions.encode(condition, n if lengths else 1)
    return Request(n, codes, np.arange(n) if lengths else None, record=described(condition))


def by_table(
    conditions: Conditions, n: int | None, table: pd.DataFrame | str | Path, condition: Mapping[str, Any]
) -> Request:
    """One cell a row of ``table``, or as many as its column ``n`` says; ``condition`` adds columns."""
    frame = read_table(table) if not isinstance(table, pd.DataFrame) else table
    name = "table" if isinstance(table, pd.DataFrame) else Path(table).name
    columns = {str(column): frame[column].reset_index(drop=True) for column in frame}
    repeat = next((key for key in _COUNTS if key in columns and key not in conditions.names), None)
    counts = _counts(columns.pop(repeat), repeat, name) if repeat else np.ones(len(frame), dtype=np.int64)
    twice = [column for column in columns if column in condition]
    if twice:
        raise InputError(f"{name} and condition= both give {twice[0]!r}; leave it out of one of them")
    unknown = [column for column in columns if column not in conditions.names]
    if unknown:
        raise InputError(
            f"{name} has a column {unknown[0]!r}, which the model was not trained with; it knows "
            f"{', '.join(conditions.names)} (and n, how many cells a row asks for); drop the column"
        )
    total = whole_number(int(counts.sum()), named=f"{name} asks for")
    if n is not None and n != total:
        raise InputError(f"n={n} and {name} asks for {total:,} cells; leave n out, or make them agree")
    codes, rows = conditions.encode(columns, len(frame)), np.repeat(np.arange(len(frame)), counts)
    codes, rows = overlaid(conditions, codes, rows, condition)
    return Request(total, codes, rows, record={**described(condition), "table": name})


def overlaid(
    conditions: Conditions, codes: np.ndarray, rows: np.ndarray, condition: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and the row of each cell, with ``condition`` in place of what the codes say."""
    if not condition:
        return codes, rows
    wide = any(np.ndim(value) for value in condition.values())
    if wide:
        codes, rows = codes[rows], np.arange(len(rows))
    own = conditions.encode(condition, len(rows) if wide else 1)
    return np.where(own < 0, codes, own), rows


def read_table(path: str | Path) -> pd.DataFrame:
    """A .csv or .tsv as strings: numbers are made of them by whoever knows that they are ones."""
    place = Path(path)
    suffix = Path(place.stem).suffix if place.suffix == ".gz" else place.suffix
    if suffix not in _SEPARATORS:
        raise InputError(f"table={str(path)!r}: give a .csv or .tsv file, or a pandas DataFrame")
    try:
        return pd.read_csv(
            place, sep=_SEPARATORS[suffix], dtype=str, keep_default_na=False, na_values=[""],
            skipinitialspace=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise DataFileError(f"{path} cannot be read as a table ({error}); check path and rows") from error


def described(condition: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, as strings that every file can hold."""
    asked = {
        name: f"{len(value)} values" if np.ndim(value) else str(value) for name, value in condition.items()
    }
    return {"condition": asked}


def whole_number(n: Any, *, named: str = "n") -> int:
    """``n`` as an int of at least 1."""
    try:
        number = operator.index(n)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"{named}={n}; ask for at least one cell: give n= or one value a cell (-n, --table)")
    return number


def notes_of(conditions: Conditions, request: Request) -> list[str]:
    """Which columns are left open, and which numbers lie beyond the training cells."""
    said = []
    used = request.codes if request.rows is None else request.codes[np.unique(request.rows)]
    for number, one in enumerate(conditions.fields):
        missing = used[:, number] < 0
        if missing.any():
            where = "" if missing.all() else " where it is not given"
            said.append(f"{one.name} is filled from the training composition{where}")
        if isinstance(one, Number) and (outside := one.n_outside(used[:, number])):
            said.append(
                f"{one.name} lies outside the training cells' {one.low:g} to {one.high:g} in {outside:,} "
                "of the rows asked for: cells there are extrapolated"
            )
    return said


def _counts(column: pd.Series, key: str, name: str) -> np.ndarray:
    counts = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(counts) & (counts >= 0) & (counts == np.rint(counts)))
    if bad.any():
        at = int(np.argmax(bad))
        raise InputError(
            f"{name}: {key}={column.iloc[at]} in row {at + 1}; give whole numbers of cells, 0 or more"
        )
    return counts.astype(np.int64)
