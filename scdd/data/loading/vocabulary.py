"""The genes that tokens stand for, and their scale: non-zero medians, counted in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdd.data.statistics.moments import row_scale
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scdd.data.atlas import Atlas

TARGET_SUM = 1e4

# Histogram of medians: 32 bins an octave from 2^-13 to 2^15, which a cell of 10^4 counts never leaves.
_MANTISSA = 23 - 5
_LOWEST_BIN = (127 - 13) << 5
_N_BINS = 28 << 5


@dataclass(frozen=True)
class GeneVocabulary:
    """Genes in the order of their tokens, and what expression is divided by before genes are ranked.

    Attributes
    ----------
    genes : names, each once
    scale : float32 [V], median over the cells that express a gene of ``10^4 x / total``
    """

    genes: pd.Index
    scale: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        if not len(self.genes) or self.genes.has_duplicates:
            raise InputError("the genes of a vocabulary must be at least one, and each named once")
        if self.scale.shape != (len(self.genes),) or not np.all((self.scale > 0) & np.isfinite(self.scale)):
            raise InputError(f"scale must hold {len(self.genes)} finite numbers above 0, one for each gene")

    def __len__(self) -> int:
        return len(self.genes)

    @classmethod
    def unscaled(cls, genes: Iterable[str]) -> GeneVocabulary:
        """These genes, ranked by expression itself."""
        names = pd.Index(genes).astype(str)
        return cls(names, np.ones(len(names), dtype=np.float32))

    @classmethod
    def fit(cls, atlas: Atlas, *, min_cells: int = 1) -> GeneVocabulary:
        """Genes that at least ``min_cells`` cells express, sorted by name, with their non-zero medians.

        Pass training cells only: ``atlas.subset(rows)``. One pass; counts of values in 32 bins an octave
        give the medians to 1.6 %, the same whatever the order of cells and genes, in 3.6 kB a gene.
        """
        if min_cells < 1:
            raise InputError(f"min_cells={min_cells} must be at least 1")
        counts = np.zeros((atlas.n_vars, _N_BINS), dtype=np.uint32)
        for _, block in atlas.blocks():
            _count_values(block, atlas.expression == "log1p", counts)
        cells = counts.sum(axis=1, dtype=np.int64)
        kept = np.flatnonzero(cells >= min_cells)
        if not len(kept):
            raise InputError(f"min_cells={min_cells}: {atlas.name} has no gene seen in so many cells")
        genes = atlas.var_names.astype(str)[kept]
        order = np.argsort(genes.to_numpy(dtype=str), kind="stable")
        return cls(genes[order], _medians(counts, cells)[kept][order])


def _count_values(block: Any, logged: bool, counts: np.ndarray) -> None:
    """Add the non-zero ``10^4 x / total`` of a CSR block to counts uint32 [G, bins]."""
    if not block.has_canonical_format:
        block = block.copy()
        block.sum_duplicates()
    if logged:
        values = np.expm1(block.data)
    else:
        values = block.data * np.repeat(row_scale(block, TARGET_SUM), np.diff(block.indptr))
    values = values.astype(np.float32)
    nonzero = values > 0
    bins = (values[nonzero].view(np.int32) >> _MANTISSA) - _LOWEST_BIN
    np.add.at(counts, (block.indices[nonzero], np.clip(bins, 0, _N_BINS - 1)), 1)


def _medians(counts: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Float32 [G]: the middle of the bin in which the lower median lies; 1 for genes without values."""
    half = np.maximum((cells + 1) // 2, 1)
    bins = np.empty(len(cells), dtype=np.int32)
    for start in range(0, len(cells), 1_024):  # a cumulative sum of all at once would take twice their memory
        part = slice(start, start + 1_024)
        bins[part] = (np.cumsum(counts[part], axis=1, dtype=np.int64) < half[part, None]).sum(axis=1)
    bits = ((bins + _LOWEST_BIN) << _MANTISSA) | (1 << (_MANTISSA - 1))
    return np.where(cells > 0, bits.astype(np.int32).view(np.float32), np.float32(1))
