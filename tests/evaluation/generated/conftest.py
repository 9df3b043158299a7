"""Small simulated real cells with gene programmes within classes, and how to score others against them."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scdd.evaluation.generated.fidelity import judge
from scdd.evaluation.generated.settings import Settings

LABEL = "cell_type"
SMALL: dict[str, Any] = {
    "n_genes": 100,
    "n_components": 15,
    "folds": 3,
    "trees": 30,
    "published_trees": 30,
    "permutations": 60,
    "projections": 50,
    "correlated_genes": 80,
    "draws": 3,
}


def simulate(n: int, seed: int, *, n_genes: int = 120, n_classes: int = 3) -> ad.AnnData:
    """Gamma-Poisson counts: markers a class, and two programmes that move many genes together in a class."""
    fixed = np.random.default_rng(99)
    mean = fixed.gamma(1.5, 1.0, n_genes)[None, :].repeat(n_classes, axis=0)
    for code in range(n_classes):
        mean[code, code::n_classes] *= 3.0
    programme = fixed.standard_normal((2, n_genes)) * (fixed.random((2, n_genes)) < 0.5) * 0.6
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % n_classes)
    state = rng.standard_normal((n, 2)) @ programme
    rate = mean[codes] * np.exp(state) * rng.gamma(8.0, 1 / 8.0, size=(n, 1))
    counts = rng.poisson(rng.gamma(5.0, rate / 5.0)).astype(np.float32)
    counts[:, 0] += 1
    return cells(counts, [f"type {code}" for code in codes], seed)


def cells(counts: np.ndarray, labels: Any, seed: int = 0) -> ad.AnnData:
    obs = pd.DataFrame({LABEL: pd.Categorical(list(map(str, labels)))})
    obs.index = [f"s{seed}c{i}" for i in range(len(obs))]
    var = pd.DataFrame(index=[f"g{g}" for g in range(counts.shape[1])])
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="session")
def real() -> dict[str, ad.AnnData]:
    sizes = {"train": 500, "test": 260, "held out": 260, "reference": 300}
    return {name: simulate(n, seed) for seed, (name, n) in enumerate(sizes.items(), start=1)}


@pytest.fixture(scope="session")
def score(real):
    """Judge generated cells on some families, with the reference apart."""

    def run(generated, *families, **options):
        sides = {name: options.pop(name, real[name]) for name in ("train", "test", "reference")}
        label_key = options.pop("label_key", LABEL)
        chosen = {"families": families} if families else {}
        settings = Settings(**{**SMALL, **chosen, **options})
        return judge(generated, *sides.values(), label_key=label_key, settings=settings, progress=False)

    return run
