"""Cells to be imitated: their composition of conditions and their library sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scdd.data.alignment import align_genes
from scdd.data.atlas import Atlas
from scdd.errors import InputError
from scdd.models.requests import Request, described, overlaid, whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scdd.data.preprocess import Preprocessor
    from scdd.models.conditions import Conditions

_BLOCK = 4_096
# A file with fewer genes than this share of the training file's holds a choice of them.
_LEAST_GENES = 0.8
SIZES = "total_counts"


def by_likeness(
    conditions: Conditions,
    n: int | None,
    like: Any,
    condition: Mapping[str, Any],
    *,
    preprocessor: Preprocessor,
    sized: bool,
    seed: int,
) -> Request:
    """Every cell with the conditions and, if ``sized``, the total counts of one cell of ``like``.

    With ``n``, cells of ``like`` are drawn, each as often as any other or once more. What ``condition``
    names takes the place of what ``like`` says.
    """
    atlas = Atlas.of(like, expression="auto")
    coverage = align_genes(preprocessor.genes, atlas.var_names, name=atlas.name)
    cells = _drawn(atlas.n_obs, atlas.n_obs if n is None else whole_number(n), seed)
    codes, rows = overlaid(conditions, _codes(conditions, atlas, set(condition)), cells, condition)
    sizes = _sizes(atlas, cells, preprocessor.file_genes) if sized else _NOT_SIZED
    record = {**described(condition), "like": atlas.name, "like_fingerprint": atlas.fingerprint()}
    return Request(len(cells), codes, rows, sizes.totals, record, [coverage.sentence, sizes.sentence])


class _Sizes(NamedTuple):
    """Total counts float32 [n], or none, and why."""

    totals: np.ndarray | None
    sentence: str


_NOT_SIZED = _Sizes(None, "the model makes log1p expression, which has no library sizes to match")


def _drawn(available: int, n: int, seed: int) -> np.ndarray:
    """Positions [n]: all in order, or whole rounds of all and a random part of them, in random order."""
    if n == available:
        return np.arange(n)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2**32 - 1,)))
    rounds, rest = divmod(n, available)
    part = rng.permutation(available)[:rest]
    return rng.permutation(np.concatenate([np.tile(np.arange(available), rounds), part]))


def _codes(conditions: Conditions, atlas: Atlas, skip: set[str]) -> np.ndarray:
    """Codes [cells of the atlas, F]; -1 for columns that it lacks and for values that are missing."""
    there = [name for name in conditions.names if name in atlas.obs and name not in skip]
    if not there and not skip:
        known = ", ".join(map(str, atlas.obs.columns)) or "none"
        raise InputError(
            f"{atlas.name} has none of the columns that the model was trained with "
            f"({', '.join(conditions.names)}); its columns are: {known}"
        )
    try:
        return conditions.encode({name: atlas.column(name) for name in there}, atlas.n_obs)
    except InputError as error:
        raise InputError(
            f"{atlas.name}: {error}; leave those cells out, or replace the column with condition= (-c)"
        ) from error


def _sizes(atlas: Atlas, cells: np.ndarray, file_genes: int | None) -> _Sizes:
    """Total counts of cells [n] over all genes of their file, as library sizes are defined in training."""
    if atlas.expression == "log1p":
        return _Sizes(
            None, f"{atlas.name} holds log1p: its composition is matched, library sizes follow training"
        )
    if file_genes is not None and atlas.n_vars < _LEAST_GENES * file_genes:
        return _recorded(atlas, cells, file_genes)
    distinct, place = np.unique(cells, return_inverse=True)
    blocks = (atlas.read(distinct[at : at + _BLOCK]) for at in range(0, len(distinct), _BLOCK))
    totals = np.concatenate([np.asarray(block.sum(1), dtype=np.float32).ravel() for block in blocks])
    return _Sizes(_at_least_one(totals[place.ravel()]), f"library sizes are the total counts of {atlas.name}")


def _recorded(atlas: Atlas, cells: np.ndarray, file_genes: int) -> _Sizes:
    """Of a file that holds a choice of genes: what its ``obs`` says of the cells' totals over all of them."""
    few = f"{atlas.name} holds {atlas.n_vars:,} genes, the training cells' totals run over {file_genes:,}"
    if SIZES not in atlas.obs or not pd.api.types.is_numeric_dtype(atlas.obs[SIZES]):
        return _Sizes(None, f"{few}: library sizes follow training; put totals into obs[{SIZES!r}]")
    totals = atlas.obs[SIZES].to_numpy(dtype=np.float32, na_value=np.nan)[cells]
    if not (np.isfinite(totals) & (totals >= 0)).all():
        raise InputError(f"{few}, and its obs[{SIZES!r}] has values that are no totals; mend that column")
    return _Sizes(_at_least_one(totals), f"{few}: library sizes are its obs[{SIZES!r}]")


def _at_least_one(totals: np.ndarray) -> np.ndarray:
    return np.maximum(np.rint(totals), 1).astype(np.float32)
