"""The figure of docs/results/generators.md: forest AUC in both spaces, by task and method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from generators import bars
from generators.methods import OURS

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

_BARS = (("AUC in 50 PCs", 0, 0.60), ("AUC in genes", 1, 0.75))


def draw(frame: pd.DataFrame, path: Path) -> None:
    """One panel a space, one row a method, one mark a task; the dashed line is the bar."""
    methods, tasks = list(dict.fromkeys(frame["method"])), list(dict.fromkeys(frame["task"]))
    methods.sort(key=lambda name: name.split(" (")[0] in OURS)
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(methods)), layout="constrained")
    for axes, (title, which, most) in zip(figure.subplots(1, 2, sharey=True), _BARS, strict=True):
        for task, marker in zip(tasks, "osD^vPX*" * len(tasks), strict=False):
            found = [
                (bars.bars_of(runs)[which].mean, methods.index(name))
                for name, runs in frame[frame["task"] == task].groupby("method", sort=False)
            ]
            axes.plot(*zip(*found, strict=True), marker, label=task, alpha=0.8, markersize=5)
        axes.axvline(most, linestyle="--", color="0.4", linewidth=1)
        axes.axvline(0.5, color="0.8", linewidth=1)
        axes.set(title=title, xlim=(0.45, 1.02), yticks=range(len(methods)), yticklabels=methods)
    figure.axes[1].legend(fontsize=8, loc="upper right")
    with mpl.rc_context({"svg.hashsalt": "scdd"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
