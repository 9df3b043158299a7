"""The verbs: distill, train, generate, evaluate, fidelity, interpret, simulate, pack, info."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scdd.cli import fidelity as fidelity_verb
from scdd.cli import generate as generate_verb
from scdd.cli import interpret as interpret_verb
from scdd.cli import options as opt
from scdd.cli import pack as pack_verb
from scdd.cli import train as train_verb
from scdd.cli.opening import hold_out, open_atlas
from scdd.errors import InputError

app = typer.Typer(
    name="scdd",
    help="Distil, generate and evaluate single-cell RNA atlases. Every result is an ordinary .h5ad.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)


@app.command(
    epilog="Example: scdd distill pbmc3k.h5ad --label cell_type --cells-per-class 10 -o distilled.h5ad --report report.html"
)
def distill(
    atlas: opt.Atlas,
    label: opt.Label,
    out: opt.Out = Path("distilled.h5ad"),
    cells_per_class: Annotated[
        int | None, typer.Option("--cells-per-class", "-k", min=1, help="Rows for each class [10].")
    ] = None,
    cells: Annotated[
        int | None, typer.Option(min=1, help="Rows in all, in place of --cells-per-class.")
    ] = None,
    allocation: Annotated[
        str, typer.Option(help="How --cells are shared out: balanced or proportional.")
    ] = "balanced",
    report: Annotated[
        Path | None, typer.Option(help="Also hold cells out, score on them and write this HTML report.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="scdd, kmeans_decode, or a rule over real cells: random, herding, half_half, pool ..."
        ),
    ] = "scdd",
    init: Annotated[
        str | None, typer.Option(help="Where codes start: random, prior, real, kmeans or a rule's name.")
    ] = None,
    generator: Annotated[
        Path | None, typer.Option(help="A model saved by `scdd train scdg`, to reuse.")
    ] = None,
    baselines: Annotated[
        str, typer.Option(help="Rules to set beside the result in the report, by commas; empty for none.")
    ] = "half_half,pool_local",
    seeds: Annotated[int, typer.Option(min=2, help="Seeds of the report's classifiers.")] = 3,
    split_by: opt.SplitBy = None,
    test: opt.TestShare = 0.2,
    test_group: opt.TestGroups = None,
    condition: opt.Conditions = None,
    preset: opt.PresetChoice = opt.Preset.fast,
    expression: opt.ExpressionKind = opt.Expression.counts,
    layer: opt.Layer = "auto",
    genes: opt.Genes = 2_000,
    drop_unlabelled: opt.Unlabelled = False,
    min_class_cells: opt.MinClass = 1,
    checkpoints: opt.Resume = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    progress: opt.Progress = True,
) -> None:
    """Distil a labelled atlas into a few synthetic cells a class.

    Without --report every cell is used. With it a test part is held out first, is never seen by anything
    that is fitted, and which cells it holds is written beside the output (OUT.split.csv).
    """
    from scdd.data.splits import save_split
    from scdd.distillation.distill import distill as run
    from scdd.models.scdg import SCDG
    from scdd.output import check_writable, write_anndata

    rules = [name for name in baselines.split(",") if name]
    _refuse_before_work(method, init, rules, report, split_by, test_group)
    check_writable(out, suffixes=(".h5ad", ".zarr"), inputs=atlas)
    if report is not None:
        check_writable(report, suffixes=(".html",), inputs=atlas)
    whole = open_atlas(atlas, label, layer, expression, drop_unlabelled, min_class_cells)
    model = SCDG.load(generator) if generator else None
    train, held_out = whole, None
    if report is not None:
        train, held_out = hold_out(whole, label, split_by, test_group or test, seed)
        if model is not None and model.trained_on != train.fingerprint():
            raise InputError(
                f"--generator {generator} was not trained on exactly the training part, so the held-out cells may "
                "not be unseen; train it with the same --split-by, --test and --seed, or leave --report out"
            )
    common: dict[str, Any] = {
        "label_key": label,
        "cells_per_class": cells_per_class,
        "total": cells,
        "allocation": allocation,
        "seed": seed,
        "progress": progress,
    }
    result = run(
        train, method=method, init=init, preset=preset.value, generator=model, conditions=condition or (),
        n_top_genes=genes or None, device=device,
        checkpoint=None if checkpoints is None else str(checkpoints), **common,
    )  # fmt: skip
    write_anndata(result, out)
    typer.echo(f"wrote {out}: {result.n_obs} rows for {train.n_obs:,} cells, {result.n_vars:,} genes")
    if cells is None and method != "class_centroid":
        _say_short_classes(result, label, cells_per_class or 10)
    if held_out is not None:
        parts = {"train": train.obs.index, "test": held_out.obs.index}
        save_split(out.with_suffix(".split.csv"), parts)
        # Baselines see the genes of the result: all sets are judged on the same ones.
        rest = common | {"n_top_genes": None, "genes": list(result.var_names)}
        others = {name: run(train, method=name, **rest) for name in rules}
        _report(result, train, held_out, label, others, seeds, report, progress)


def _refuse_before_work(
    method: str,
    init: str | None,
    rules: list[str],
    report: Path | None,
    split_by: str | None,
    groups: list[str] | None,
) -> None:
    """Options that would be ignored, or fail only at the end."""
    from scdd.distillation.distill import METHODS
    from scdd.distillation.selectors import SELECTORS

    if method not in METHODS:
        raise InputError(f"--method {method!r} is unknown; choose one of {', '.join(METHODS)}")
    if init is not None and method != "scdd":
        raise InputError(f"--init {init!r} goes with --method scdd, not {method}")
    if report is None and (split_by or groups):
        raise InputError(
            "--split-by and --test-group hold cells out for --report; without it every cell is used"
        )
    for name in rules:
        if name not in SELECTORS:
            raise InputError(f"--baselines {name!r} is unknown; choose from {', '.join(SELECTORS)}")


def _say_short_classes(result: Any, label: str, wanted: int) -> None:
    sizes = result.obs[label].value_counts()
    short = sizes[sizes < wanted]
    if len(short):
        typer.echo(
            f"  {len(short)} classes have fewer rows than {wanted}, e.g. {short.index[0]!r}: {short.iloc[0]}"
        )


def _report(
    result: Any, train: Any, test: Any, label: str, others: Any, seeds: int, path: Path | None, progress: bool
) -> None:
    from scdd.evaluation.evaluate import evaluate as judge

    report = judge(
        result, train=train, test=test, label_key=label, baselines=others, seeds=seeds, progress=progress
    )
    typer.echo(str(report))
    if path is not None:
        report.save(path)
        typer.echo(f"wrote {path}")


train_verb.register(app)
generate_verb.register(app)


@app.command(
    epilog="Example: scdd evaluate distilled.h5ad --train train.h5ad --test test.h5ad --label cell_type -o report.html"
)
def evaluate(
    distilled: Annotated[Path, typer.Argument(help="The set to judge, by whatever tool it was made.")],
    test: Annotated[Path, typer.Option(help="Held-out real cells.")],
    label: opt.Label,
    train: Annotated[
        Path | None, typer.Option(help="Real training cells; without them there is no recovery.")
    ] = None,
    out: opt.Out = Path("report.html"),
    baseline: Annotated[list[str] | None, typer.Option(help="NAME=FILE of another set; repeatable.")] = None,
    split: Annotated[
        Path | None,
        typer.Option(help="A saved OUT.split.csv: --train and --test are then one atlas, parted by it."),
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="Also write every score as CSV.")] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Seeds of the classifiers.")] = 5,
    expression: opt.ExpressionKind = opt.Expression.auto,
    progress: opt.Progress = True,
) -> None:
    """Train classifiers on a distilled set, score them on held-out cells, write an HTML report."""
    from scdd.data.atlas import Atlas
    from scdd.data.splits import load_split
    from scdd.evaluation.evaluate import evaluate as judge
    from scdd.output import check_writable

    inputs = [distilled, test, *([train] if train else [])]
    check_writable(out, suffixes=(".html",), inputs=inputs)
    if scores is not None:
        check_writable(scores, suffixes=(".csv",), inputs=inputs)
    real_test = Atlas(str(test), expression=expression.value)
    real_train = Atlas(str(train), expression=expression.value) if train else None
    if split is not None:
        parts = load_split(split, real_test.obs.index)
        real_train, real_test = real_test.subset(parts["train"]), real_test.subset(parts["test"])
    others = {name: file for name, _, file in (item.partition("=") for item in baseline or [])}
    report = judge(
        str(distilled),
        train=real_train,
        test=real_test,
        label_key=label,
        baselines=others,
        seeds=seeds,
        progress=progress,
    )
    typer.echo(str(report))
    report.save(out)
    if scores is not None:
        report.to_csv(scores)
    typer.echo(f"wrote {out}")


@app.command(epilog="Example: scdd simulate pbmc3k.h5ad --label cell_type --cells 1000000 -o big.h5ad")
def simulate(
    out: opt.Out,
    reference: Annotated[
        Path | None, typer.Argument(help="An atlas of counts to imitate; none: a synthetic design.")
    ] = None,
    label: Annotated[
        str, typer.Option("--label", "-l", help="Column of obs that holds the classes.")
    ] = "cell_type",
    batch: Annotated[str, typer.Option(help="Column of obs that holds donors or batches.")] = "batch",
    cells: Annotated[int, typer.Option("--cells", "-n", min=1, help="How many.")] = 10_000,
    genes: Annotated[int, typer.Option(min=1, help="Genes of a synthetic design.")] = 2_000,
    classes: Annotated[int, typer.Option(min=1, help="Classes of a synthetic design.")] = 8,
    batches: Annotated[int, typer.Option(min=1, help="Batches of a synthetic design.")] = 1,
    seed: opt.Seed = 0,
) -> None:
    """Simulate counts (gamma-Poisson), from a design or fitted to an atlas; streams to disk past memory."""
    from scdd.data.simulation.simulate import simulate_to_file
    from scdd.output import check_writable

    check_writable(out, suffixes=(".h5ad",), inputs=[reference] if reference else [])
    options: dict[str, Any] = (
        {} if reference else {"n_genes": genes, "n_classes": classes, "n_batches": batches}
    )
    simulate_to_file(
        out,
        None if reference is None else str(reference),
        n_cells=cells,
        label_key=label,
        batch_key=batch,
        seed=seed,
        **options,
    )
    typer.echo(f"wrote {out}: {cells:,} cells")


fidelity_verb.register(app)
interpret_verb.register(app)
pack_verb.register(app)


@app.command(epilog="Example: scdd info atlas.h5ad --label cell_type")
def info(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A file or URL of cells, a packed folder or a saved model.")
    ],
    label: Annotated[
        str | None, typer.Option("--label", "-l", help="Count the cells of every class of this column.")
    ] = None,
) -> None:
    """Say what a file holds: cells, genes, kinds of expression, columns; and how fast it is read, and why."""
    from scdd.data.inspection.describe import describe

    typer.echo(describe(path, label))
