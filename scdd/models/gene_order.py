"""In which order genes are cut into patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas
    from scdd.data.preprocess import Preprocessor


def correlation_order(
    atlas: Atlas, preprocessor: Preprocessor, *, cells: int = 4_000, components: int = 50, seed: int = 0
) -> np.ndarray:
    """Leaves of a tree of genes by correlation, int64 [G]: neighbours vary together.

    Average linkage on correlation distance of the genes' loadings on the leading components of up to
    ``cells`` training cells.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(atlas.n_obs)[:cells])
    x = preprocessor.transform(atlas, rows, standardise=True).clip(-5, 5)
    _, scales, genes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    loadings = (genes[:components] * scales[:components, None]).T
    # a silent gene has no direction; any will do
    loadings[np.abs(loadings).sum(1) < 1e-6, 0] = 1e-6
    return leaves_list(linkage(loadings, method="average", metric="correlation")).astype(np.int64)
