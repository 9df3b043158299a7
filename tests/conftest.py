"""Small atlases that every folder of tests shares, and the real ones where they are to be had."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import hypothesis
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

# The same examples in every run, so that a red test is the change's own fault; HYPOTHESIS_PROFILE=search
# looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.register_profile("search", print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def _make_atlas(
    n: int = 240, genes: int = 60, classes: int = 3, *, donors: int = 4, seed: int = 0, depth: float = 800.0
) -> ad.AnnData:
    """Gamma-Poisson counts with markers for each class; donor and condition columns."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    rate = rng.gamma(1.0, 1.0, genes) + 0.05
    markers = np.ones((classes, genes))
    for k in range(classes):
        markers[k, k * 6 : k * 6 + 6] = 8.0
    fraction = markers * rate
    fraction /= fraction.sum(1, keepdims=True)
    size = depth * np.exp(0.3 * rng.standard_normal(n))
    mean = fraction[label] * size[:, None]
    counts = rng.poisson(mean * rng.gamma(5.0, 0.2, mean.shape))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type {k}" for k in label]),
            "donor": pd.Categorical([f"donor {i}" for i in rng.integers(donors, size=n)]),
            "condition": pd.Categorical(np.where(rng.random(n) < 0.5, "ctrl", "stim")),
        },
        index=[f"cell_{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(genes)])
    return ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs, var=var)


@pytest.fixture(scope="session")
def make_atlas():
    """The function itself, for tests that need other sizes."""
    return _make_atlas


@pytest.fixture
def adata() -> ad.AnnData:
    """240 cells, 60 genes, 3 classes, 4 donors."""
    return _make_atlas()


@pytest.fixture
def h5ad(adata: ad.AnnData, tmp_path: Path) -> Path:
    """The same on disk."""
    path = tmp_path / "atlas.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real labelled sets, or a skip."""
    folder = os.environ.get("SCDD_DATA")
    if not folder:
        pytest.skip("SCDD_DATA is unset: no folder of real data sets")
    return Path(folder)


SMALL = {
    "autoencoder_hidden": (32,),
    "autoencoder_latent": 6,
    "autoencoder_steps": 250,
    "autoencoder_batch_size": 64,
    "width": 32,
    "depth": 2,
    "steps": 300,
    "batch_size": 64,
    "quality_batch": 16,
    "classifier_steps": 60,
    "student_steps": 300,
    "student_pairs": 2_048,
    "teacher_steps": 10,
    "device": "cpu",
}


@pytest.fixture(scope="session")
def small() -> dict:
    """Settings of a generator that trains in seconds."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def generator():
    """A small trained SCDG with two conditions; read it, do not change it."""
    import scdd

    atlas = scdd.Atlas(_make_atlas())
    model = scdd.SCDG(atlas, label_key="cell_type", conditions=["condition"], **SMALL)
    return model.fit(progress=False)
