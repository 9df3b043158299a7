"""The report: tidy tables, a summary, one self-contained HTML page."""

from __future__ import annotations

import html
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scdd.evaluation import summary as tables
from scdd.evaluation.contest import DISTILLED, RANDOM, WHOLE
from scdd.output import atomic_path

if TYPE_CHECKING:
    import pandas as pd

    from scdd.evaluation.embedding import Components
    from scdd.evaluation.fidelity import Fidelity


@dataclass(frozen=True)
class Details:
    """How the scores came about, and what the figures show."""

    label_key: str
    classes: tuple[str, ...]
    n_train: int | None
    n_train_used: int | None
    n_test: int
    n_test_used: int
    n_genes: int
    rows_per_class: str
    weighted: bool
    rarest: str
    seeds: tuple[int, ...]
    recipes: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    provenance: dict[str, Any]
    fidelity: Fidelity
    components: Components


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What ``scdd.evaluate`` found.

    Attributes
    ----------
    scores
        Tidy: ``set, rows, rows_per_class, classifier, seed, metric, value``. A classifier that does not
        depend on the seed is fitted once and its value repeated.
    per_class
        Tidy: ``set, class, classifier, seed, rows, test_cells, recall, f1``.
    details
        How it was measured.
    """

    scores: pd.DataFrame
    per_class: pd.DataFrame
    details: Details

    @cached_property
    def _summary(self) -> pd.DataFrame:
        return tables.summarise(self.scores)

    def summary(self) -> pd.DataFrame:
        """Give one row a set: means over classifiers, 95 % intervals over seeds, recovery."""
        return self._summary.copy()

    def headline(self) -> list[str]:
        """Say what was recovered and which baselines do better, in sentences."""
        return tables.headline(self._summary, len(self.details.recipes))

    def save(self, path: str | Path) -> Path:
        """Write the page as one HTML file that needs nothing else; never half of it.

        Raises
        ------
        DataFileError
            The folder is missing or cannot be written.
        """
        path = Path(path)
        with atomic_path(path) as temporary:
            temporary.write_text(self.to_html(), encoding="utf-8", newline="\n")
        return path

    def to_csv(self, path: str | Path) -> Path:
        """Write the tidy scores; raises as ``save``."""
        path = Path(path)
        with atomic_path(path) as temporary:
            self.scores.to_csv(temporary, index=False)
        return path

    def to_html(self) -> str:
        """Render the page; the same report gives the same bytes."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("scdd.evaluation", "."),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters |= {"number": _number, "percent": _percent, "plus_minus": _plus_minus}
        return environment.get_template("report.html.jinja").render(**self._content())

    def _content(self) -> dict[str, Any]:
        from scdd.evaluation import plots

        details, classes = self.details, tables.class_table(self.per_class)
        order = {name: place for place, name in enumerate(details.classes, start=1)}
        shown = {name: plots.class_label(name, order[name], len(order)) for name in classes.index}
        fidelity = details.fidelity
        return {
            "headline": self.headline(),
            "summary": self._summary.reset_index().to_dict("records"),
            "classifiers": tables.classifier_table(self.scores),
            "sets": list(self._summary.index),
            "classes": self._class_rows(classes, order),
            "class_sets": [name for name in (DISTILLED, WHOLE, RANDOM) if name in classes],
            "details": details,
            "provenance": json.dumps(
                _opened(details.provenance), indent=2, sort_keys=True, default=_plain, ensure_ascii=False
            ),
            "numbered": plots.numbered(len(order)),
            "colours": plots.CLASS_COLOURS,
            "map": plots.map_figure(details.components, details.classes),
            "class_plot": plots.class_figure(classes, shown),
            "zero_plot": plots.zero_figure(fidelity),
            "library_plot": plots.cumulative_figure(
                fidelity.library_real, fidelity.library_distilled, "counts per 10,000 on these genes"
            ),
            "detected_plot": plots.cumulative_figure(
                fidelity.detected_real, fidelity.detected_distilled, "genes above zero"
            ),
        }

    def _class_rows(self, f1: pd.DataFrame, order: dict[str, int]) -> list[dict[str, Any]]:
        size = self.per_class.groupby("class")["test_cells"].first()
        own = self.per_class[self.per_class["set"] == DISTILLED].groupby("class")["rows"].first()
        recall = tables.class_table(self.per_class, "recall")
        return [
            {
                "number": order[name],
                "name": name,
                "test": int(size[name]),
                "rows": int(own[name]),
                "f1": dict(f1.loc[name]),
                "recall": float(recall.loc[name, DISTILLED]),
                "correlation": self.details.fidelity.class_correlation.get(name, math.nan),
            }
            for name in f1.index
        ]

    def __str__(self) -> str:
        columns = ["rows", "rows_per_class", "macro_f1", "recovery", "worst_recovery", "worst_classifier"]
        columns += ["accuracy", "balanced_accuracy", "rarest_recall"]
        table = self._summary[columns].to_string(float_format=lambda value: f"{value:.3f}", na_rep="–")
        return "\n".join([*self.headline(), "", table, *(f"- {note}" for note in self.details.notes)])

    def __repr__(self) -> str:
        return f"Report({len(self._summary)} sets, {len(self.details.recipes)} classifiers)"

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.headline())
        return said + self._summary.to_html(
            float_format=lambda value: f"{value:.3f}", na_rep="–", escape=True
        )


def _number(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def _plus_minus(mean: float, high: float) -> str:
    """``± half width`` of an interval; nothing for a single seed or a fit that no seed changes."""
    half = high - mean
    return "" if math.isnan(half) or half < 5e-4 else f"±{half:.3f}"


def _plain(value: Any) -> Any:
    """Numpy values of a provenance record, as JSON knows them; a long history by its ends."""
    if getattr(value, "size", 0) > 12:
        return f"{value.size} values from {value.flat[0]:.4g} to {value.flat[-1]:.4g}"
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _opened(record: dict[str, Any]) -> dict[str, Any]:
    """A provenance record with its JSON strings opened: h5ad keeps nested settings as text."""
    opened = {}
    for key, value in record.items():
        try:
            opened[key] = json.loads(value) if isinstance(value, str) and value.startswith("{") else value
        except ValueError:
            opened[key] = value
    return opened
