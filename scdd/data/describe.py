"""What a file holds, in words: for looking before distilling."""

from __future__ import annotations

import json
from pathlib import Path

from scdd.data.atlas import Atlas
from scdd.data.expression import look
from scdd.data.source import store_of
from scdd.errors import InputError


def describe(path: str | Path, label: str | None = None) -> str:
    """A few lines on an atlas, a distilled set or the folder of a saved model."""
    path = Path(path)
    if (path / "config.json").exists():
        return _model(path)
    store = store_of(path)
    lines = [f"{path}: {len(store.obs):,} cells"]
    for name, open_layer in store.layers.items():
        genes = len(store.var_names["raw/X" if name == "raw/X" else "X"])
        lines.append(f"  {name}: {genes:,} genes, {look(open_layer()).describe()}")
    lines.append("  obs columns:")
    for key in store.obs:
        column = store.obs[key]
        missing = f", {int(column.isna().sum())} missing" if column.isna().any() else ""
        lines.append(f"    {key}: {column.nunique()} values{missing}")
    if label is not None:
        lines += _classes(path, label)
    return "\n".join(lines)


def _classes(path: Path, label: str) -> list[str]:
    try:
        column = Atlas(str(path), expression="auto").column(label)
    except InputError:
        column = Atlas(str(path), expression="fractional").column(label)
    counts = column.value_counts()
    return [f"  {label}:", *(f"    {name}: {n:,}" for name, n in counts.items())]


def _model(path: Path) -> str:
    config = json.loads((path / "config.json").read_text())
    lines = [
        f"{path}: {config['class']} (scdd {config['version']}), "
        f"{len(config['preprocessor']['genes']):,} genes"
    ]
    for name, values in zip(
        *(config.get("conditions", {}).get(k, []) for k in ("names", "values")), strict=False
    ):
        lines.append(f"  condition {name}: {', '.join(values)}")
    return "\n".join(lines)
