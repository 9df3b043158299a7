"""scVI (Lopez et al., Nat. Methods 15, 2018), of scvi-tools, in an environment of its own.

``scvi`` samples its prior: a code from N(0, 1), the class as a covariate of the decoder, a library size from the
train cells of the class. ``scvi_class`` draws the code from one Gaussian a class, fitted to the posteriors of its train
cells. ``scvi_posterior`` decodes train cells again, which is reconstruction: for information.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata

from generators.methods.made import LABEL, Made, as_cells

if TYPE_CHECKING:
    import numpy as np

    from generators.tasks import Task

_WORKER = Path(__file__).with_name("scvi_worker.py")
PYTHON = "SCDD_SCVI_PYTHON"


def scvi(task: Task, labels: np.ndarray, *, seed: int, settings: dict[str, Any], code: str) -> Made:
    """Settings: ``n_latent``, ``n_layers``, ``gene_likelihood``, ``cell_passes``; see scvi_worker.py."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / name) for name in ("train.h5ad", "labels.json", "made.h5ad")}
        task.train.write_h5ad(paths["train.h5ad"])
        Path(paths["labels.json"]).write_text(json.dumps([str(name) for name in labels]))
        job = {
            **paths,
            "label": LABEL,
            "seed": seed,
            "code": code,
            "settings": settings,
            "models": _models(task),
        }
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        python = os.environ.get(PYTHON, sys.executable)
        done = subprocess.run(
            [python, "-P", _WORKER, json.dumps(job)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise SystemExit(
                f"scvi failed in {python}: {last[0]}; make its environment (bench/README.md) and name its "
                f"interpreter in {PYTHON}"
            )
        run = json.loads(done.stdout.strip().splitlines()[-1])
        cells = anndata.read_h5ad(paths["made.h5ad"])
    made = as_cells(cells.X, labels, task.train.var_names)
    return Made(made, run["train_seconds"], run["generate_seconds"], run["note"])


def _models(task: Task) -> str:
    """Where trained models are kept for the three ways of sampling them."""
    return str(Path(tempfile.gettempdir()) / "scdd-generators" / "scvi" / task.name)


METHODS = {
    "scvi": partial(scvi, code="prior"),
    "scvi_class": partial(scvi, code="class"),
    "scvi_posterior": partial(scvi, code="posterior"),
}
