"""A distilled set as an ordinary AnnData, with weights and provenance."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

import scdd

if TYPE_CHECKING:
    import anndata

    from scdd.data.atlas import Atlas
    from scdd.data.preprocess import Preprocessor
    from scdd.models.scdg import SCDG


class Rows(NamedTuple):
    """What a method returns: expression float32 [M, G], class [M], real cells each row stands for [M]."""

    expression: np.ndarray
    label: np.ndarray
    mass: np.ndarray
    source: np.ndarray | None = None
    codes: np.ndarray | None = None
    depth: np.ndarray | None = None
    history: list[float] | None = None


def as_anndata(
    preprocessor: Preprocessor, label_key: str, names: list[str], rows: Rows, record: dict[str, Any]
) -> anndata.AnnData:
    """Genes in ``var``; label, ``weight``, ``n_cells`` in ``obs``; codes in ``obsm``; record in ``uns``."""
    import anndata

    class_mass = np.bincount(rows.label, weights=rows.mass)[rows.label]
    class_rows = np.bincount(rows.label)[rows.label]
    obs = pd.DataFrame(
        {
            label_key: pd.Categorical.from_codes(rows.label, categories=names),
            "weight": rows.mass * class_rows / class_mass,
            "n_cells": rows.mass,
        },
        index=[f"distilled_{number}" for number in range(len(rows.label))],
    )
    if rows.source is not None:
        obs["source_cell"] = rows.source
    if rows.depth is not None:
        obs["depth"] = rows.depth
    adata = anndata.AnnData(rows.expression, obs=obs, var=pd.DataFrame(index=preprocessor.genes))
    if rows.codes is not None:
        adata.obsm["X_code"] = rows.codes
    if rows.history:
        record = {**record, "objective_history": np.asarray(rows.history)}
    # scanpy looks here before it takes a logarithm twice.
    adata.uns["log1p"] = {"base": None}
    adata.uns["scdd"] = {**record, "label_key": label_key}
    return adata


def provenance(
    atlas: Atlas, method: str, seed: int, settings: dict[str, Any], generator: SCDG | None
) -> dict[str, Any]:
    """How the set came to be: settings as JSON, versions, fingerprints of data and generator."""
    import torch

    record: dict[str, Any] = {
        "method": method,
        "expression": "log1p",
        "seed": seed,
        "settings": json.dumps(settings, sort_keys=True),
        "source": atlas.name,
        "source_layer": atlas.layer,
        "source_cells": atlas.n_obs,
        "source_fingerprint": atlas.fingerprint(),
        # Sums depend on how many threads share them: bit-for-bit repetition needs the same number.
        "threads": torch.get_num_threads(),
        "versions": {"scdd": scdd.__version__, "torch": str(torch.__version__), "numpy": np.__version__},
        "teacher": "none: trained on the source alone, no foundation-model weights",
    }
    if generator is not None:
        record["generator"] = generator.weights_hash()
        record["generator_config"] = json.dumps(generator.config.to_dict(), sort_keys=True)
    return record
