"""The one-step objectives of SCDG beside each other, one call to fifty: docs/results/one_step.md and .csv.

    python bench/one_step.py run --data FOLDER                 # resumable; then writes the table
    python bench/one_step.py table                             # rewrite the table from the rows

A seed drives autoencoder, generators and draws; the split is made once (seed 0, within classes, 20 % test).
All objectives of a seed share one autoencoder, and the student's teacher is the code_then_noise generator
itself (a test holds that they are the same to the bit).
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import scdd
from scdd.evaluation.generated.fidelity import judge
from scdd.evaluation.generated.readings import ALL, MEAN
from scdd.evaluation.generated.settings import FAMILIES, Settings
from scdd.evaluation.generated.transport import sliced_wasserstein
from scdd.evaluation.generated.two_sample import discrepancy, median_distance
from scdd.evaluation.scores import interval
from scdd.models.config import OBJECTIVES
from scdd.models.sensitivity import sensitivity
from scdd.models.student import train_student
from scdd.output import atomic_path

RESULTS = Path(__file__).parent.parent / "docs" / "results"
ROWS, TABLE = RESULTS / "one_step.csv", RESULTS / "one_step.md"
COLUMNS = ("data", "seed", "objective", "steps", "metric", "value", "floor", "excess", "margin")
STEPS = (1, 2, 4, 10, 50)
TEACHER = "code_then_noise"  # whose fifty steps are the bar
# (metric, how its space begins, group): the aspects of fidelity in one row each.
HEADLINE = {
    "forest AUC, PCs": ("AUC, random forest", "PCs", ALL),
    "boosting AUC, genes": ("AUC, boosting", "genes", ALL),
    "MMD², PCs": ("MMD²", "PCs", ALL),
    "sliced W2, PCs": ("W2, sliced", "PCs", ALL),
    "recall": ("recall", "PCs", ALL),
    "coverage": ("coverage", "PCs", ALL),
    "corr. of correlations": ("correlation of correlations", "genes", ALL),
    "genes detected, KS": ("genes detected, KS", "genes", ALL),
    "fold-change slope": ("log-fold-change slope", "", MEAN),
    "fold-change Spearman": ("log-fold-change Spearman", "", MEAN),
    "purity": ("purity", "", MEAN),
    "macro-F1, train on it": ("macro-F1 trained on it, logistic regression", "", ALL),
    "distance to train": ("distance to nearest train cell", "", ALL),
}
# Composition is what was asked for.
CHOSEN = tuple(name for name in FAMILIES if name != "composition")


class Table:
    """The CSV file of results, a row appended as soon as it is known."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=list(COLUMNS))

    def has(self, data: str, seed: int, objective: str, steps: int, metric: str) -> bool:
        r = self.rows
        here = (r["data"] == data) & (r["seed"] == seed) & (r["objective"] == objective)
        return bool((here & (r["steps"] == steps) & (r["metric"] == metric)).any())

    def add(self, where: tuple[str, int, str, int], found: dict[str, tuple[float, ...]]) -> None:
        """``found``: metric -> value, floor, excess, margin (the later ones may be left out)."""
        rows = [(*where, name, *values, *[np.nan] * (4 - len(values))) for name, values in found.items()]
        fresh = pd.DataFrame(rows, columns=list(COLUMNS))
        self.rows = pd.concat([self.rows, fresh], ignore_index=True) if len(self.rows) else fresh
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([COLUMNS] if file.tell() == 0 else [])
            writer.writerows([(*row[:5], *(f"{v:.6g}" for v in row[5:])) for row in rows])


class Task:
    """A data set in two parts, and what its latent measures need."""

    def __init__(self, folder: Path, name: str):
        self.name = name
        atlas = scdd.Atlas(folder / f"{name}.h5ad")
        self.train, self.test = atlas.split(label_key="cell_type", test=0.2, seed=0)
        self.labels = self.train.obs["cell_type"].astype(str).to_numpy()
        self._encoded: tuple[Any, np.ndarray, np.ndarray] | None = None

    def encoded(self, model: scdd.SCDG) -> tuple[np.ndarray, np.ndarray]:
        """Codes of train and test; one autoencoder serves all objectives of a seed."""
        if self._encoded is None or self._encoded[0] is not model.autoencoder:
            sides = (model.encode(self.train), model.encode(self.test))
            # generated codes are like draws of the posterior, not like its means
            stream, net = torch.Generator().manual_seed(0), model.autoencoder.net
            drawn = [net.posterior_draw(torch.from_numpy(side), stream).numpy() for side in sides]
            self._encoded = (model.autoencoder, *drawn)
        return self._encoded[1:]

    def latent_measures(self, model: scdd.SCDG, made: np.ndarray, of: np.ndarray) -> dict[str, tuple]:
        """Sliced W2 and MMD² of codes against held-out encoded cells, mean over classes; train is the floor."""
        known = pd.Index(model.conditions.values[0])
        train, held = self.encoded(model)
        at = known.get_indexer(self.test.obs["cell_type"].astype(str))
        own = known.get_indexer(self.labels)
        unit, values = median_distance(train), []
        for k in range(len(known)):
            truth = held[at == k]
            if len(truth) < 20:
                continue
            sides = [made[of == k], train[own == k]]
            w2 = [sliced_wasserstein(side[: len(truth)], truth) for side in sides]
            mmd = [discrepancy(side, truth, unit=unit).value for side in sides]
            spread = [side.var(0).sum() / truth.var(0).sum() for side in sides]
            values.append([w2, mmd, spread])
        w2, mmd, spread = np.mean(values, axis=0).tolist()
        return {
            "latent sliced W2": tuple(w2),
            "latent MMD²": tuple(mmd),
            "latent variance ratio": tuple(spread),
        }


def generators(task: Task, seed: int, wanted: list[str], folder: Path | None, options: dict[str, Any]):
    """Trained generators of one seed as (objective, model, seconds without the shared autoencoder).

    With a ``folder`` of checkpoints an interrupted run goes on where it was; seconds are then of the rest.
    Seconds are of the processor: other work on the machine does not count.
    """
    shared = {"label_key": "cell_type", "seed": seed, "device": "cpu", "autoencoder_head": "nb", **options}
    autoencoder, teacher, spent = None, None, 0.0
    for objective in wanted:
        model = scdd.SCDG(task.train, objective=objective, autoencoder=autoencoder, **shared)
        place = folder / f"{task.name}-{seed}" / objective if folder else None
        if autoencoder is None:
            first = place.parent / "autoencoder.pt" if place else None
            autoencoder = model.autoencoder.fit(checkpoint=first, progress=False)
        start = time.process_time()
        if objective == "distilled" and teacher is not None:
            _student_of(teacher, model)
        else:
            model.fit(checkpoint=place, progress=False)
        seconds = time.process_time() - start
        if objective == TEACHER:
            teacher, spent = model, seconds
        yield objective, model, seconds + (spent if objective == "distilled" else 0.0)


def _student_of(teacher: scdd.SCDG, model: scdd.SCDG) -> None:
    """Make ``model`` the distilled generator whose teacher is trained already."""
    model.net = model._build()
    missing = model.net.load_state_dict(teacher.net.state_dict(), strict=False)
    assert not missing.unexpected_keys
    fields = torch.from_numpy(model.atlas.labels("cell_type").codes)[:, None]
    model.net, model.history["student"] = train_student(
        model.net, fields, model.config, checkpoint=None, identity={}, progress=False
    )
    model.net.requires_grad_(False)
    model.priors, model.fitted = teacher.priors, True


def clean_latents(model: scdd.SCDG, fields: torch.Tensor, steps: int, seed: int) -> np.ndarray:
    """Latents as `generate` makes them."""
    stream = torch.Generator().manual_seed(seed)
    eps = torch.randn(len(fields), model.autoencoder.config.latent, generator=stream)
    with torch.no_grad():
        if steps > 1:
            w = model.config.guidance
            made = model.net.many_steps(eps, fields, steps=steps, guidance=w, generator=stream)
        else:
            code = eps if model.config.code_is_noise else model.priors.sample(fields[:, 0], stream)
            made = model.latent(code, eps, fields)
    return made.numpy()


def measure(
    task: Task, model: scdd.SCDG, table: Table, where: tuple[str, int, str, int], fidelity: bool
) -> None:
    """Latent measures, hold of the code, speed and (if asked) fidelity of one generator at so many steps."""
    _, seed, _, steps = where
    if not table.has(*where, "latent sliced W2"):
        of = np.repeat(np.arange(len(model.conditions.values[0])), 300)
        made = clean_latents(model, torch.from_numpy(of)[:, None], steps, seed + 10)
        found = task.latent_measures(model, made, of)
        hold = sensitivity(model, steps=steps, n=36, seed=seed)
        found["|ds/dz|, Frobenius"] = (float(hold.frobenius.mean()),)
        found["|ds/dz|, operator"] = (float(hold.operator.mean()),)
        table.add(where, found)
    if fidelity and not table.has(*where, "purity"):
        start = time.process_time()
        cells = model.generate(
            condition={"cell_type": task.labels}, steps=steps, seed=seed + 20, progress=False
        )
        rate = len(task.labels) / (time.process_time() - start)
        settings = Settings(draws=1, permutations=0, families=CHOSEN, seed=seed)
        report = judge(
            cells, task.train, task.test, None, label_key="cell_type", settings=settings, progress=False
        )
        table.add(where, {"cells/s": (rate,), **headline(report.table)})


def headline(rows: pd.DataFrame) -> dict[str, tuple[float, ...]]:
    """The rows of a fidelity report that are kept."""
    found = {}
    for name, (metric, space, group) in HEADLINE.items():
        here = rows[(rows["metric"] == metric) & (rows["group"] == group) & rows["space"].str.contains(space)]
        if len(here):
            row = here.iloc[0]
            found[name] = tuple(float(row[c]) for c in ("value", "floor", "excess", "margin"))
    return found


def run(arguments: argparse.Namespace) -> None:
    """All objectives of all seeds and sets; what the CSV file holds already is left out."""
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    table, options = Table(arguments.rows), {"preset": arguments.preset}
    for seed in range(arguments.seeds):
        for name in arguments.datasets.split(","):
            wanted = [o for o in OBJECTIVES if _open(table, name, seed, o, arguments)]
            if not wanted:
                continue
            if "distilled" in wanted and TEACHER not in wanted:
                wanted.insert(0, TEACHER)
            task = Task(arguments.data, name)
            for objective, model, seconds in generators(task, seed, wanted, arguments.checkpoints, options):
                if not table.has(name, seed, objective, 0, "training seconds"):
                    table.add((name, seed, objective, 0), {"training seconds": (seconds,)})
                for steps in STEPS:
                    start = time.process_time()
                    measure(task, model, table, (name, seed, objective, steps), steps in arguments.fidelity)
                    spent = time.process_time() - start
                    print(f"{name} seed {seed} {objective} steps {steps}: {spent:.0f} s", flush=True)
    write(arguments.rows)


def _open(table: Table, name: str, seed: int, objective: str, arguments: argparse.Namespace) -> bool:
    last = all(table.has(name, seed, objective, k, "latent sliced W2") for k in STEPS)
    return not (last and all(table.has(name, seed, objective, k, "purity") for k in arguments.fidelity))


def losses(rows: pd.DataFrame) -> pd.DataFrame:
    """Per row of fidelity: how much worse than the teacher's fifty steps, relative to their value.

    ``(excess - excess of the bar) / max(|value of the bar|, margin)``: at most 0.05 is "within 5 %".
    """
    keys = ["data", "seed", "metric"]
    rows = rows[rows["metric"].isin(HEADLINE)]
    bar = rows[(rows["objective"] == TEACHER) & (rows["steps"] == max(STEPS))].set_index(keys)
    kept = rows[rows.set_index(keys).index.isin(bar.index)].copy()
    best = bar.loc[pd.MultiIndex.from_frame(kept[keys])]
    scale = np.maximum(best["value"].abs(), best["margin"]).to_numpy()
    kept["loss"] = (kept["excess"].to_numpy() - best["excess"].to_numpy()) / scale
    return kept


def write(path: Path) -> None:
    """The table as Markdown, whole or not at all."""
    with atomic_path(TABLE) as temporary:
        temporary.write_text(text(pd.read_csv(path)), encoding="utf-8")


def text(rows: pd.DataFrame) -> str:
    """What `docs/results/one_step.md` holds."""
    seeds = rows.groupby("data")["seed"].nunique()
    lines = [PREFACE.format(seeds=", ".join(f"{d}: {n}" for d, n in seeds.items())), *_bar(rows)]
    for name in dict.fromkeys(rows["data"]):
        here = rows[rows["data"] == name]
        lines += [f"## {name}", "", *_latent(here), "", *_fidelity(here), ""]
    return "\n".join(lines)


def _bar(rows: pd.DataFrame) -> list[str]:
    kept = losses(rows)
    lines = [
        "## One step against the 50-step sampler",
        "",
        "How many of the fidelity metrics are within 5 % of the teacher's fifty DDIM steps (mean over seeds), and "
        "the metric furthest off.",
        "",
        "| data | objective | steps | within 5 % | worst |",
        "|---|---|---|---|---|",
    ]
    mean = kept.groupby(["data", "objective", "steps", "metric"], sort=False)["loss"].mean().reset_index()
    for (name, objective, steps), part in mean.groupby(["data", "objective", "steps"], sort=False):
        worst = part.loc[part["loss"].idxmax()]
        count = int((part["loss"] <= 0.05).sum())
        far = f"{worst['metric']} {worst['loss']:+.0%}"
        lines.append(f"| {name} | {objective} | {steps} | {count} of {len(part)} | {far} |")
    return [*lines, ""]


def _shown(part: pd.DataFrame, column: str = "value") -> str:
    if not len(part):
        return "–"
    found = interval(part.groupby("seed")[column].mean())
    half = "" if np.isnan(found.low) else f" ± {found.mean - found.low:.2g}"
    return f"{found.mean:.3g}{half}"


def _latent(rows: pd.DataFrame) -> list[str]:
    columns = {
        "sliced W2": "latent sliced W2",
        "MMD²": "latent MMD²",
        "variance ratio": "latent variance ratio",
        "‖∂s/∂z‖": "|ds/dz|, Frobenius",
        "cells/s": "cells/s",
    }
    floor = [f"{_shown(rows[rows['metric'] == m], 'floor')}" for m in list(columns.values())[:3]]
    lines = [
        "| objective (training, s) | steps | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 2) + "|",
        f"| *train cells* | – | {' | '.join(floor)} | – | – |",
    ]
    for objective in dict.fromkeys(rows["objective"]):
        own = rows[rows["objective"] == objective]
        seconds = _shown(own[own["metric"] == "training seconds"])
        for steps in STEPS:
            here = own[own["steps"] == steps]
            cells = [_shown(here[here["metric"] == metric]) for metric in columns.values()]
            lines.append(f"| {objective} ({seconds}) | {steps} | {' | '.join(cells)} |")
    return lines


def _fidelity(rows: pd.DataFrame) -> list[str]:
    kept = rows[rows["metric"].isin(HEADLINE)]
    pairs = list(dict.fromkeys(zip(kept["objective"], kept["steps"], strict=True)))
    lines = [
        "| metric | real cells | " + " | ".join(f"{o}, {k}" for o, k in pairs) + " |",
        "|---" * (len(pairs) + 2) + "|",
    ]
    for metric in HEADLINE:
        here = kept[kept["metric"] == metric]
        cells = [_shown(here[(here["objective"] == o) & (here["steps"] == k)]) for o, k in pairs]
        lines.append(f"| {metric} | {_shown(here, 'floor').split(' ')[0]} | {' | '.join(cells)} |")
    return lines


PREFACE = """# One step or many

Made by `python bench/one_step.py run --data FOLDER`; every number is in `one_step.csv`. Seeds: {seeds}; ± is the 95 %
interval over them. Seconds and cells/s are of processor time, one thread; –: not measured.

All objectives share autoencoder (negative-binomial head), network, batches and their number. Latent measures compare
codes with those of held-out cells, class by class, mean over classes of 20 cells or more; *train cells* are encoded
training cells in place of generated ones, and `variance ratio` is the variance within classes over that of held-out
cells. `‖∂s/∂z‖` is the Frobenius norm of the Jacobian of expected log1p expression in the code (a clean latent for
`code_then_noise` in one step, else noise). `cells/s` is all of `generate`, counts drawn. Fidelity is
`scdd.fidelity` on one draw; *real cells* is its floor. Trained with
`preset="counts"`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run", help="train, measure, write the table")
    runner.add_argument("--data", type=Path, required=True, help="folder of the .h5ad files")
    runner.add_argument("--datasets", default="pbmc3k,mouse_pancreas_e15")
    runner.add_argument("--seeds", type=int, default=3)
    runner.add_argument("--preset", default="counts")
    runner.add_argument(
        "--fidelity", type=lambda s: [int(k) for k in s.split(",")], default=list(STEPS),
        help="the steps whose cells are judged by scdd.fidelity",
    )  # fmt: skip
    runner.add_argument("--checkpoints", type=Path, help="folder to resume an interrupted training from")
    writer = verbs.add_parser("table", help="rewrite the table")
    for verb in (runner, writer):
        verb.add_argument("--rows", type=Path, default=ROWS, help="the CSV file")
    arguments = parser.parse_args()
    if arguments.verb == "table":
        write(arguments.rows)
        sys.stdout.write(TABLE.read_text())
        return
    run(arguments)


if __name__ == "__main__":
    main()
