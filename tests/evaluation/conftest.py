"""Small simulated atlases: gamma-Poisson counts, marker genes a class, and sets drawn from them."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from threadpoolctl import threadpool_limits

Make = Callable[..., ad.AnnData]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Waking threads for sixty genes costs more than the work, on a busy machine by far."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def make_cells() -> Make:
    def make(
        n_per_class=30, n_classes=4, *, n_genes=60, strength=8.0, seed=0, names=None, genes=None
    ) -> ad.AnnData:
        rng = np.random.default_rng(seed)
        names = names or [f"type {c}" for c in range(n_classes)]
        sizes = np.broadcast_to(n_per_class, len(names))
        codes = np.repeat(np.arange(len(names)), sizes)
        # The profile depends on the gene alone, so that another seed draws other cells of the same types.
        mean = np.random.default_rng(99).gamma(2.0, 1.0, size=n_genes)[None, :].repeat(len(names), axis=0)
        for c in range(len(names)):
            mean[c, c :: len(names)] *= strength
        depth = rng.gamma(8.0, 1 / 8.0, size=(len(codes), 1))
        counts = rng.poisson(rng.gamma(4.0, mean[codes] * depth / 4.0)).astype(np.float32)
        counts[:, 0] += 1
        obs = pd.DataFrame({"cell_type": pd.Categorical([names[c] for c in codes])})
        obs.index = [f"s{seed}c{i}" for i in range(len(codes))]
        var = pd.DataFrame(index=genes if genes is not None else [f"g{g}" for g in range(n_genes)])
        return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)

    return make


@pytest.fixture(scope="session")
def distil() -> Make:
    """The first k cells of every class as log1p CP10k, as a distilled set looks."""

    def make(cells: ad.AnnData, k: int = 5, *, weight=None) -> ad.AnnData:
        counts = cells.X.toarray()
        x = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
        label = cells.obs["cell_type"].astype(str).to_numpy()
        rows = np.concatenate([np.flatnonzero(label == c)[:k] for c in dict.fromkeys(label)])
        obs = pd.DataFrame(
            {"cell_type": pd.Categorical(label[rows])}, index=[f"row{i}" for i in range(len(rows))]
        )
        if weight is not None:
            obs["weight"] = weight
        made = ad.AnnData(x[rows], obs=obs, var=cells.var.copy())
        made.uns["log1p"] = {"base": None}
        made.uns["scdd"] = {"method": "first cells", "seed": 0, "cells_per_class": k}
        return made

    return make
