"""The verb `train`: a generator, or the latent space of one, from cells on disk."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scdd.cli import options as opt
from scdd.cli.opening import hold_out, open_atlas
from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas


class Trainable(StrEnum):
    """What can be trained."""

    scdg = "scdg"
    dit = "dit"
    whitebox = "whitebox"
    autoencoder = "autoencoder"


_EXAMPLES = """Example: scdd train dit atlas.h5ad -l cell_type -c donor --checkpoints run/ -o model/

Example: scdd train whitebox atlas.h5ad -l cell_type --preset published --set tied=true -o model/

Example: scdd train scdg atlas.h5ad -l cell_type --validation 0.1 --log logs/ -o model/"""


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command(epilog=_EXAMPLES)(train)


def train(
    kind: Annotated[
        Trainable,
        typer.Argument(
            help="scdg: the one-step generator. dit: scRDiT's diffusion transformer. whitebox: the same on "
            "white-box blocks. autoencoder: the latent space of scdg alone."
        ),
    ],
    atlas: opt.Atlas,
    out: opt.Out,
    label: Annotated[
        str | None,
        typer.Option(
            "--label", "-l", help="Column of obs that holds the classes; autoencoder: may be absent."
        ),
    ] = None,
    condition: opt.Conditions = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="dit, whitebox: default, or published (their sizes and settings). scdg, autoencoder: fast, counts, "
            "quality or faithful."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Mini-batches (of each stage), in place of the preset's.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Cells of a mini-batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate; warm-up, then a cosine.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed; weights stay float32.")
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="torch.compile the loss; about a minute to begin with."),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.5,
            help="Share of the cells to judge by, and never train on; 0.1 for dit and whitebox, else 0, if absent.",
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(min=0, help="Stop after so many evaluations without a gain; 0: never. 10 if absent."),
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between evaluations; 250 for dit and whitebox, else 100, if absent."),
    ] = None,
    patch: Annotated[int | None, typer.Option(min=1, help="Genes of a token (dit, whitebox).")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Of the network (not autoencoder).")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Blocks (not autoencoder).")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Heads, or subspaces (dit, whitebox).")] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="whitebox: default, published, derived, alpha, token_statistics, tost ..."),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="scdg: code_then_noise, or mean_flow: the code is the noise.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="scdg, autoencoder: gaussian (log1p) or nb (raw counts).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="NAME=VALUE of any other setting; repeatable. A wrong name lists them all."
        ),
    ] = None,
    split_by: opt.SplitBy = None,
    test: Annotated[
        float,
        typer.Option(min=0.0, max=0.9, help="Share of cells to leave out altogether, for a report to come."),
    ] = 0.0,
    test_group: opt.TestGroups = None,
    expression: opt.ExpressionKind = opt.Expression.counts,
    layer: opt.Layer = "auto",
    genes: Annotated[
        int | None,
        typer.Option(min=0, help="Highly variable genes; 0: all, absent: as the preset says, mostly 2,000."),
    ] = None,
    drop_unlabelled: opt.Unlabelled = False,
    min_class_cells: opt.MinClass = 1,
    checkpoints: opt.Resume = None,
    log: Annotated[
        Path | None, typer.Option(help="Folder for losses as CSV, and for TensorBoard if it is installed.")
    ] = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    progress: opt.Progress = True,
) -> None:
    """Train a model from cells on disk and save it as a folder of JSON and safetensors.

    With --checkpoints the same command continues where a run was stopped, by Ctrl-C or otherwise. A run whose
    loss became NaN is continued with a lower --lr. An atlas that takes more than 1 GiB is not read into
    memory: batches stream from its files, which `scdd pack` makes faster.
    """
    from scdd.cli.training import Request
    from scdd.output import check_writable

    check_writable(out)
    own = {
        "condition": condition, "objective": objective, "head": head, "width": width, "depth": depth,
        "patch": patch, "heads": heads, "variant": variant,
    }  # fmt: skip
    general = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "precision": precision, "compile": compile,
        "validation": validation, "patience": patience, "validate_every": validate_every, "genes": genes,
    }  # fmt: skip
    request = Request(kind.value, label, {**own, **general}, settings or [], preset, seed, device)
    cells = _cells(
        open_atlas(atlas, label, layer, expression.value, drop_unlabelled, min_class_cells),
        label, split_by, test_group or test, seed,
    )  # fmt: skip
    model = request.model(cells)
    request.fit(model, checkpoints=checkpoints, log=log, progress=progress)
    model.save(out)
    typer.echo(f"wrote {out}: {kind.value} of {cells.n_obs:,} cells, {model.preprocessor.n_genes:,} genes")


def _cells(atlas: Atlas, label: str | None, by: str | None, test: Any, seed: int) -> Atlas:
    """What is not held out for a later report."""
    if test:
        return hold_out(atlas, label, by, test, seed)[0]
    if by:
        raise InputError("--split-by says how cells are held out; pass --test or --test-group as well")
    return atlas
