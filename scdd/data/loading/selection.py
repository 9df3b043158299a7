"""Which rows, genes and labels the arguments of a loader ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdd.data.loading.gather import GeneTransform
from scdd.data.remarks import remark_on_other_labels
from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas
    from scdd.data.preprocess import Preprocessor

TARGET_SUM = 1e4


def gene_transform(
    atlas: Atlas,
    genes: Sequence[str] | pd.Index | None,
    preprocessor: Preprocessor | None,
    *,
    normalise: bool,
    standardise: bool,
) -> GeneTransform:
    """Put together what ``genes`` or ``preprocessor`` and the two switches ask for."""
    if genes is not None and preprocessor is not None:
        raise InputError("genes= and preprocessor= both choose genes; pass one of them")
    if standardise and (not normalise or preprocessor is None or preprocessor.std is None):
        raise InputError("standardise=True needs normalise=True and a fitted preprocessor=")
    if preprocessor is None:
        names = _wanted(genes, atlas)
        column = names.get_indexer(atlas.var_names.astype(str))
        log1p = normalise and atlas.expression != "log1p"
        return GeneTransform(column.astype(np.int32), len(names), TARGET_SUM if log1p else 0.0, log1p)
    if preprocessor.log1p == (atlas.expression == "log1p"):
        raise InputError(f"the atlas holds {atlas.expression}, the preprocessor was fitted on another kind")
    column = preprocessor.column_of_gene(atlas.var_names)
    if (column < 0).all():
        raise InputError(f"the atlas has none of the preprocessor's {len(preprocessor.genes)} genes")
    mean, std = (preprocessor.mean, preprocessor.std) if standardise else (None, None)
    return GeneTransform(
        column.astype(np.int32),
        len(preprocessor.genes),
        preprocessor.scale_to if normalise else 0.0,
        normalise and preprocessor.log1p,
        mean,
        None if std is None else (1.0 / std).astype(np.float32),
    )


def _wanted(genes: Sequence[str] | pd.Index | None, atlas: Atlas) -> pd.Index:
    if isinstance(genes, str):
        raise InputError(f"genes={genes!r} is one string; pass a list of names, [{genes!r}]")
    names = pd.Index(atlas.var_names if genes is None else genes).astype(str)
    if genes is not None and pd.Index(genes).dtype == bool:
        raise InputError("genes= is a mask (bool); pass the names themselves: atlas.var_names[mask]")
    missing = names[~names.isin(atlas.var_names.astype(str))]
    if len(missing):
        raise InputError(f"genes= names {len(missing)} genes that the atlas lacks, e.g. {missing[0]!r}")
    if not len(names) or names.has_duplicates:
        raise InputError("genes= is empty or names a gene twice")
    return names


def checked_rows(rows: np.ndarray | None, n_obs: int) -> np.ndarray:
    """Return positions int64 of the rows wanted, from positions or a mask."""
    if rows is None:
        return np.arange(n_obs, dtype=np.int64)
    rows = np.asarray(rows)
    if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iub"):
        raise InputError(
            f"rows= is {rows.dtype} of shape {rows.shape}; pass positions (int) or a mask (bool)"
        )
    if rows.dtype == bool:
        if len(rows) != n_obs:
            raise InputError(f"rows= is a mask of {len(rows)} cells, the atlas has {n_obs}")
        return np.flatnonzero(rows).astype(np.int64)
    if len(rows) and (rows.min() < 0 or rows.max() >= n_obs):
        raise InputError(
            f"rows= names row {rows.min() if rows.min() < 0 else rows.max()}; they are 0..{n_obs - 1}"
        )
    return rows.astype(np.int64)


def label_codes(
    atlas: Atlas, labels: Sequence[str] | Mapping[str, Sequence[str]]
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Return codes int64 [n_obs] of each label and its categories: those given, else those found, sorted."""
    labels = (labels,) if isinstance(labels, str) else labels
    codes, categories = {}, {}
    for name in labels:
        if name not in atlas.obs:
            known = ", ".join(map(str, atlas.obs.columns)) or "none"
            raise InputError(f"labels= names {name!r}, which obs lacks; its columns are: {known}")
        column = atlas.obs[name]
        text = column.astype(str).where(column.notna(), None)
        given = labels[name] if isinstance(labels, Mapping) else sorted(text.dropna().unique())
        categories[name] = [str(category) for category in given]
        codes[name] = pd.Categorical(text, categories=categories[name]).codes.astype(np.int64)
        if not isinstance(labels, Mapping):
            atlas.remark_on_labels(name, categories[name], codes[name])
        elif (codes[name] < 0).all() and column.notna().any():
            remark_on_other_labels(name, str(text.dropna().iloc[0]), categories[name])
    return codes, categories
