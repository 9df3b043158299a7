"""The long table of scores in docs/results: one row a run, metric, space and group."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = Path(__file__).parents[2] / "docs" / "results"
RUN = ["task", "method", "seed"]
SCORE = [
    "aspect",
    "metric",
    "space",
    "group",
    "value",
    "floor",
    "ceiling",
    "excess",
    "low",
    "high",
    "verdict",
    "cells",
]
COLUMNS = [*RUN, *SCORE, "cells_made", "train_seconds", "generate_seconds", "settings", "note"]
# Every class has rows of these; of other metrics only the mean over classes is kept.
BY_CLASS = (
    "purity",
    "distance to nearest train cell",
    "log-fold-change slope",
    "log-fold-change Spearman",
)


def append(path: Path, table: pd.DataFrame, **run: object) -> None:
    """Add the rows of a fidelity table; those of an earlier run of the same name go."""
    kept = table[table["group"].isin(["all", "mean of classes"]) | table["metric"].isin(BY_CLASS)]
    rows = kept[SCORE].assign(**run)[COLUMNS]
    before = read([path]) if path.exists() else pd.DataFrame(columns=COLUMNS)
    same = before[RUN].eq(rows[RUN].iloc[0]).all(axis=1)
    after = rows if before[~same].empty else pd.concat([before[~same], rows], ignore_index=True)
    temporary = path.with_suffix(".part")
    after.to_csv(temporary, index=False, float_format="%.5g", quoting=csv.QUOTE_MINIMAL)
    temporary.replace(path)


def read(paths: Iterable[Path]) -> pd.DataFrame:
    """All rows of some files."""
    frames = [pd.read_csv(path, keep_default_na=True).fillna({"note": "", "settings": ""}) for path in paths]
    return pd.concat(frames, ignore_index=True)


def done(path: Path) -> set[tuple[str, str, int]]:
    """Runs (task, method, seed) that a file holds."""
    if not path.exists():
        return set()
    return set(read([path])[RUN].itertuples(index=False, name=None))
