"""Generated cells on disk, outside the repository, so that a change of the scorer trains nothing again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import anndata

import scdd
from generators.methods import OURS
from generators.methods.made import Made

_HERE = Path(__file__).parent


def place(cache: Path, task: str, method: str, seed: int, settings: dict[str, Any]) -> Path:
    """The file of a run: its name tells settings and code apart."""
    said = json.dumps(settings, sort_keys=True) + _code(method)
    return cache / f"{task}-{method}-{seed}-{hashlib.sha256(said.encode()).hexdigest()[:12]}.h5ad"


def load(path: Path) -> Made | None:
    """What was generated before under that name."""
    if not path.exists():
        return None
    cells = anndata.read_h5ad(path)
    run = json.loads(cells.uns.pop("bench"))
    return Made(cells, run["train_seconds"], run["generate_seconds"], run["note"])


def save(path: Path, made: Made) -> None:
    """Write cells and seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = made.cells.copy()
    said = {"train_seconds": made.train_seconds, "generate_seconds": made.generate_seconds, "note": made.note}
    cells.uns["bench"] = json.dumps(said)
    temporary = path.with_suffix(".part")
    cells.write_h5ad(temporary, compression="gzip")
    temporary.replace(path)


def _code(method: str) -> str:
    """A hash of the sources that a method rests on."""
    ours = Path(scdd.__file__).parent
    of = {"nb_copula": ["copula.py"], "scvi": ["peers.py", "scvi_worker.py"]}
    peer = next((name for name in of if method.startswith(name)), "")
    files = [_HERE / "methods" / name for name in of.get(peer, ["sanity.py"])]
    if method in OURS or method.endswith("published"):
        files = [
            f for part in ("models", "nn", "diffusion", "train", "data") for f in (ours / part).rglob("*.py")
        ]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()
