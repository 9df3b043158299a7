"""Every generator on every task, over seeds: docs/results/generators.md.

    python bench/generators/run.py run --data FOLDER --tasks pbmc3k,kang --methods scdg,nb_copula --seeds 3
    python bench/generators/run.py table                     # rewrite the table and the figure from the rows

Runs that the file already holds are left out, unless --again. --set gives a method settings as JSON, --tag a
name to list them under; cells come again from --cache where settings and code are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import scdd
from generators import rows, store
from generators.methods import METHODS, method
from generators.tasks import LABEL, RECIPES, Task, load


def run_one(task: Task, name: str, seed: int, options: argparse.Namespace) -> None:
    """Train, generate cells of the classes of test, judge them, append the rows."""
    settings = json.loads(options.set)
    path = store.place(
        options.cache, task.name, name, seed, settings | ({"cells": options.cells} if options.cells else {})
    )
    made = None if options.fresh else store.load(path)
    if made is None:
        labels = asked_of(task, seed, options.cells)
        made = method(name)(task, labels, seed=seed, settings=settings)
        store.save(path, made)
    start = time.perf_counter()
    table = judge(task, made.cells, seed, options)
    rows.append(
        options.out, table, task=task.name, method=_shown(name, options.tag), seed=seed,
        cells_made=made.cells.n_obs, train_seconds=made.train_seconds, generate_seconds=made.generate_seconds,
        settings=options.set if settings else "", note=made.note,
    )  # fmt: skip
    spent = f"train {made.train_seconds:.0f} s, generate {made.generate_seconds:.0f} s, judge {time.perf_counter() - start:.0f} s"
    print(f"{task.name} {_shown(name, options.tag)} seed {seed}: {headline(table)}; {spent}", flush=True)


def asked_of(task: Task, seed: int, cells: int | None) -> np.ndarray:
    """Classes of the cells to make: those of test, or of ``cells`` of them."""
    labels = task.test.obs[LABEL].to_numpy().astype(str)
    return labels if cells is None else np.random.default_rng(seed).permutation(labels)[:cells]


def judge(task: Task, cells: Any, seed: int, options: argparse.Namespace) -> Any:
    """The table of `scdd.fidelity`."""
    return scdd.fidelity(
        cells, train=task.train, reference=task.reference, test=task.test, label_key=LABEL,
        draws=options.draws, max_cells=options.max_cells, seed=100 * seed,
        metrics=options.metrics.split(",") if options.metrics else None, threads=1, progress=False,
    ).table  # fmt: skip


def headline(table: Any) -> str:
    """The bars of a run in one line."""
    overall = table[table["group"] == "all"].drop_duplicates(["metric", "space"])
    found = [
        f"{metric} {space} {value:.3f} ({floor:.3f})"
        for metric, space, value, floor in overall[["metric", "space", "value", "floor"]].itertuples(
            index=False
        )
        if metric in ("AUC, random forest", "macro-F1 trained on it, logistic regression", "purity")
    ]
    return ", ".join(found)


def _shown(name: str, tag: str) -> str:
    return f"{name} ({tag})" if tag else name


def run(options: argparse.Namespace) -> None:
    """All runs that are not there yet."""
    methods = [name for name in options.methods.split(",") if method(name)]
    there = set() if options.again else rows.done(options.out)
    for task_name in options.tasks.split(","):
        task = load(options.data, task_name)
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for name in methods:
                if (task_name, _shown(name, options.tag), seed) not in there:
                    run_one(task, name, seed, options)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = found.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("run", help="train, generate, judge")
    one.add_argument(
        "--data", type=Path, default=os.environ.get("SCDD_DATA"), help="folder of the .h5ad files"
    )
    one.add_argument("--tasks", default=",".join(RECIPES))
    one.add_argument("--methods", required=True, help=f"some of {','.join(METHODS)}")
    one.add_argument("--seeds", type=int, default=3, help="how many")
    one.add_argument("--first-seed", type=int, default=0)
    one.add_argument("--set", default="{}", help="settings of the method, as JSON")
    one.add_argument("--tag", default="", help="added to the name of the method")
    one.add_argument("--cells", type=int, help="make only so many; of test, as many are compared")
    one.add_argument("--out", type=Path, default=rows.FOLDER / "generators-0.csv")
    one.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "scdd-generators")
    one.add_argument("--fresh", action="store_true", help="train again, whatever the cache holds")
    one.add_argument("--again", action="store_true", help="judge again what the file already holds")
    one.add_argument("--draws", type=int, default=1, help="draws of scdd.fidelity in a run")
    one.add_argument("--max-cells", type=int, default=1_000)
    one.add_argument("--metrics", default="", help="families of scdd.fidelity; all by default")
    verbs.add_parser("table", help="write generators.md and its figure")
    return found


def main() -> None:
    options = parser().parse_args()
    if options.verb == "run":
        if options.data is None:
            raise SystemExit("--data: name the folder of the .h5ad files, or set SCDD_DATA")
        run(options)
        return
    from generators import table

    table.write(sorted(rows.FOLDER.glob("generators-*.csv")))


if __name__ == "__main__":
    main()
