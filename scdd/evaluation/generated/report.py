"""The report: a tidy table, one line an aspect, figures; written as CSV, Markdown or HTML."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scdd.evaluation.generated.readings import ALL, MEAN
from scdd.output import atomic_path, check_writable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scdd.evaluation.generated.settings import Settings
    from scdd.evaluation.generated.views import View

SUFFIXES = (".csv", ".html", ".md")
_SHOWN = ["metric", "space", "group", "value", "floor", "excess", "low", "high", "ceiling", "p", "verdict"]


@dataclass(frozen=True)
class Details:
    """How it was measured; ``cells`` a side in a draw, ``notes`` in sentences."""

    label_key: str | None
    classes: tuple[str, ...]
    cells: int
    genes: tuple[str, ...]
    variable_genes: tuple[str, ...]
    settings: Settings
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False, repr=False)
class FidelityReport:
    """What `scdd.fidelity` found.

    Attributes
    ----------
    table
        Tidy: ``aspect, metric, space, group, variant, value, floor, excess, low, high, ceiling, better,
        margin, p, cells, verdict``. The excess is above zero where generated cells are worse than real ones;
        ``low`` and ``high`` are its 95 % interval. The verdict is ``"worse"`` where the excess is above the
        margin, and its interval above zero; ``"perhaps worse"`` where only the first holds.
    draws
        The same before the mean over draws was taken.
    details
        How it was measured.
    view
        What the figures show.
    """

    table: pd.DataFrame
    draws: pd.DataFrame
    details: Details
    view: View

    def to_frame(self) -> pd.DataFrame:
        """Return the tidy table."""
        return self.table.copy()

    def summary(self, *, by_class: bool = False) -> pd.DataFrame:
        """Give one row a metric over all cells (or the mean of classes), or the classes ``by_class`` too."""
        table = self.table
        if not by_class:
            table = table[table["group"].isin((ALL, MEAN))]
        house = table["variant"] == "house"
        aspect = table["aspect"].where(house, table["aspect"] + ": " + table["variant"])
        return table.assign(aspect=aspect).set_index("aspect")[_SHOWN]

    def headline(self) -> list[str]:
        """Say how many metrics tell generated from real cells, and which by most in every aspect."""
        judged = self.table[(self.table["variant"] == "house") & self.table["group"].isin((ALL, MEAN))]
        judged = judged[judged["verdict"] != ""]
        worse = judged[judged["verdict"] == "worse"]
        count = judged["verdict"].value_counts()
        said = [
            f"Of {len(judged)} metrics, {count.get('as real', 0)} are as for real cells, "
            f"{count.get('perhaps worse', 0)} perhaps worse and {count.get('worse', 0)} worse "
            f"({self.details.cells:,} cells a side)."
        ]
        for aspect, rows in worse.groupby("aspect", sort=False):
            row = rows.loc[(rows["excess"] / rows["margin"].clip(lower=1e-9)).idxmax()]
            where = f"{row['metric']} ({row['space']}, {row['group']})"
            said.append(f"Worse in {aspect}: {where} {row['value']:.3g}, real cells {row['floor']:.3g}.")
        return said

    def verdict(self, metric: str, *, space: str | None = None, group: str = ALL) -> str:
        """Give the verdict of one metric, of the house; the worst where it stands in several spaces."""
        rows = self.table[(self.table["metric"] == metric) & (self.table["group"] == group)]
        if space is not None:
            rows = rows[rows["space"] == space]
        if not len(rows):
            raise KeyError(f"no row for {metric!r} of group {group!r}")
        order = ["", "as real", "perhaps worse", "worse"]
        return order[max(order.index(found) for found in rows["verdict"])]

    def figure(self) -> Figure:
        """Draw excesses over floors, both gene curves and distances to train."""
        from scdd.evaluation.generated.plots import overview

        return overview(self)

    def save(self, path: str | Path) -> Path:
        """Write the table as ``.csv``, or all of it as ``.md`` or ``.html``; never half of it.

        Raises
        ------
        InputError
            Another suffix.
        DataFileError
            The folder is missing or cannot be written.
        """
        path = Path(path)
        check_writable(path, suffixes=SUFFIXES)
        make = {".csv": self.to_csv, ".md": self.to_markdown, ".html": self.to_html}[path.suffix]
        with atomic_path(path) as temporary:
            temporary.write_text(make(), encoding="utf-8", newline="\n")
        return path

    def to_csv(self) -> str:
        """Give the tidy table as CSV."""
        return self.table.to_csv(index=False)

    def to_markdown(self) -> str:
        """Give headline, summary and notes as Markdown."""
        rows = self.summary().reset_index()
        lines = [_line(rows.columns), _line(["---"] * len(rows.columns))]
        lines += [_line(_shown(value) for value in row) for row in rows.itertuples(index=False)]
        notes = [f"- {note}" for note in self.details.notes]
        return "\n".join(["# Fidelity", "", *self.headline(), "", *lines, "", *notes, ""])

    def to_html(self) -> str:
        """Give one page that needs nothing else."""
        from scdd.evaluation.generated.plots import svg

        said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.headline())
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.details.notes)
        by_class = self.summary(by_class=True).reset_index()
        by_class = by_class[~by_class["group"].isin((ALL, MEAN))]
        tables = _table(self.summary().reset_index())
        tables += f"<h2>By class</h2>{_table(by_class)}" if len(by_class) else ""
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Fidelity</title><style>{_STYLE}'
            f"</style><h1>Fidelity of generated cells</h1>{said}{svg(self.figure())}{tables}"
            f"<h2>How it was measured</h2><ul>{notes}</ul></html>\n"
        )

    def __str__(self) -> str:
        table = self.summary().to_string(float_format=lambda value: f"{value:.4g}", na_rep="–")
        return "\n".join([*self.headline(), "", table, *(f"- {note}" for note in self.details.notes)])

    def __repr__(self) -> str:
        return f"FidelityReport({len(self.table)} rows, {self.details.cells:,} cells a side)"

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.headline())
        return said + _table(self.summary().reset_index())


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;font-size:13px}td,th{padding:.2rem .6rem;text-align:left;"
    "border-bottom:1px solid #ddd}svg{max-width:100%;height:auto}"
)


def _table(frame: pd.DataFrame) -> str:
    return frame.to_html(index=False, border=0, escape=True, na_rep="–", float_format="{:.4g}".format)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return str(value).replace("|", "\\|")


def _line(cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"  # type: ignore[call-overload]
