"""Figures of an interpretation: where rates fall and how sparse codes are, by layer and diffusion time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by every common kind of colour vision
_COLOURS = {"before attention": "#4d4d4d", "after attention": "#0072b2", "end of block": "#d55e00"}
_PLACES = dict(zip(_COLOURS, ("before", "after", "end"), strict=True))
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "scdd",
    "text.parse_math": False,
}
# more numbers than this in a heat map would touch each other
_MOST_NUMBERS = 80


def overview(table: pd.DataFrame) -> Figure:
    """Heat maps above, lines below."""
    maps = _maps(table)
    with mpl.rc_context(_STYLE):
        height = 4.6 + 0.36 * table["layer"].nunique()
        figure = Figure(figsize=(12.6, height), layout="constrained")
        rows: Any = figure.subfigures(2, 1, height_ratios=(height - 3.3, 3.3))
        above, below = rows
        places = above.subplots(1, len(maps), squeeze=False)[0]
        for axes, (title, values) in zip(places, maps.items(), strict=True):
            heat_axes(axes, table.assign(shown=values), title, both_signs="change" in title)
        left, middle, right = below.subplots(1, 3)
        rate_axes(left, table, "rate", "R^c in the layer's subspaces, nats")
        rate_axes(middle, table, "whole", "R of whole tokens, nats")
        gate_axes(right, table)
        left.legend(frameon=False, fontsize=8)
    return figure


def _maps(table: pd.DataFrame) -> dict[str, pd.Series]:
    maps = {
        "change of R^c by attention, %": 100 * table["change"] / table["rate_before"],
        "change of R^c over the block, %": 100 * table["block_change"] / table["rate_before"],
    }
    if "zeros" in table and table["zeros"].notna().any():
        maps["exact zeros after ISTA, %"] = 100 * table["zeros"]
    return maps


def heat_axes(axes: Axes, table: pd.DataFrame, title: str, *, both_signs: bool) -> None:
    """The column ``shown`` by layer and time, blue where it falls."""
    grid = table.pivot(index="layer", columns="time", values="shown")
    values = grid.to_numpy()
    limit = max(float(np.abs(values).max()), 1e-9)
    colours: dict[str, Any] = {"cmap": "Blues", "vmin": 0.0, "vmax": 100.0}
    if both_signs:
        colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    image = axes.imshow(values, aspect="auto", **colours)
    if values.size <= _MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(values):
            dark = (abs(value) if both_signs else value) > 0.6 * colours["vmax"]
            axes.text(
                column, row, f"{value:+.1f}" if both_signs else f"{value:.1f}",
                ha="center", va="center", fontsize=7, color="white" if dark else "black",
            )  # fmt: skip
    axes.set_xticks(range(grid.shape[1]), [f"{time:.3g}" for time in grid.columns])
    axes.tick_params(axis="x", labelsize=7, rotation=45 if grid.shape[1] > 10 else 0)
    axes.set_yticks(range(len(grid)), [str(layer) for layer in grid.index])
    axes.set(xlabel="diffusion time (0 data, 1 noise)", ylabel="layer", title=title)
    axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)


def rate_axes(axes: Axes, table: pd.DataFrame, kind: str, title: str) -> None:
    """Mean rates over times at the three places of every layer, with the spread over cells."""
    layers = np.arange(table["layer"].nunique())
    for offset, (name, place) in zip((-0.12, 0.0, 0.12), _PLACES.items(), strict=True):
        found = table.groupby("layer")[[f"{kind}_{place}", f"{kind}_{place}_sd"]].mean().to_numpy()
        axes.errorbar(
            layers + offset, found[:, 0], np.nan_to_num(found[:, 1]), color=_COLOURS[name], label=name,
            marker="o", markersize=4, linewidth=1, elinewidth=1, capsize=2,
        )  # fmt: skip
    axes.set_xticks(layers)
    axes.set(xlabel="layer (mean over times, bars: sd of cells)", title=title)


def gate_axes(axes: Axes, table: pd.DataFrame) -> None:
    """Mean gates over time, a colour a layer: attention drawn through, the token map dashed."""
    layers = sorted(table["layer"].unique())
    colours = mpl.colormaps["viridis"](np.linspace(0.1, 0.85, len(layers)))
    for layer, colour in zip(layers, colours, strict=True):
        own = table[table["layer"] == layer].sort_values("time")
        for name, style in (("mixer", "-"), ("sparse", "--")):
            if f"gate_{name}" in own:
                label = f"layer {layer}" if name == "mixer" else None
                axes.plot(own["time"], own[f"gate_{name}"], style, color=colour, label=label, linewidth=1.4)
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set(xlabel="diffusion time", title="mean gates: attention (line), token map (dashed)")
    axes.legend(fontsize=8, ncols=2 if len(layers) > 4 else 1, edgecolor="none", framealpha=0.85)


def write(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the suffix; the same figure gives the same bytes."""
    kind = path.suffix[1:]
    moment = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with mpl.rc_context(_STYLE):
        figure.savefig(path, format=kind, dpi=150, metadata=moment)
