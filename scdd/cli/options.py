"""Options that several verbs share, each described once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Expression(StrEnum):
    """Kinds of expression values."""

    counts = "counts"
    log1p = "log1p"
    fractional = "fractional"
    auto = "auto"


class Preset(StrEnum):
    """How much to spend."""

    fast = "fast"
    quality = "quality"
    faithful = "faithful"


Atlas = Annotated[
    list[str],  # a Path would lose a slash of a URL
    typer.Argument(
        metavar="ATLAS...", help=".h5ad or .zarr files or URLs, or folders; several make one atlas."
    ),
]
Label = Annotated[str, typer.Option("--label", "-l", help="Column of obs that holds the classes.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Where to write; nothing half-written is ever left there.")
]
Layer = Annotated[
    str, typer.Option(help="X, raw/X, layers/NAME, or auto: the first that holds --expression.")
]
ExpressionKind = Annotated[
    Expression,
    typer.Option("--expression", help="What the values are; they are checked, never guessed silently."),
]
Genes = Annotated[int, typer.Option("--genes", min=0, help="Highly variable genes to keep; 0 keeps all.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same result; bit for bit on the CPU.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
PresetChoice = Annotated[
    Preset,
    typer.Option(
        "--preset", help="fast: a laptop. quality: longer, larger. faithful: scDD as reconstructed."
    ),
]
Conditions = Annotated[
    list[str] | None,
    typer.Option("--condition", "-c", help="A further obs column to condition on; repeatable."),
]
Unlabelled = Annotated[bool, typer.Option("--drop-unlabelled", help="Leave out cells without a label.")]
MinClass = Annotated[
    int, typer.Option("--min-class-cells", min=1, help="Leave out classes with fewer cells than this.")
]
Progress = Annotated[bool, typer.Option(help="Show progress bars (only ever on a terminal).")]
Resume = Annotated[
    Path | None,
    typer.Option("--checkpoints", help="Folder for checkpoints; run the same command again to resume."),
]
SplitBy = Annotated[
    str | None, typer.Option("--split-by", help="obs column (donor, batch) whose groups are held out whole.")
]
TestShare = Annotated[
    float, typer.Option("--test", min=0.0, max=0.9, help="Share of cells held out for the report.")
]
TestGroups = Annotated[
    list[str] | None, typer.Option("--test-group", help="A group of --split-by to hold out; repeatable.")
]
