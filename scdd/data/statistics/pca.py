"""Principal components of atlases larger than memory: randomised, in a fixed number of passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scdd import _csr
from scdd.data.loading.gather import Arrays
from scdd.data.preprocess import Preprocessor
from scdd.data.statistics.moments import column_moments, row_scale
from scdd.data.threads import thread_count
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scdd.data.atlas import Atlas

_BLOCK = 4_096
_CONSTANT = 1e-11  # values are float32


class Principal(NamedTuple):
    """Principal components of k directions over G genes.

    Attributes
    ----------
    components : float64 [k, G], orthonormal rows; the largest entry of each is positive
    mean : float64 [G], what is subtracted
    explained_variance, explained_variance_ratio : float64 [k], unbiased; as shares of the total
    scale : float64 [G], standard deviations that were divided by, or None
    preprocessor : genes and normalisation
    normalise : whether cells were scaled and log1p taken
    """

    components: np.ndarray
    mean: np.ndarray
    explained_variance: np.ndarray
    explained_variance_ratio: np.ndarray
    scale: np.ndarray | None
    preprocessor: Preprocessor
    normalise: bool

    def transform(
        self, atlas: Atlas, *, out: np.ndarray | None = None, threads: int | None = None
    ) -> np.ndarray:
        """Coordinates of every cell, float32 [n, k], one pass; ``out`` may be a memory map.

        Raises
        ------
        InputError
            Genes that the atlas lacks, another kind of expression, ``out`` of another shape.
        """
        shape = (atlas.n_obs, len(self.components))
        out = np.empty(shape, dtype=np.float32) if out is None else out
        if out.shape != shape:
            raise InputError(f"out has shape {out.shape}, and must have {shape}")
        view = _View(atlas, self.preprocessor, self.normalise, thread_count(threads))
        inverse = 1.0 if self.scale is None else 1.0 / self.scale
        basis = np.ascontiguousarray((self.components * inverse).T)
        shift = self.mean @ basis
        for rows, block in view.blocks():
            out[rows] = block.times(basis) - shift
        return out


def streaming_pca(
    atlas: Atlas,
    preprocessor: Preprocessor | None = None,
    *,
    n_components: int = 50,
    n_oversamples: int = 10,
    n_iter: int = 7,
    normalise: bool = True,
    scale: bool = False,
    seed: int = 0,
    threads: int | None = None,
) -> Principal:
    """Principal components by subspace iteration on the covariance, which is never formed.

    With Z the centred (and scaled) cells, each pass takes an orthonormal Q [G, l] to W = Zᵀ Z Q, a block
    of cells at a time; Q is then made from W anew. The last W gives the Nyström approximation
    Zᵀ Z ≈ W (Qᵀ W)⁻¹ Wᵀ, whose eigenvectors are the components. Zeros stay sparse: the mean is
    subtracted from products, not from values. `n_iter` + 2 passes; memory is O(G l) and one block.

    Parameters
    ----------
    atlas
        Cells.
    preprocessor
        Genes and normalisation; by default all genes.
    n_components
        k, at most the smaller of cells and genes.
    n_oversamples
        l - k, which makes the last components better.
    n_iter
        Iterations before the last; more where variances fall slowly.
    normalise
        Take ``log1p`` of counts per 10,000 (log1p atlases stay as they are); False: values as stored.
    scale
        Divide each gene by its standard deviation; constant genes are left alone.
    seed
        Of the first Q.
    threads
        C++ threads; by default one a core. Results do not depend on them.

    Raises
    ------
    InputError
        Numbers out of range, fewer than two cells, a preprocessor for other genes or another expression.

    References
    ----------
    Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 2011, section 5.5.
    """
    preprocessor = preprocessor or Preprocessor.of_genes(atlas.var_names, atlas.expression)
    view = _View(atlas, preprocessor, normalise, thread_count(threads))
    _check(view, n_components, n_oversamples, n_iter)
    mean, variance = view.moments()
    # A constant gene has the variance of its rounding errors, which must not be blown up to 1.
    varies = variance > _CONSTANT * mean**2
    spread = np.where(varies, np.sqrt(variance), 1.0) if scale else None
    width = min(n_components + n_oversamples, view.n_genes)
    basis = np.random.default_rng(seed).standard_normal((view.n_genes, width))
    for _ in range(n_iter + 1):
        basis = np.linalg.qr(basis)[0]
        product = _covariance_times(view, basis, mean, spread)
        basis, previous = product, basis
    vectors, values = _nystrom(previous, product)
    total = float((variance if spread is None else variance / spread**2).sum())
    explained = np.maximum(values[:n_components], 0.0)
    ratio = explained / total if total > 0 else np.zeros_like(explained)
    components = _fix_signs(vectors[:, :n_components].T)
    return Principal(components, mean, explained, ratio, spread, preprocessor, normalise)


def _covariance_times(
    view: _View, basis: np.ndarray, mean: np.ndarray, spread: np.ndarray | None
) -> np.ndarray:
    """Zᵀ Z Q / (n - 1) in one pass, float64 [G, l]."""
    inverse = np.ones(view.n_genes) if spread is None else 1.0 / spread
    scaled = basis * inverse[:, None]
    shift = mean @ scaled
    product, column_sum = np.zeros_like(basis), np.zeros(basis.shape[1])
    for _, block in view.blocks():
        projected = block.times(scaled)
        projected -= shift
        block.add_transposed_times(projected, product)
        column_sum += projected.sum(axis=0)
    product -= np.outer(mean, column_sum)
    product *= inverse[:, None] / (view.atlas.n_obs - 1)
    return product


def _nystrom(basis: np.ndarray, product: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors [G, l] and eigenvalues [l], falling, of W (Qᵀ W)⁻¹ Wᵀ."""
    core = basis.T @ product
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    # Directions without variance would be divided by rounding errors: they are left out.
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(float).eps
    inverse_root = np.where(kept, 1.0 / np.sqrt(np.where(kept, values, 1.0)), 0.0)
    left, singular, _ = np.linalg.svd(product @ (vectors * inverse_root), full_matrices=False)
    return left, singular**2


def _fix_signs(components: np.ndarray) -> np.ndarray:
    largest = np.abs(components).argmax(axis=1)
    sign = np.where(components[np.arange(len(components)), largest] < 0, -1.0, 1.0)
    return components * sign[:, None]


class _Block(NamedTuple):
    """Some cells over the chosen genes, values as stored, and how they are to be transformed."""

    arrays: Arrays
    n_genes: int
    scale: np.ndarray | None
    log1p: bool
    threads: int

    def times(self, dense: np.ndarray) -> np.ndarray:
        """f(X) D, float64 [n, l]."""
        out = np.empty((len(self.arrays.indptr) - 1, dense.shape[1]))
        _csr.csr_times_dense(*self.arrays, self.n_genes, dense, self.scale, self.log1p, out, self.threads)
        return out

    def add_transposed_times(self, dense: np.ndarray, out: np.ndarray) -> None:
        """Add f(X)ᵀ D to ``out`` [G, l]."""
        _csr.csr_transposed_times_dense(
            *self.arrays, self.n_genes, dense, self.scale, self.log1p, out, self.threads
        )


class _View:
    """An atlas as a preprocessor shows it, block by block and sparse."""

    def __init__(self, atlas: Atlas, preprocessor: Preprocessor, normalise: bool, threads: int):
        if (atlas.expression == "log1p") != (preprocessor.expression == "log1p"):
            raise InputError(
                f"{atlas.name} holds {atlas.expression}, the preprocessor was fitted on "
                f"{preprocessor.expression}"
            )
        self.atlas, self.threads = atlas, threads
        self.n_genes = preprocessor.n_genes
        self.column = preprocessor.column_of_gene(atlas.var_names)
        missing = self.n_genes - len(np.unique(self.column[self.column >= 0]))
        if missing:
            raise InputError(f"{atlas.name} lacks {missing} of the {self.n_genes} genes of the components")
        self.target_sum = preprocessor.scale_to if normalise else 0.0
        self.log1p = normalise and preprocessor.log1p

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of every chosen gene, float64 [G]; one pass."""
        moments = column_moments(
            self.atlas, target_sum=self.target_sum, log1p=self.log1p, threads=self.threads
        )
        where = np.empty(self.n_genes, dtype=np.int64)
        where[self.column[self.column >= 0]] = np.flatnonzero(self.column >= 0)
        return moments.mean[where], moments.variance[where]

    def blocks(self) -> Iterator[tuple[np.ndarray, _Block]]:
        """Positions of cells, and the cells."""
        for rows, block in self.atlas.blocks(_BLOCK):
            scale = row_scale(block, self.target_sum) if self.target_sum else None
            every = np.arange(block.shape[0])
            parts = _csr.gather_csr(*Arrays.of(block), every, self.column, threads=self.threads)
            arrays = Arrays(*parts[:3])
            yield rows, _Block(arrays, self.n_genes, scale, self.log1p, self.threads)


def _check(view: _View, n_components: int, n_oversamples: int, n_iter: int) -> None:
    most = min(view.atlas.n_obs, view.n_genes)
    if view.atlas.n_obs < 2:
        raise InputError(f"{view.atlas.name} has {view.atlas.n_obs} cells: variance needs at least two")
    for name, value, least in (
        ("n_components", n_components, 1),
        ("n_oversamples", n_oversamples, 0),
        ("n_iter", n_iter, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(f"{name} is {value!r}: give a whole number of at least {least}")
    if n_components > most:
        raise InputError(f"n_components is {n_components}: {view.atlas.name} allows at most {most}")
