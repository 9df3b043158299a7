"""What a file holds, in words: for looking before distilling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from scdd.data.folders import left_out_of, parts_of
from scdd.data.formats.address import is_remote, shown
from scdd.data.inspection.survey import survey
from scdd.data.source import duplicated, store_of
from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.data.source import Store


def describe(path: str | Path, label: str | None = None) -> str:
    """A few lines on an atlas (path or URL), a distilled set or the folder of a saved model.

    Of every matrix: its values, how it lies in the file, and how fast cells are read from it. Of a folder of
    atlases, each.
    """
    path = path if is_remote(path) else Path(path)
    if isinstance(path, Path) and (path / "config.json").exists():
        return _model(path)
    return "\n".join([*(_atlas(part, label) for part in parts_of(path)), *left_out_of(path)])


def _atlas(path: Path, label: str | None) -> str:
    store = store_of(path)
    lines = [f"{shown(str(path))}: {len(store.obs):,} cells"]
    lines += [f"  {note}" for note in store.notes]
    for name in store.layers:
        genes = store.var_names["raw/X" if name == "raw/X" else "X"]
        found = survey(path, store, name)
        lines.append(f"  {name}: {len(genes):,} genes, {found.values.describe(store.obs.index)}")
        lines += [f"    {line}" for line in (duplicated(genes), *found.lines) if line]
    lines.append("  obs columns:" if len(store.obs.columns) else "  obs columns: none")
    for key in store.obs:
        column = store.obs[key]
        missing = f", {int(column.isna().sum())} missing" if column.isna().any() else ""
        lines.append(f"    {key}: {column.nunique()} values{missing}")
    if label is not None:
        lines += _classes(store, label)
    return "\n".join(lines)


def _classes(store: Store, label: str) -> list[str]:
    if label not in store.obs:
        known = ", ".join(map(str, store.obs.columns)) or "none"
        raise InputError(f"obs has no column {label!r} in {store.name}; its columns are: {known}")
    counts = store.obs[label].value_counts()
    missing = int(store.obs[label].isna().sum())
    unlabelled = [f"    (no label): {missing:,}"] if missing else []
    return [
        f"  {label}:",
        *(
            f"    {str(name)!r}: {n:,}" if not str(name).strip() else f"    {name}: {n:,}"
            for name, n in counts.items()
        ),
        *unlabelled,
    ]


def _model(path: Path) -> str:
    config = json.loads((path / "config.json").read_text())
    lines = [
        f"{path}: {config['class']} (scdd {config['version']}), "
        f"{len(config['preprocessor']['genes']):,} genes"
    ]
    for name, values in zip(
        *(config.get("conditions", {}).get(k, []) for k in ("names", "values")), strict=False
    ):
        number = config["conditions"].get("numbers", {}).get(name)
        range_ = f"a number, {number['low']:g} to {number['high']:g} in training" if number else ""
        lines.append(f"  condition {name}: {range_ or ', '.join(values)}")
    return "\n".join(lines)
