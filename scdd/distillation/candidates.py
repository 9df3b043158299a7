"""The training cells that distillation looks at: every cell of small classes, a fair draw of large ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse

from scdd.distillation.selectors import ClassCells

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas
    from scdd.data.preprocess import Preprocessor

_COMPONENTS = 50


class Candidates:
    """Up to ``cap`` cells of every class, kept sparse: memory is bounded by C * cap, not by the atlas.

    Attributes
    ----------
    rows
        Positions in the training atlas, one int64 array for each class.
    sizes
        Cells of each class in the whole training atlas, int64 [C].
    """

    def __init__(
        self, atlas: Atlas, codes: np.ndarray, preprocessor: Preprocessor, *, cap: int = 4_000, seed: int = 0
    ):
        rng = np.random.default_rng(seed)
        self.sizes = np.bincount(codes)
        self.rows = [self._draw(np.flatnonzero(codes == k), cap, rng) for k in range(len(self.sizes))]
        self._expression = [_compact(atlas, preprocessor, rows) for rows in self.rows]
        self._pca: tuple[np.ndarray, np.ndarray] | None = None

    @staticmethod
    def _draw(members: np.ndarray, cap: int, rng: np.random.Generator) -> np.ndarray:
        return members if len(members) <= cap else np.sort(rng.choice(members, cap, replace=False))

    @property
    def classes(self) -> int:
        """C."""
        return len(self.sizes)

    def expression(self, k: int) -> np.ndarray:
        """log1p CP10k of class ``k``, dense float32 [n, G]."""
        return self._expression[k].toarray()

    def cells(self, k: int) -> ClassCells:
        """Class ``k`` as selectors want it, with principal components fitted over all classes."""
        centre, axes = self._components()
        x = self.expression(k)
        return ClassCells(x, (x - centre) @ axes, self.rows[k])

    def _components(self) -> tuple[np.ndarray, np.ndarray]:
        if self._pca is None:
            from sklearn.decomposition import PCA
            from threadpoolctl import threadpool_limits

            # An even share of every class, so that the largest does not own all the components.
            share = max(10_000 // self.classes, 20)
            # Spread over each class: cells of one donor lie together in a file.
            x = np.concatenate(
                [block[_spread(block.shape[0], share)].toarray() for block in self._expression]
            )
            with threadpool_limits(1):
                fit = PCA(min(_COMPONENTS, *x.shape), svd_solver="randomized", random_state=0).fit(x)
            self._pca = fit.mean_.astype(np.float32), fit.components_.T.astype(np.float32)
        return self._pca

    def sample(self, k: int, n: int, rng: np.random.Generator) -> torch.Tensor:
        """``n`` cells of class ``k`` (all of a smaller one), float32 [<= n, G]."""
        block = self._expression[k]
        rows = rng.choice(block.shape[0], n, replace=False) if n < block.shape[0] else slice(None)
        return torch.from_numpy(block[rows].toarray())


def _spread(n: int, count: int) -> np.ndarray:
    return np.linspace(0, n - 1, min(n, count)).astype(np.int64)


def _compact(atlas: Atlas, preprocessor: Preprocessor, rows: np.ndarray) -> sparse.csr_matrix:
    pieces = [
        sparse.csr_matrix(preprocessor.transform(atlas, rows[start : start + 1_024]))
        for start in range(0, len(rows), 1_024)
    ]
    return sparse.vstack(pieces, format="csr")
