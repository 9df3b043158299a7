"""Figures of the fidelity report: floors, gene curves, distances to train."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from scdd.evaluation.generated.readings import ALL, MEAN
from scdd.evaluation.plots import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from scdd.evaluation.generated.report import FidelityReport
    from scdd.evaluation.generated.views import View

_STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "scdd",
    "text.parse_math": False,
}
_COLOURS = {"generated": ORANGE, "test": GREY, "floor": BLUE}
_NAMES = {"generated": "generated", "test": "test", "floor": "second real sample"}


def overview(report: FidelityReport) -> Figure:
    """Excess over margin of every metric; mean–variance and zero–mean curves; distances to train."""
    table = report.table
    shown = table[(table["variant"] == "house") & table["group"].isin((ALL, MEAN)) & table["margin"].gt(0)]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, max(6.0, 1.0 + 0.19 * len(shown))), layout="constrained")
        grid = figure.add_gridspec(3, 2, width_ratios=(3, 2))
        excess_axes(figure.add_subplot(grid[:, 0]), shown)
        variance_axes(figure.add_subplot(grid[0, 1]), report.view)
        zero_axes(figure.add_subplot(grid[1, 1]), report.view)
        nearest_axes(figure.add_subplot(grid[2, 1]), report.view)
    return figure


def excess_axes(axes: Axes, rows: pd.DataFrame) -> None:
    """Excess over the floor in margins, with its interval: right of the line is worse than real."""
    place = np.arange(len(rows))[::-1]
    margin = rows["margin"].to_numpy(dtype=float)
    middle, low, high = (_squeeze(rows[c].to_numpy(dtype=float) / margin) for c in ("excess", "low", "high"))
    colour = [ORANGE if verdict == "worse" else GREY for verdict in rows["verdict"]]
    axes.hlines(place, low, high, color=colour, linewidth=1)
    axes.scatter(middle, place, s=16, c=colour, zorder=3)
    for at, style in ((0.0, "-"), (1.0, ":")):
        axes.axvline(_squeeze(np.array([at]))[0], color="#999999", linewidth=0.8, linestyle=style)
    names = [f"{m}, {s}" + (f", {g}" if g != ALL else "") for m, s, g in _names(rows)]
    axes.set_yticks(place, names)
    ticks = np.array([-10, -1, 0, 1, 10, 100, 1000])
    axes.set_xticks(_squeeze(ticks.astype(float)), [str(tick) for tick in ticks])
    axes.set(xlabel="excess over the floor, in margins (dotted: 1); right is worse than real cells")


def variance_axes(axes: Axes, view: View) -> None:
    """Median log10 variance of genes by mean."""
    for side, curve in view.variance_curve.items():
        axes.plot(view.bins, curve, color=_COLOURS[side], label=_NAMES[side], linewidth=1.5)
    axes.set(xlabel="mean of log1p expression", ylabel="log10 variance", xscale="log")
    axes.legend(frameon=False)


def zero_axes(axes: Axes, view: View) -> None:
    """Median share of zeros of genes by mean."""
    for side, curve in view.zero_curve.items():
        axes.plot(view.bins, curve, color=_COLOURS[side], linewidth=1.5)
    axes.set(xlabel="mean of log1p expression", ylabel="share of zeros", xscale="log")


def nearest_axes(axes: Axes, view: View) -> None:
    """Histograms of distances to the nearest train cell: copies stand at zero."""
    if not view.nearest:
        axes.set_axis_off()
        return
    top = max(float(np.quantile(found, 0.99)) for found in view.nearest.values())
    bins = np.linspace(0, max(top, 1e-9), 50).tolist()
    for side, found in view.nearest.items():
        axes.hist(found, bins=bins, color=_COLOURS[side], histtype="step", density=True, label=_NAMES[side])
    axes.set(xlabel="distance to the nearest train cell", ylabel="density")
    axes.legend(frameon=False)


def svg(figure: Figure) -> str:
    """The figure as SVG to stand inside HTML; the same figure gives the same bytes."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _squeeze(values: np.ndarray) -> np.ndarray:
    """Linear within one margin, logarithmic beyond."""
    return np.where(
        np.abs(values) <= 1, values, np.sign(values) * (1 + np.log10(np.maximum(np.abs(values), 1)))
    )


def _names(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(rows[["metric", "space", "group"]].itertuples(index=False, name=None))
