"""The two-dimensional map of real cells and distilled rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from scdd.evaluation.inputs import sample_rows

if TYPE_CHECKING:
    from scdd.evaluation.inputs import CellSet, Inputs


@dataclass(frozen=True)
class Components:
    """Principal components of real cells and of distilled rows in the same space.

    ``real`` [n, d] and ``distilled`` [m, d] with their classes ``real_codes`` [n], ``distilled_codes`` [m].
    """

    real: np.ndarray
    distilled: np.ndarray
    real_codes: np.ndarray
    distilled_codes: np.ndarray
    seed: int = 0

    @property
    def caption(self) -> str:
        """What the map is, and what it does not show."""
        return (
            f"t-SNE of {len(self.real):,} real cells and {len(self.distilled):,} distilled rows together, "
            f"on {self.real.shape[1]} principal components of real cells; "
            "neighbourhoods mean something, distances between islands and their sizes do not."
        )

    def layout(self) -> tuple[np.ndarray, np.ndarray]:
        """Place the real cells [n, 2] and the distilled rows [m, 2]; alike for the same input."""
        joint = np.vstack([self.real, self.distilled])
        if len(joint) < 8 or joint.shape[1] < 2:
            # Too little for neighbourhoods: the first two components, padded with zeros.
            place = np.pad(joint, ((0, 0), (0, 2)))[:, :2]
        else:
            perplexity = min(30.0, (len(joint) - 1) / 3)
            # One thread: sums in any other order would move the cells.
            with threadpool_limits(1):
                place = TSNE(
                    2, max_iter=600, perplexity=perplexity, init="pca", random_state=self.seed
                ).fit_transform(joint)
        return place[: len(self.real)], place[len(self.real) :]


def components(inputs: Inputs, *, n_fit: int = 4_000, n_shown: int = 1_200, seed: int = 0) -> Components:
    """Fit at most 30 components on ``n_fit`` real cells, project the rows, keep ``n_shown`` of each."""
    fitted = _sample(inputs.real, n_fit, seed)
    size = max(1, min(30, len(fitted.x) - 1, fitted.x.shape[1]))
    pca = PCA(size, svd_solver="randomized" if min(fitted.x.shape) > 10 * size else "full", random_state=seed)
    pca.fit(fitted.x)
    real, made = _sample(fitted, n_shown, seed), _sample(inputs.distilled, n_shown, seed)
    return Components(pca.transform(real.x), pca.transform(made.x), real.codes, made.codes, seed)


def _sample(cells: CellSet, n_rows: int, seed: int) -> CellSet:
    return cells.take(sample_rows(cells.codes, n_rows, seed))
