"""The verb `fidelity`: how like real cells generated cells are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdd.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(
        epilog="Example: scdd fidelity generated.h5ad --train train.h5ad --test test.h5ad --label cell_type --out fidelity.csv"
    )(fidelity)


def fidelity(
    generated: Annotated[Path, typer.Argument(help="Generated cells, by whatever tool they were made.")],
    train: Annotated[Path, typer.Option(help="Real cells that the generator was trained on.")],
    test: Annotated[Path, typer.Option(help="Real cells that it never saw.")],
    label: Annotated[
        str | None, typer.Option("--label", "-l", help="Column of obs with the class that was asked for.")
    ] = None,
    out: opt.Out = Path("fidelity.csv"),
    report: Annotated[
        Path | None, typer.Option(help="Also write a page with figures: .html, or .md without them.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Further real cells to fit genes and components on.")
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metrics", help="A family of metrics; repeatable. All by default.")
    ] = None,
    compat: Annotated[
        list[str] | None,
        typer.Option(
            help="scrdit, scdiffusion, cfgen-2025, cfgen-2026 or groundgan: as published; repeatable."
        ),
    ] = None,
    max_cells: Annotated[int, typer.Option(min=40, help="Cells of each side in a draw.")] = 2_000,
    draws: Annotated[int, typer.Option(min=1, help="Draws, for the intervals.")] = 3,
    genes: Annotated[int, typer.Option(min=2, help="Highly variable genes of the metric space.")] = 2_000,
    expression: Annotated[
        opt.Expression, typer.Option(help="What the generated values are; real ones are found out.")
    ] = opt.Expression.auto,
    seed: opt.Seed = 0,
    progress: opt.Progress = True,
) -> None:
    """Compare generated with held-out real cells, beside what a second real sample scores."""
    from scdd.evaluation.generated.fidelity import fidelity as judge
    from scdd.evaluation.generated.report import SUFFIXES
    from scdd.output import check_writable

    inputs = [path for path in (generated, train, test, reference) if path is not None]
    for path in (out, report):
        if path is not None:
            check_writable(path, suffixes=SUFFIXES, inputs=inputs)
    found = judge(
        str(generated),
        train=str(train),
        test=str(test),
        reference=None if reference is None else str(reference),
        label_key=label,
        metrics=metrics,
        compat=compat or (),
        max_cells=max_cells,
        draws=draws,
        seed=seed,
        n_genes=genes,
        expression=expression.value,
        progress=progress,
    )
    typer.echo(str(found))
    for path in (out, report):
        if path is not None:
            typer.echo(f"wrote {found.save(path)}")
