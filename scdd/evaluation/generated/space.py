"""The metric space: variable genes, scales and principal components of reference cells alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.decomposition import PCA

from scdd.data.variable_genes import normalised_dispersion, standardised_variance

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from scdd.data.atlas import Atlas


@dataclass(frozen=True)
class Cells:
    """Cells in every space: ``x`` log1p CSR [n, G], ``genes`` [n, H], ``pcs`` [n, d], ``codes`` [n].

    ``to_train`` [n] is the distance to the nearest train cell, where it was asked for.
    """

    x: sparse.csr_matrix
    genes: np.ndarray
    pcs: np.ndarray
    codes: np.ndarray
    to_train: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: np.ndarray) -> Cells:
        """Some of the cells."""
        to_train = None if self.to_train is None else self.to_train[rows]
        return Cells(self.x[rows], self.genes[rows], self.pcs[rows], self.codes[rows], to_train)

    def of_class(self, code: int) -> Cells:
        """The cells of one class."""
        return self.take(np.flatnonzero(self.codes == code))


@dataclass(frozen=True)
class MetricSpace:
    """Fitted on reference cells.

    Attributes
    ----------
    variable
        Positions of the variable genes among the shared ones [H].
    ranked
        The same by falling variability [H], as positions among the variable genes.
    mean, scale
        Of the variable genes [H].
    components, pc_scale
        Principal axes [d, H], and the standard deviations along them [d].
    expressed
        Shared genes found in at least three cells and in 0.5 % of them, boolean [G]; variable ones are
        chosen among them first.
    flavor
        By which score.
    """

    variable: np.ndarray
    ranked: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    pc_scale: np.ndarray
    expressed: np.ndarray
    flavor: str

    @classmethod
    def fit(
        cls, atlas: Atlas, genes: pd.Index, x: sparse.csr_matrix, *, n_genes: int, n_components: int
    ) -> MetricSpace:
        """Choose genes on ``atlas`` and fit all else on ``x``, the same cells as log1p CP10k."""
        scores, flavor = variability(atlas)
        expressed = np.asarray(x.getnnz(axis=0)) >= max(3, 0.005 * x.shape[0])
        score = scores[atlas.var_names.astype(str).get_indexer(genes)]
        order = np.argsort(np.where(expressed, -score, np.inf), kind="stable")[:n_genes]
        variable = np.sort(order)
        dense = x[:, variable].toarray()
        size = max(1, min(n_components, len(dense) - 1, dense.shape[1]))
        solver = "randomized" if min(dense.shape) > 5 * size else "full"
        pca = PCA(size, svd_solver=solver, random_state=0).fit(dense)
        scale = dense.std(axis=0, dtype=np.float64)
        scale[scale < 1e-6] = 1.0
        own = (np.searchsorted(variable, order), pca.mean_.astype(np.float32), scale.astype(np.float32))
        axes = pca.components_.astype(np.float32)
        return cls(
            variable, *own, axes, np.sqrt(pca.explained_variance_).astype(np.float32), expressed, flavor
        )

    def project(self, genes: np.ndarray) -> np.ndarray:
        """Principal components of variable genes: ``(x - mean) components'``, [n, d]."""
        return (genes - self.mean) @ self.components.T

    def place(self, x: sparse.csr_matrix, codes: np.ndarray) -> Cells:
        """Cells in every space."""
        genes = x[:, self.variable].toarray()
        return Cells(x, genes, self.project(genes), codes)


def variability(atlas: Atlas) -> tuple[np.ndarray, str]:
    """Scores of genes [G] and which they are: ``seurat_v3`` of counts, ``seurat`` of all else.

    On a few hundred cells most genes share a few values of the mean, and the loess fit of ``seurat_v3`` may
    have no solution; then ``seurat`` it is.
    """
    if atlas.expression == "counts":
        try:
            return _finite(standardised_variance(atlas)), "seurat_v3"
        except ValueError:
            pass
    return _finite(normalised_dispersion(atlas)), "seurat"


def _finite(score: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(score), score, -np.inf)
