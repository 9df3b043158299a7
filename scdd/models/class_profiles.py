"""Mean expression of every class, shrunk towards that of all cells where a class has few."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from scdd.data.atlas import Atlas
    from scdd.data.preprocess import Preprocessor
    from scdd.models.cell_code import CellCode

# A class's fold change to all cells begins as if one expected count had been seen at fold change 1, and its
# mean as if two average cells were in it.
_COUNTS = 1.0
_CELLS = 2.0
# Its variances begin as if ten cells that vary as all do were in it.
_CELLS_OF_SPREAD = 10.0
# Part of the cells that directions are found from; the others say how much cells vary along them.
_FOUND_FROM = 2 / 3


class ClassProfiles(NamedTuple):
    """Sums over each class's cells: counts [C, G], all counts [C], log1p CP10k [C, G], cells [C]."""

    counts: np.ndarray
    totals: np.ndarray
    logs: np.ndarray
    cells: np.ndarray

    @classmethod
    def fit(cls, atlas: Atlas, preprocessor: Preprocessor, label: np.ndarray, classes: int) -> Self:
        """One streaming pass over the chosen genes of counts."""
        where = atlas.var_names.astype(str).get_indexer(preprocessor.genes)
        counts, logs = (np.zeros((classes, len(where))) for _ in range(2))
        totals = np.zeros(classes)
        for rows, block in atlas.blocks():
            size = np.asarray(block.sum(1), dtype=np.float64).ravel()
            of_class = sparse.csr_matrix(
                (np.ones(len(rows)), (label[rows], np.arange(len(rows)))), shape=(classes, len(rows))
            )
            part = sparse.csr_matrix(block[:, where], dtype=np.float64)
            counts += (of_class @ part).toarray()
            totals += of_class @ size
            part.data *= np.repeat(preprocessor.target_sum / np.maximum(size, 1), np.diff(part.indptr))
            logs += (of_class @ part.log1p()).toarray()
        return cls(counts, totals, logs, np.bincount(label, minlength=classes))

    def log_share(self, order: np.ndarray) -> Tensor:
        """Log shares of a cell's counts [C + 1, G + 1]: classes, then all cells; genes, then the others."""
        rest = np.maximum(self.totals - self.counts.sum(1), 0)
        every = np.column_stack([self.counts[:, order], rest])
        share = (every.sum(0) + 1e-3) / (self.totals.sum() + 1e-3)
        expected = self.totals[:, None] * share
        fold = (every + _COUNTS) / (expected + _COUNTS)
        return torch.from_numpy(np.log(np.vstack([share * fold, share]))).float()

    def anchors(self, code: CellCode, order: np.ndarray) -> Tensor:
        """Coded means [C + 1, G] of the classes; the last, for no class, are zeros."""
        mean = self.logs.sum(0) / max(self.cells.sum(), 1)
        found = (self.logs + _CELLS * mean) / (self.cells + _CELLS)[:, None]
        coded = code.encode(torch.from_numpy(found[:, order]).float())
        return torch.cat([coded, torch.zeros(1, len(order))])


def spread_within(coded: Tensor, anchors: Tensor, label: np.ndarray, rank: int) -> tuple[Tensor, ...]:
    """How coded cells [n, G] of classes [n], in random order, vary around their anchors [C + 1, G].

    Basis [G, R], variances along it of every class and of all cells [C + 1, R], the rest of every gene [G];
    R is ``rank``, or the number of cells that the basis was found from where they are fewer. The variances
    are those of other cells: along directions that were chosen for their variance, the cells that they were
    chosen from vary more than any others will.
    """
    residual = coded - anchors[torch.from_numpy(label)]
    chosen = slice(max(1, round(_FOUND_FROM * len(coded))))
    others = slice(chosen.stop if chosen.stop < len(coded) else 0, None)
    basis = torch.linalg.svd(residual[chosen], full_matrices=False).Vh[:rank].mT
    along = residual @ basis
    square = along[others].square()
    pooled = square.mean(0).clamp_min(1e-3)
    of_class = F.one_hot(torch.from_numpy(label[others]).long(), len(anchors)).to(square)
    known, prior = of_class.sum(0)[:, None], _CELLS_OF_SPREAD
    spread = (of_class.mT @ square + prior * pooled) / (known + prior)
    rest = (residual - along @ basis.mT).square().mean(0).clamp_min(1e-3)
    return basis, spread, rest
