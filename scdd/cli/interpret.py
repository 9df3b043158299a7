"""The verb `interpret`: what the blocks of a white-box transformer do to real cells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdd.cli import options as opt  # noqa: TC001  (typer reads the annotations)


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(
        epilog="Example: scdd interpret model/ cells.h5ad --out interpretation.csv --plot interpretation.png"
    )(interpret)


def interpret(
    model: Annotated[Path, typer.Argument(help="A white-box diffusion transformer that was saved.")],
    cells: Annotated[str, typer.Argument(help="Labelled cells, best such as it was not trained on.")],
    out: opt.Out = Path("interpretation.csv"),
    plot: Annotated[Path | None, typer.Option(help="Also draw it: .png, .svg or .pdf.")] = None,
    times: Annotated[int, typer.Option(min=1, help="Diffusion times, evenly spaced.")] = 8,
    max_cells: Annotated[int, typer.Option(min=1, help="Cells to measure on, drawn at random.")] = 256,
    epsilon: Annotated[
        float, typer.Option(help="Precision of the coding rate, as in the paper: it enters squared.")
    ] = 0.1,
    tokens: Annotated[
        str, typer.Option(help="normalised: as CRATE's code measures. raw: the paper's formula.")
    ] = "normalised",
    seed: opt.Seed = 0,
) -> None:
    """Coding rate, sparsity, gates and orthogonality of a white box, by layer and diffusion time."""
    from scdd.errors import InputError
    from scdd.models.saved import load_model
    from scdd.models.transformer import WhiteBoxDiffusionTransformer
    from scdd.output import check_writable

    check_writable(out, suffixes=(".csv",), inputs=[cells])
    if plot is not None:
        check_writable(plot, suffixes=(".png", ".svg", ".pdf"), inputs=[cells])
    loaded = load_model(model)
    if not isinstance(loaded, WhiteBoxDiffusionTransformer):
        raise InputError(
            f"{model} holds a {type(loaded).__name__}, which has no white-box blocks to interpret; "
            "name a model that `scdd train whitebox` wrote"
        )
    found = loaded.interpret(
        cells,
        n_times=times,
        max_cells=max_cells,
        epsilon=epsilon,
        tokens=tokens,  # type: ignore[arg-type]
        seed=seed,
    )
    typer.echo(str(found))
    for path in (out, plot):
        if path is not None:
            found.save(path)
            typer.echo(f"wrote {path}")
