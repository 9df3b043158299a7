"""Every variant of the White-Box Diffusion Transformer, trained alike and looked into: docs/results/white_box.md.

    python bench/white_box.py run --data FOLDER                        # resumable: what is there is not made again
    python bench/white_box.py run --data FOLDER --patch 16 --steps 1000 --runs 'default|published' --seeds 1
    python bench/white_box.py table                                    # rewrite the table from the rows

A fifth of the cells of pbmc3k is held out; nothing that is fitted sees them. Losses and measurements are of those.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import scdd
from scdd.models.transformer import WhiteBoxDiffusionTransformer
from scdd.models.white_box_variants import VARIANTS

DOCS = Path(__file__).parent.parent / "docs"
ROWS, TABLE, FIGURE = (
    DOCS / "results" / "white_box.csv",
    DOCS / "results" / "white_box.md",
    DOCS / "white_box.png",
)
# Small enough that all of it takes minutes on one core.
# Diffusion to t = 0, so that a layer is seen at every time; the default preset stops at decode_signal.
SETTINGS: dict[str, Any] = {
    "width": 128, "heads": 4, "depth": 3, "order": "file", "batch_size": 16, "lr": 2e-3, "ema": 0.98,
    "device": "cpu",
    "zeros": "hurdle", "schedule": "cosine", "modulation": "low_rank", "validation": None,
}  # fmt: skip
# Beside the named variants: one switch of another one each.
RUNS: dict[str, dict[str, Any]] = {name: {"variant": name} for name in VARIANTS} | {
    "tied, orthonormality priced at 1": {"variant": "tied", "weight_orthonormal": 1.0},
}


def run(folder: Path, *, runs: list[str], seeds: int, patch: int, steps: int) -> None:
    """Train, measure and append a row for every run and seed."""
    atlas = scdd.Atlas(folder / "pbmc3k.h5ad")
    train, held_out = atlas.split(label_key="cell_type", test=0.2, seed=0)
    done = set()
    if ROWS.exists():
        done = set(pd.read_csv(ROWS)[["run", "patch", "steps", "seed"]].itertuples(index=False, name=None))
    for seed in range(seeds):
        for name in runs:
            changes = RUNS[name] | {"patch": patch, "steps": steps, "seed": seed}
            if (name, patch, steps, seed) in done:
                continue
            began = time.process_time()
            model = WhiteBoxDiffusionTransformer(train, **SETTINGS, **changes).fit(progress=False)
            seconds = time.process_time() - began
            found = model.interpret(held_out, n_times=8, max_cells=32)
            raw = model.interpret(held_out, n_times=8, max_cells=32, tokens="raw")
            append({
                "run": name, "patch": patch, "steps": steps, "seed": seed, "parameters": parameters(model),
                "train_loss": float(np.mean([row["diffusion"] for row in model.history[-2:]])),
                "validation_loss": validation_loss(model, held_out), "cpu_seconds": round(seconds, 1),
                **measured(found.table), "raw_falls": int(raw.table["falls"].sum()),
                "raw_block_falls": int(raw.table["block_falls"].sum()),
            })  # fmt: skip
            print(name, patch, steps, seed, found.headline()[1], flush=True)
            if name == "default" and seed == 0:
                found.save(FIGURE)


def parameters(model: WhiteBoxDiffusionTransformer) -> int:
    """Weights that are trained."""
    shape = model.config.shape
    free = 0 if shape.residual else shape.depth  # gates that a residual-free block has no use for
    pieces = [
        p.numel() for name, p in model.net.named_parameters() if not _fixed(name, shape.learned_threshold)
    ]
    row = (shape.rank + 1) * shape.width
    return sum(pieces) - free * row


def _fixed(name: str, learned: bool) -> bool:
    return name.endswith(".level") and not learned


@torch.no_grad()
def validation_loss(model: WhiteBoxDiffusionTransformer, atlas: scdd.Atlas, passes: int = 2) -> float:
    """The diffusion term on held-out cells: the same times, noise and dropped conditions for every model."""
    cells = model._known_cells(atlas, np.arange(atlas.n_obs))
    generator = torch.Generator().manual_seed(0)
    return float(np.mean([model.net.loss(cells, generator)["diffusion"].item() for _ in range(passes)]))


def measured(table: pd.DataFrame) -> dict[str, float]:
    """Counts and means over all (layer, time) cells."""
    names = (
        "zeros", "gate_mixer", "gate_mixer_negative", "gate_sparse", "gate_sparse_negative", "orthogonality",
        "within", "between", "threshold", "step_stability",
    )  # fmt: skip
    found: dict[str, float] = {"layer_times": len(table)}
    for name in ("falls", "falls_clearly", "block_falls"):
        found[name] = int(table[name].sum())
    found["change_percent"] = 100 * float((table["change"] / table["rate_before"]).mean())
    found["block_change_percent"] = 100 * float((table["block_change"] / table["rate_before"]).mean())
    if "cost_before" in table:
        found["cost_falls"] = int((table["cost_after"] < table["cost_before"]).sum())
    return found | {name: float(table[name].mean()) if name in table else float("nan") for name in names}


COLUMNS = (
    "run", "patch", "steps", "seed", "parameters", "train_loss", "validation_loss", "cpu_seconds", "layer_times", "falls",
    "falls_clearly", "block_falls", "change_percent", "block_change_percent", "raw_falls", "raw_block_falls",
    "zeros", "cost_falls", "threshold", "step_stability", "gate_mixer", "gate_mixer_negative", "gate_sparse",
    "gate_sparse_negative", "orthogonality", "within", "between",
)  # fmt: skip


def append(row: dict[str, Any]) -> None:
    """One line more; a run that is broken off loses one model at most."""
    new = not ROWS.exists()
    with ROWS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({name: f"{v:.5g}" if isinstance(v, float) else v for name, v in row.items()})


PREFACE = """# White-box variants, trained alike and looked into

Made by `python bench/white_box.py run` and `table`; every number is in `white_box.csv`, what each variant is in
[white_box.md](../white_box.md). pbmc3k, 2,000 genes, a fifth of the cells held out;
{settings}. Mean over seeds ± half
their range. The loss is the weighted squared error of v on held-out cells, the same times and noise for all; it is 1
at the start. Rates are of 32 held-out cells at 8 times: {cells} (layer, time) cells a model;
counts are means over seeds. These are short runs on one core: they tell how the variants differ early in training,
not where each ends.
"""


def table() -> str:
    """Markdown of all rows, a chapter for each length of training."""
    rows = pd.read_csv(ROWS)
    settings = ", ".join(
        f"{name} {value}" for name, value in SETTINGS.items() if name not in ("device", "order")
    )
    found = [PREFACE.format(settings=settings, cells=int(rows["layer_times"].iloc[0]))]
    for (patch, steps), part in rows.groupby(["patch", "steps"]):
        found += [f"## {steps} steps, patches of {patch} genes", "", *chapter(part)]
    return "\n".join(found)


def chapter(rows: pd.DataFrame) -> list[str]:
    """Three tables: loss, coding rate, blocks."""
    order = [name for name in RUNS if name in set(rows["run"])]
    parts = {name: rows[rows["run"] == name] for name in order}
    loss = [
        [name, len(part), f"{part['parameters'].iloc[0]:,}", spread(part["train_loss"], 3),
         spread(part["validation_loss"], 3), spread(part["cpu_seconds"], 0)]
        for name, part in parts.items()
    ]  # fmt: skip
    rates = [
        [name, spread(part["falls"], 1), spread(part["falls_clearly"], 1), spread(part["change_percent"], 2),
         spread(part["block_falls"], 1), spread(part["block_change_percent"], 1), spread(part["raw_falls"], 1),
         spread(part["raw_block_falls"], 1)]
        for name, part in parts.items()
    ]  # fmt: skip
    blocks = [
        [name, spread(100 * part["zeros"], 1), spread(part["cost_falls"], 1), spread(part["threshold"], 3),
         spread(part["step_stability"], 2), gate(part, "mixer"), gate(part, "sparse"), spread(part["within"], 2),
         spread(part["between"], 2)]
        for name, part in parts.items()
    ]  # fmt: skip
    return [
        *lines(["variant", "seeds", "weights", "training loss", "held-out loss", "CPU s"], loss), "",
        "Where the coding rate falls; *raw*: the paper's formula on the stream as it is, no norm, no unit length.",
        "",
        *lines(["variant", "R^c falls over attention", "by > 2 se", "change, %", "falls over block", "change, %",
                "raw: attention", "raw: block"], rates), "",
        "Gates: mean (share below zero). Cost falls: where the step lowers its own LASSO cost. Within, between: "
        "distance from orthonormal, 1 in all is random.", "",
        *lines(["variant", "zeros, %", "cost falls", "lambda", "eta sigma²", "attention gate", "ISTA gate", "within",
                "between"], blocks), "",
    ]  # fmt: skip


def spread(values: pd.Series, digits: int) -> str:
    """Mean and half the range."""
    if values.isna().all():
        return "–"
    return f"{values.mean():.{digits}f} ± {(values.max() - values.min()) / 2:.{digits}f}"


def gate(part: pd.DataFrame, name: str) -> str:
    """Mean gate and the share of negative ones."""
    if part[f"gate_{name}"].isna().all():
        return "–"
    return f"{part[f'gate_{name}'].mean():.3f} ({part[f'gate_{name}_negative'].mean():.0%})"


def lines(head: list[str], rows: list[list[Any]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run", help="train and measure")
    runner.add_argument("--data", type=Path, required=True, help="folder of pbmc3k.h5ad")
    runner.add_argument("--runs", default="|".join(RUNS), help="names of runs, by |")
    runner.add_argument("--seeds", type=int, default=2)
    runner.add_argument("--patch", type=int, default=32)
    runner.add_argument("--steps", type=int, default=200)
    verbs.add_parser("table", help="rewrite the table")
    given = parser.parse_args()
    if given.verb == "run":
        run(given.data, runs=given.runs.split("|"), seeds=given.seeds, patch=given.patch, steps=given.steps)
    TABLE.write_text(table())


if __name__ == "__main__":
    main()
