"""The metric space: variable genes, scales and principal components of reference cells alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA

from scdd.data.atlas import Atlas
from scdd.data.variable_genes import normalised_dispersion, standardised_variance
from scdd.errors import InputError

if TYPE_CHECKING:
    from scipy import sparse


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
        Shared genes found in at least five cells and in 1 % of them, boolean [G]; the variable ones are
        among them.
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
        expressed = np.asarray(x.getnnz(axis=0)) >= max(5, 0.01 * x.shape[0])
        kept = np.flatnonzero(expressed)
        if len(kept) < 2:
            raise InputError("fewer than two genes are found in 1 % of the reference cells; check the layer")
        score, flavor = variability(atlas, atlas.var_names.astype(str).get_indexer(genes[kept]))
        order = kept[np.argsort(-score, kind="stable")[:n_genes]]
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


def variability(atlas: Atlas, kept: np.ndarray) -> tuple[np.ndarray, str]:
    """Scores of the ``kept`` genes of an atlas [G], and which they are.

    ``seurat_v3`` of counts, ``seurat`` of all else. Genes found in hardly any cell are not asked: on a few
    hundred cells they share a few values of the mean, and the loess fit of ``seurat_v3`` fails.
    """
    part = _of_genes(atlas, kept)
    if atlas.expression == "counts":
        try:
            return _finite(standardised_variance(part)), "seurat_v3"
        except ValueError:
            pass
    return _finite(normalised_dispersion(part)), "seurat"


def _of_genes(atlas: Atlas, kept: np.ndarray) -> Atlas:
    x = atlas.read(np.arange(atlas.n_obs))[:, kept]
    names = pd.Index(atlas.var_names[kept].astype(str))
    cells = AnnData(x, var=pd.DataFrame(index=names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cells left without counts
        return Atlas(cells, expression=atlas.expression)


def _finite(score: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(score), score, -np.inf)
