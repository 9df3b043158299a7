"""Cells a second of SCDG in one step: denoising, decoding, counts drawn, and a sparse file written.

    python bench/one_step_throughput.py --data pbmc3k.h5ad --out bench/results/generators.jsonl

A model with the negative-binomial head over 2,000 genes is trained for a moment, for speed does not depend on how
well; then 10,240 cells are drawn and written as .h5ad, again and again. Wall and CPU seconds are told apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timing.environment import environment

import scdd
from scdd.models.config import AutoencoderConfig, SCDGConfig
from scdd.output import write_anndata


def measure(data: Path, label: str, cells: int, rounds: int, steps: int) -> dict[str, Any]:
    """The median of ``rounds`` draws."""
    config = SCDGConfig(
        autoencoder=AutoencoderConfig(head="nb", steps=steps), steps=steps, classifier_steps=steps
    )
    model = scdd.SCDG(data, label_key=label, config=config).fit(progress=False)
    model.generate(min(cells, 512), progress=False)
    walls, processors, drawn = [], [], None
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            wall, cpu = time.perf_counter(), time.process_time()
            drawn = model.generate(cells, progress=False)
            write_anndata(drawn, Path(folder) / "cells.h5ad")
            walls.append(time.perf_counter() - wall)
            processors.append(time.process_time() - cpu)
    assert drawn is not None
    return {
        "bench": "one step", "data": data.stem, "cells": cells, "genes": drawn.n_vars, "rounds": rounds,
        "stored_per_cell": round(drawn.X.nnz / cells, 1),
        "cells_per_s": round(cells / median(walls)), "best_cells_per_s": round(cells / min(walls)),
        "cells_per_cpu_s": round(cells / median(processors)),
    }  # fmt: skip


def main() -> int:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--cells", type=int, default=10_240)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="of training, each stage")
    parser.add_argument("--out", type=Path, help="append the line to this file as well")
    options = parser.parse_args()
    row = measure(options.data, options.label, options.cells, options.rounds, options.steps)
    line = json.dumps(row | environment(torch.device("cpu")))
    print(line)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as file:
            file.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
