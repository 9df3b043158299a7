"""Other cells than a model was trained on: their genes aligned by name, and how many of them are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scdd.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

# Below this share of a model's genes what it sees is hardly a cell any more.
LEAST_COVERAGE = 0.5


class GeneAlignment(NamedTuple):
    """``column`` int32 [genes of the cells]: the model's gene that each is, -1 for none; how many it has."""

    column: np.ndarray
    found: int
    wanted: int
    sentence: str

    @property
    def whole(self) -> bool:
        """Whether no gene of the model is absent."""
        return self.found == self.wanted


def align_genes(
    wanted: pd.Index, var_names: pd.Index, *, name: str, least: float = LEAST_COVERAGE
) -> GeneAlignment:
    """Align the genes ``var_names`` of the cells called ``name`` with the genes that are ``wanted``.

    Genes that are absent are to be read as zeros.

    Raises
    ------
    InputError
        Less than the share ``least`` of the genes is there.
    """
    own = var_names.astype(str)
    column = wanted.get_indexer(own).astype(np.int32)
    present = np.zeros(len(wanted), dtype=bool)
    present[column[column >= 0]] = True
    found, n = int(present.sum()), len(wanted)
    if found == 0 or found < least * n:
        share = f"{found:,} of the {n:,} chosen genes ({found / n:.0%})"
        said = f"has {share}" if found else f"has zero genes in common with the {n:,} chosen genes"
        raise InputError(
            f"{name} {said}; at least {least:.0%} are needed. Its first gene is {own[0]!r}, the first chosen "
            f"one {wanted[0]!r}: are some named by symbol and some by Ensembl id?"
        )
    sentence = f"{name} has {found:,} of the {n:,} genes of the model ({found / n:.0%})"
    if found < n:
        sentence += f"; the others, e.g. {wanted[~present][0]}, are read as zeros"
    return GeneAlignment(column, found, n, sentence)
