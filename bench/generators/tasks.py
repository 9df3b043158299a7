"""The data sets, each parted into train, reference and test cells over one panel of genes.

Generators see train alone. Genes, scales and components of the metrics are fitted on reference, which is never
compared. Test is what generated cells are compared with; its floor comes from train.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

import scdd
from scdd.data.variable_genes import highly_variable_genes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LABEL = "cell_type"
PANEL = 2_000


class Recipe(NamedTuple):
    """A file and how it is parted: by the named donors of ``obs["batch"]``, else at random within classes."""

    file: str
    test: Sequence[str] = ()
    reference: Sequence[str] = ()


RECIPES = {
    "pbmc3k": Recipe("pbmc3k.h5ad"),
    "kang": Recipe(
        "kang_pbmc_ctrl_8donors.h5ad", test=("donor_1015", "donor_101"), reference=("donor_1016", "donor_107")
    ),
    "pancreas": Recipe("mouse_pancreas_e15.h5ad"),
    "pbmc4k": Recipe("pbmc4k_hvg2000.h5ad"),
}


class Task(NamedTuple):
    """Counts over the panel of genes; three parts without a cell in common."""

    name: str
    train: AnnData
    reference: AnnData
    test: AnnData


def load(folder: Path, name: str) -> Task:
    """Read a data set, part its cells and cut all parts to the genes chosen on train."""
    if name not in RECIPES:
        raise SystemExit(f"--tasks {name}: choose from {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    atlas = scdd.Atlas(folder / recipe.file)
    if recipe.test:
        rest, test = atlas.split(by="batch", test=list(recipe.test))
        train, reference = rest.split(by="batch", test=list(recipe.reference))
    else:
        rest, test = atlas.split(label_key=LABEL, test=0.3, seed=0)
        train, reference = rest.split(label_key=LABEL, test=2 / 7, seed=1)
    return parted(name, train, reference, test)


def parted(name: str, train: scdd.Atlas, reference: scdd.Atlas, test: scdd.Atlas) -> Task:
    """The parts as AnnData over up to 2,000 genes, variable in train."""
    genes = np.arange(train.n_vars)
    if train.n_vars > PANEL:
        genes = np.sort(highly_variable_genes(train, PANEL))
    return Task(name, *(_in_memory(part, genes) for part in (train, reference, test)))


def _in_memory(atlas: scdd.Atlas, genes: np.ndarray) -> AnnData:
    x = atlas.read(np.arange(atlas.n_obs))[:, genes].astype(np.float32)
    kept = np.asarray(x.sum(axis=1)).ravel() > 0  # a cell without a count on the panel is no cell
    obs = atlas.obs[[LABEL]].astype(str).loc[kept]
    return AnnData(x[kept], obs=obs, var=pd.DataFrame(index=atlas.var_names[genes].astype(str)))
