"""Brings the distilled set, baselines, train and test to one list of genes and one list of classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scdd.data.atlas import Atlas, Labels
from scdd.data.preprocess import Preprocessor
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

RESERVED = ("distilled", "whole data", "whole data, class-weighted", "stratified random (same size)")


@dataclass(frozen=True)
class CellSet:
    """Labelled rows over the shared genes and classes.

    Attributes
    ----------
    x
        log1p CP10k, float32 [n, G].
    codes
        Class of every row, int64 [n], into ``Inputs.classes``.
    weight
        Weight of every row [n], or None where all count alike.
    n_total
        Rows of the source; more than n where only a sample was read.
    """

    name: str
    x: np.ndarray
    codes: np.ndarray
    weight: np.ndarray | None = None
    n_total: int = 0

    def take(self, rows: np.ndarray) -> CellSet:
        """Return some of the rows."""
        weight = None if self.weight is None else self.weight[rows]
        return CellSet(self.name, self.x[rows], self.codes[rows], weight, self.n_total)

    def class_sizes(self, n_classes: int) -> np.ndarray:
        """Rows of every class [n_classes]."""
        return np.bincount(self.codes, minlength=n_classes)


@dataclass(frozen=True)
class Inputs:
    """What is compared; ``notes`` say in sentences what was left out, filled or sampled."""

    distilled: CellSet
    train: CellSet | None
    test: CellSet
    baselines: tuple[CellSet, ...]
    genes: pd.Index
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def real(self) -> CellSet:
        """Real cells to compare the distilled set with: train where there is one, else test."""
        return self.test if self.train is None else self.train


class _Opened(NamedTuple):
    name: str
    atlas: Atlas
    labels: Labels


def gather(
    distilled: Any,
    *,
    train: Any,
    test: Any,
    baselines: Mapping[str, Any],
    label_key: str,
    expression: str,
    max_cells: int,
) -> Inputs:
    """Open everything, agree on genes and classes, and read.

    Raises
    ------
    InputError
        No gene or no class in common, a missing label column, a bad weight, a reserved baseline name.
    """
    taken = [name for name in baselines if name in RESERVED]
    if taken:
        raise InputError(f"baselines= uses the name {taken[0]!r}, which the report needs; rename it")
    # Synthetic sets may be log1p while the real cells are counts, so their kind is always looked up.
    made = [_open("distilled", distilled, label_key, "auto")]
    made += [_open(str(name), source, label_key, "auto") for name, source in baselines.items()]
    real = [] if train is None else [_open("train", train, label_key, expression)]
    real.append(_open("test", test, label_key, expression))
    genes, notes = _shared_genes(made, real)
    _check_labels(made, real[-1])
    classes = tuple(sorted({name for part in made + real for name in part.labels.names}))
    read = {part.name: _read(part, genes, classes, max_cells) for part in made + real}
    notes += _label_notes(made, real) + _size_notes(read, real) + _leak_notes(real)
    sets = [read[part.name] for part in made]
    return Inputs(sets[0], read.get("train"), read["test"], tuple(sets[1:]), genes, classes, tuple(notes))


def sample_rows(codes: np.ndarray, n_rows: int, seed: int) -> np.ndarray:
    """About ``n_rows`` sorted positions, drawn within each class in proportion, one a class at least."""
    if len(codes) <= n_rows:
        return np.arange(len(codes))
    rng = np.random.default_rng(seed)
    kept = []
    for code in np.unique(codes):
        members = np.flatnonzero(codes == code)
        size = max(1, round(len(members) * n_rows / len(codes)))
        kept.append(rng.choice(members, size=min(size, len(members)), replace=False))
    return np.sort(np.concatenate(kept))


def provenance_of(distilled: Any) -> dict[str, Any]:
    """``uns["scdd"]`` of an AnnData or of its file; empty for anything else."""
    if isinstance(distilled, (str, Path)) and Path(distilled).exists():
        import anndata

        read = anndata.read_zarr if Path(distilled).is_dir() else anndata.read_h5ad
        distilled = read(distilled)
    record = getattr(distilled, "uns", {}).get("scdd", {})
    return dict(record) if hasattr(record, "items") else {}


def _open(name: str, source: Any, label_key: str, expression: str) -> _Opened:
    try:
        atlas = Atlas.of(source, expression=expression)
        return _Opened(name, atlas, atlas.labels(label_key))
    except InputError as error:
        # The atlas knows its file, not which of our arguments it came by.
        raise InputError(f"{name}: {error}") from error


def _shared_genes(made: list[_Opened], real: list[_Opened]) -> tuple[pd.Index, list[str]]:
    wanted = pd.Index(made[0].atlas.var_names).astype(str)
    genes = wanted
    for part in real:
        genes = genes[genes.isin(part.atlas.var_names.astype(str))]
    if not len(genes):
        theirs = real[-1].atlas.var_names[0]
        raise InputError(
            f"none of the {len(wanted)} genes of the distilled set (e.g. {wanted[0]!r}) is in both train and "
            f"test (e.g. {theirs!r}); give all of them the same gene names"
        )
    notes = [f"All {len(genes):,} genes of the distilled set are used."]
    if len(genes) < len(wanted):
        lost = len(wanted) - len(genes)
        notes = [
            f"{lost:,} of the {len(wanted):,} genes of the distilled set are not in the real cells: left out."
        ]
    for part in made[1:]:
        lost = int((~genes.isin(part.atlas.var_names.astype(str))).sum())
        if lost == len(genes):
            raise InputError(f"baseline {part.name!r} has none of the {lost} genes that are compared")
        if lost:
            notes.append(f"{part.name} lacks {lost:,} of the {len(genes):,} genes: filled with 0.")
    return genes, notes


def _check_labels(made: list[_Opened], test: _Opened) -> None:
    for part in made:
        if len(part.labels.names) < 2:
            raise InputError(
                f"{part.name} has only the class {part.labels.names[0]!r}; a classifier needs two"
            )
        if not set(part.labels.names) & set(test.labels.names):
            raise InputError(
                f"no label of {part.name} (e.g. {part.labels.names[0]!r}) is in test "
                f"(e.g. {test.labels.names[0]!r}); check label_key and the spelling of the labels"
            )


def _read(part: _Opened, genes: pd.Index, classes: tuple[str, ...], max_cells: int) -> CellSet:
    real = part.name in ("train", "test")
    codes = pd.Index(classes).get_indexer(part.labels.names)[part.labels.codes].astype(np.int64)
    rows = sample_rows(codes, max_cells, seed=0) if real else np.arange(part.atlas.n_obs)
    x = Preprocessor.of_genes(genes, part.atlas.expression).transform(part.atlas, rows)
    weight = None if real else _weights(part)
    return CellSet(part.name, x, codes[rows], weight, part.atlas.n_obs)


def _weights(part: _Opened) -> np.ndarray | None:
    if "weight" not in part.atlas.obs:
        return None
    weight = pd.to_numeric(part.atlas.obs["weight"], errors="coerce").to_numpy(dtype=np.float64)
    if not np.isfinite(weight).all() or (weight <= 0).any():
        raise InputError(f"obs['weight'] of {part.name} must be a number above zero in every row")
    return weight


def _label_notes(made: list[_Opened], real: list[_Opened]) -> list[str]:
    test = set(real[-1].labels.names)
    notes = []
    for part in made + real[:-1]:
        own = set(part.labels.names)
        if test - own:
            notes.append(f"{part.name} has no {_listed(test - own)}: never predicted, recall 0 in test.")
        if own - test:
            notes.append(
                f"Test has no {_listed(own - test)} ({part.name} has): predicting it counts as an error."
            )
    return notes


def _size_notes(read: Mapping[str, CellSet], real: list[_Opened]) -> list[str]:
    sizes = [(part.name, len(read[part.name].codes), part.atlas.n_obs) for part in real]
    return [f"{name}: {n:,} of {of:,} cells drawn within classes, seed 0." for name, n, of in sizes if n < of]


def _leak_notes(real: list[_Opened]) -> list[str]:
    if len(real) < 2:
        return []
    names = [pd.Index(part.atlas.obs.index.astype(str)) for part in real]
    shared = names[0].intersection(names[1])
    # Running numbers are what anndata gives cells without names; that they coincide says nothing.
    shared = shared[~shared.str.fullmatch(r"\d+")]
    return (
        [f"{len(shared):,} cell names are in both train and test: scores may be too good."]
        if len(shared)
        else []
    )


def _listed(names: set[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in sorted(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
