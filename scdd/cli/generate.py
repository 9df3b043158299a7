"""The verb `generate`: cells of any trained generator, written as they are made."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003  (typer reads the annotations)
from typing import TYPE_CHECKING, Annotated

import typer

from scdd.cli import options as opt  # noqa: TC001
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scdd.models.generation import CellGenerator

_EXAMPLES = """Example: scdd generate model/ -n 1000 -c cell_type='B cell' -c age=60 -o cells.h5ad

Example: scdd generate model/ --table wanted.csv --steps 20 --guidance 1.5 -o cells.h5ad

Example: scdd generate model/ --like atlas.h5ad -n 1000000 --seed 1 -o cells.zarr"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(epilog=_EXAMPLES)(generate)


def generate(
    model: Annotated[
        Path, typer.Argument(help="A folder written by `scdd train scdg`, `dit` or `whitebox`.")
    ],
    out: opt.Out,
    cells: Annotated[
        int | None,
        typer.Option("--cells", "-n", min=1, help="How many; 1,000, or as many as --table or --like have."),
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            "--condition", "-c", help="COLUMN=VALUE for all cells; repeatable. Beside --like it replaces."
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="A .csv or .tsv with a row a cell and columns of conditions; a column n asks for so many cells."
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(help="Cells (file, folder or URL) whose composition and library sizes to match."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Network calls a cell; absent: 1 for scdg, as configured for the others."),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance, w in (1+w) f(c) - w f(null); 0 is none."),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="dpm++, ddim, ddpm or flow (not scdg); absent: as configured.")
    ] = None,
    eta: Annotated[float, typer.Option(help="Noise of --sampler ddim, 0 to 1 (not scdg).")] = 0.0,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Cells drawn at a time; other sizes make other cells.")
    ] = None,
    seed: opt.Seed = 0,
    progress: opt.Progress = True,
) -> None:
    """Generate labelled cells, streamed to disk: more of them than memory holds.

    Conditions that are left open follow the training composition, as they go with those that are given.
    """
    from scdd.models.saved import load_model
    from scdd.output import check_writable

    check_writable(out, suffixes=(".h5ad", ".zarr"))
    wanted = _conditions(condition or [])
    generator = load_model(model)
    if not hasattr(generator, "generate"):
        raise InputError(
            f"{model} holds a {type(generator).__name__}, which makes no cells; train scdg, dit or whitebox"
        )
    made: CellGenerator = generator  # type: ignore[assignment]
    n = 1_000 if cells is None and table is None and like is None else cells
    with _notes_shown():
        made.generate(
            n, condition=wanted, table=table, like=like, out=out, steps=steps, guidance=guidance,
            sampler=sampler, eta=eta, seed=seed, batch_size=batch_size, progress=progress,
        )  # fmt: skip
    typer.echo(f"wrote {out}")


def _conditions(items: list[str]) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--condition {item!r}: write COLUMN=VALUE")
        if name in wanted:
            raise InputError(f"--condition {name} is given twice; put several values into a --table")
        wanted[name] = value
    return wanted


@contextmanager
def _notes_shown() -> Iterator[None]:
    """What generation says of its request, on standard output."""

    class Echo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            typer.echo(record.getMessage())

    log, handler = logging.getLogger("scdd.generate"), Echo(logging.INFO)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
