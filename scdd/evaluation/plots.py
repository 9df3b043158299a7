"""The report's figures as SVG text: the same input gives the same bytes, and nothing is fetched."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from scdd.evaluation.contest import DISTILLED, RANDOM, WHOLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

    from scdd.evaluation.embedding import Components
    from scdd.evaluation.fidelity import Fidelity

# Okabe and Ito's colours, told apart by every common kind of colour vision.
GREY, ORANGE, BLUE = "#4d4d4d", "#d55e00", "#0072b2"
# Paul Tol's "muted" set; classes beyond nine share a colour and are told apart by their number.
CLASS_COLOURS = (
    "#332288",
    "#88ccee",
    "#44aa99",
    "#117733",
    "#999933",
    "#ddcc77",
    "#cc6677",
    "#882255",
    "#aa4499",
)

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#222222",
    # Text stays text: it takes the reader's fonts, so any script shows, and it can be searched.
    "svg.fonttype": "none",
    "svg.hashsalt": "scdd",
    # A label such as "CD4$^+$" is a name, not a formula.
    "text.parse_math": False,
    "text.usetex": False,
}
_WIDTH, _NARROW = 4.6, 3.6
# More names than this would cover the map; numbers then stand for them.
_MOST_NAMES = 20


def map_figure(components: Components, classes: Sequence[str]) -> str:
    """Real cells as dots, distilled rows as diamonds; classes by colour and name (number if many)."""
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(4.4)
        real, made = components.layout()
        axes.scatter(
            real[:, 0],
            real[:, 1],
            s=5,
            c=_colours(components.real_codes),
            alpha=0.35,
            linewidths=0,
            rasterized=True,
        )
        colours = _colours(components.distilled_codes)
        axes.scatter(
            made[:, 0], made[:, 1], s=34, c=colours, marker="D", edgecolors="#111111", linewidths=0.7
        )
        for code in range(len(classes)):
            members = real[components.real_codes == code]
            if len(members):
                _mark(axes, _densest(members), _mark_of(classes, code))
        axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
        return _svg(figure, "Map of real cells and distilled rows")


def class_figure(table: pd.DataFrame, shown: dict[str, str]) -> str:
    """F1 of every class: a bar for the distilled set, marks for whole data and for random cells.

    ``table`` is classes by sets, ``shown`` the label to print for every class.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(0.9 + 0.27 * len(table))
        place = np.arange(len(table))[::-1]
        axes.barh(place, table[DISTILLED], height=0.62, color=ORANGE, label=DISTILLED)
        if WHOLE in table:
            axes.scatter(
                table[WHOLE], place, s=90, marker="|", c="#111111", linewidths=2.2, label=WHOLE, zorder=3
            )
        if RANDOM in table:
            dots: dict[str, Any] = {"s": 26, "c": BLUE, "edgecolors": "white", "linewidths": 0.7}
            axes.scatter(table[RANDOM], place, **dots, label=RANDOM, zorder=4)
        axes.set(xlim=(0, 1.02), ylim=(-0.7, len(table) - 0.3), xlabel="F1, mean of classifiers and seeds")
        axes.set_yticks(place, [shown[name] for name in table.index])
        axes.tick_params(axis="y", length=0)
        figure.legend(
            loc="outside upper left", ncols=3, frameon=False, fontsize=8, handletextpad=0.4, columnspacing=1
        )
        return _svg(figure, "F1 of every class")


def zero_figure(fidelity: Fidelity) -> str:
    """Share of zeros of every gene, real against distilled; on the diagonal they agree."""
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(3.5, _NARROW)
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=1)
        real, made = fidelity.zero_real, fidelity.zero_distilled
        axes.scatter(real, made, s=6, color=ORANGE, alpha=0.35, linewidths=0, rasterized=True)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(xlabel="share of zeros in real cells", ylabel="in distilled rows")
        return _svg(figure, "Share of zeros of every gene")


def cumulative_figure(real: np.ndarray, made: np.ndarray, label: str) -> str:
    """Cumulative distribution of a number per cell, real against distilled."""
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(2.5, _NARROW)
        for values, colour, name, width in ((real, GREY, "real", 1.4), (made, ORANGE, DISTILLED, 2.0)):
            axes.ecdf(values, color=colour, linewidth=width, label=name)
        axes.set(xlabel=label, ylabel="share of cells below")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.legend(frameon=False, fontsize=8, loc="best")
        return _svg(figure, label)


def shorten(label: str, most: int = 26) -> str:
    """Cut a label to what fits beside a bar."""
    return label if len(label) <= most else label[: most - 1] + "…"


def numbered(n_classes: int) -> bool:
    """Whether the map shows numbers instead of names."""
    return n_classes > _MOST_NAMES


def class_label(name: str, number: int, n_classes: int) -> str:
    """Name a class beside its bar, with its number where the map shows numbers."""
    return f"{shorten(name)}  #{number}" if numbered(n_classes) else shorten(name)


def _canvas(height: float, width: float = _WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.subplots()


def _colours(codes: np.ndarray) -> list[str]:
    return [CLASS_COLOURS[code % len(CLASS_COLOURS)] for code in codes]


def _mark_of(classes: Sequence[str], code: int) -> str:
    return shorten(classes[code], 16) if not numbered(len(classes)) else str(code + 1)


def _mark(axes: Axes, place: np.ndarray, text: str) -> None:
    box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    axes.text(
        place[0], place[1], text, ha="center", va="center", fontsize=8, fontweight="bold", bbox=box, zorder=5
    )


def _densest(places: np.ndarray) -> np.ndarray:
    """Find the cell nearest to the median: a class in two islands keeps its name on one of them."""
    return places[np.square(places - np.median(places, axis=0)).sum(axis=1).argmin()]


def _svg(figure: Figure, title: str) -> str:
    """SVG to stand inside HTML: no prologue, no metadata, no ids that two figures would share."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Only the font used for measuring lacks the glyph; the reader's browser will have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    # The viewBox alone lets the page scale the figure.
    width = 72 * figure.get_figwidth()
    head = f'<svg role="img" aria-label="{title}" style="max-width:{1.3 * width:.0f}pt"'
    return re.sub(r'<svg( height="[^"]*"| width="[^"]*")*', head, text, count=1).strip()
