"""Opens generated, train, test and reference cells and agrees on their genes and classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scdd.data.atlas import Atlas
from scdd.data.preprocess import TARGET_SUM
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

FEWEST = 40
_LOG_CEILING = 15.0


class Opened(NamedTuple):
    """A source by its argument's name; ``codes`` int64 [n] into the classes of train, -1 for others."""

    name: str
    atlas: Atlas
    codes: np.ndarray
    own: tuple[str, ...]


class Reader(NamedTuple):
    """Reads cells as log1p CP10k over the shared genes, CSR float32 [n, G].

    Totals run over the shared genes where ``over_shared``, else over all genes of the file.
    """

    atlas: Atlas
    columns: np.ndarray
    over_shared: bool

    def read(self, rows: np.ndarray) -> sparse.csr_matrix:
        """The given cells, in that order."""
        blocks = [self._block(rows[start : start + 4_096]) for start in range(0, len(rows), 4_096)]
        return blocks[0] if len(blocks) == 1 else sparse.vstack(blocks, format="csr")

    def blocks(self) -> Iterator[sparse.csr_matrix]:
        """All cells, 4,096 at a time."""
        for start in range(0, self.atlas.n_obs, 4_096):
            yield self._block(np.arange(start, min(start + 4_096, self.atlas.n_obs)))

    def _block(self, rows: np.ndarray) -> sparse.csr_matrix:
        whole = self.atlas.read(rows)
        if self.atlas.expression == "log1p":
            _refuse_mixture(whole, rows, self.atlas)
            return whole[:, self.columns]
        part = whole[:, self.columns]
        total = np.asarray((part if self.over_shared else whole).sum(axis=1), dtype=np.float64).ravel()
        scale = TARGET_SUM / np.where(total > 0, total, 1.0)
        part = sparse.csr_matrix(part, dtype=np.float32)
        part.data *= np.repeat(scale, np.diff(part.indptr)).astype(np.float32)
        np.log1p(part.data, out=part.data)
        return part


def open_cells(name: str, source: Any, label_key: str | None, expression: str = "auto") -> Atlas:
    """An atlas over a source, its values checked; errors say which argument it came by."""
    try:
        atlas = Atlas.of(source, expression=expression)
        atlas.check_in_memory()
        if label_key is not None:
            atlas.labels(label_key)
    except InputError as error:
        said = str(error)
        if "negative" in said and name == "generated":
            said += "; negatives of a generator in log space are clipped before: adata.X = adata.X.clip(0)"
        raise InputError(f"{name}: {said}") from error
    if atlas.n_obs < FEWEST:
        raise InputError(f"{name} has {atlas.n_obs} cells, too few to compare; give at least {FEWEST}")
    return atlas


def with_codes(
    name: str, atlas: Atlas, label_key: str | None, classes: tuple[str, ...] | None = None
) -> Opened:
    """Class codes into ``classes``, or into the atlas's own; one class without a label column."""
    if label_key is None:
        return Opened(name, atlas, np.zeros(atlas.n_obs, dtype=np.int64), ("all cells",))
    labels = atlas.labels(label_key)
    own = tuple(labels.names)
    known = pd.Index(own if classes is None else classes)
    return Opened(name, atlas, known.get_indexer(labels.names)[labels.codes].astype(np.int64), own)


def check_classes(generated: Opened, train: Opened, test: Opened, label_key: str | None) -> list[str]:
    """Refuse generated classes that train lacks; say which classes test has alone or lacks."""
    if label_key is None:
        return ["No label_key: no rows by class, no purity, no markers."]
    unknown = sorted(set(generated.own) - set(train.own))
    if unknown:
        raise InputError(
            f"generated: obs[{label_key!r}] holds {_listed(unknown)}, which train (e.g. {train.own[0]!r}) "
            "does not have; check label_key and the spelling, or leave those cells out"
        )
    if (test.codes < 0).all():
        raise InputError(
            f"test: no label of obs[{label_key!r}] is in train; check label_key and the spelling"
        )
    notes = []
    alone, lost = sorted(set(test.own) - set(train.own)), sorted(set(test.own) - set(generated.own))
    if alone:
        notes.append(f"Test has {_listed(alone)}, which train lacks: those cells are left out.")
    if set(lost) - set(alone):
        notes.append(f"Never generated: {_listed(sorted(set(lost) - set(alone)))}.")
    return notes


def shared_genes(generated: Opened, real: list[Opened]) -> tuple[pd.Index, list[str]]:
    """Genes of the generated cells that every real set has, in the order of train; and the coverage."""
    own = pd.Index(generated.atlas.var_names).astype(str)
    genes = real[0].atlas.var_names.astype(str)
    for part in real[1:]:
        genes = genes[genes.isin(part.atlas.var_names.astype(str))]
    n_real, genes = len(genes), genes[genes.isin(own)]
    share = len(genes) / len(own)
    if share < 0.5:
        theirs = real[0].atlas.var_names[0]
        raise InputError(
            f"generated: {len(genes)} of its {len(own)} genes (e.g. {own[0]!r}) are in the real cells "
            f"(e.g. {theirs!r}), fewer than half; give all of them the same gene names"
        )
    return genes, [
        f"{len(genes):,} of the {len(own):,} genes generated ({100 * share:.1f} %) are in the real cells and "
        f"are compared; they cover {100 * len(genes) / n_real:.1f} % of the {n_real:,} real genes."
    ]


def readers(opened: list[Opened], genes: pd.Index) -> tuple[dict[str, Reader], list[str]]:
    """A reader for every source. Totals run over the shared genes unless one of the sets is log1p."""
    kinds = {part.name: part.atlas.expression for part in opened}
    over_shared = "log1p" not in kinds.values()
    found = {
        part.name: Reader(
            part.atlas, part.atlas.var_names.astype(str).get_indexer(genes).astype(np.int64), over_shared
        )
        for part in opened
    }
    where = "the shared genes" if over_shared else "all genes of each set of counts; log1p data is as it is"
    said = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    return found, [f"Read as {said}; compared as log1p CP10k, totals over {where}."]


def scale_notes(generated: sparse.csr_matrix, test: sparse.csr_matrix) -> list[str]:
    """A remark where the generated cells sum to something quite different."""
    totals = [float(np.median(np.asarray(x.expm1().sum(axis=1)))) for x in (generated, test)]
    if 2 / 3 < totals[0] / max(totals[1], 1e-9) < 3 / 2:
        return []
    return [
        f"Generated cells sum to {totals[0]:,.0f} counts per 10,000 on the shared genes, real ones to "
        f"{totals[1]:,.0f}: check that both were scaled alike."
    ]


def leak_notes(train: Atlas, test: Atlas) -> list[str]:
    """Cell names that are in both train and test."""
    shared = pd.Index(train.obs.index.astype(str)).intersection(pd.Index(test.obs.index.astype(str)))
    # Running numbers are what anndata gives cells without names; that they coincide says nothing.
    shared = shared[~shared.str.fullmatch(r"\d+")]
    return [f"{len(shared):,} cell names are in both train and test: floors may be wrong."] * bool(
        len(shared)
    )


def _refuse_mixture(block: sparse.csr_matrix, rows: np.ndarray, atlas: Atlas) -> None:
    """Rows of whole numbers, or beyond any logarithm, among log1p data."""
    if not block.nnz:
        return
    whole = np.add.reduceat(np.append(block.data != np.rint(block.data), False), block.indptr[:-1])
    large = np.maximum.reduceat(np.append(block.data, 0), block.indptr[:-1])
    stored = np.diff(block.indptr)
    wrong = np.flatnonzero((stored >= 10) & ((whole == 0) | (large > _LOG_CEILING)))
    if len(wrong):
        raise InputError(
            f"{atlas.name}: {len(wrong)} rows, first row {rows[wrong[0]]}, hold counts among log1p data; "
            "bring all cells to one kind of expression"
        )


def _listed(names: list[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
