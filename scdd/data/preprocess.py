"""From stored expression to what models see: chosen genes, CP10k, log1p; fitted on training cells only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdd import _csr
from scdd.data.alignment import align_genes
from scdd.data.remarks import remark_on_absent_genes
from scdd.data.statistics.moments import column_moments
from scdd.data.variable_genes import highly_variable_genes
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scdd.data.atlas import Atlas

TARGET_SUM = 1e4


@dataclass(frozen=True)
class Preprocessor:
    """``log1p(10^4 x / total)`` over chosen genes; totals run over *all* genes of the cell's file.

    Log1p data is passed through. ``mean`` and ``std`` [G] of the training cells, where fitted,
    serve ``transform(standardise=True)``: ``(x - mean) / std``. ``file_genes`` is how many genes the totals
    of the training cells ran over.
    """

    genes: pd.Index
    expression: str
    target_sum: float = TARGET_SUM
    mean: np.ndarray | None = field(default=None, repr=False)
    std: np.ndarray | None = field(default=None, repr=False)
    file_genes: int | None = None

    @classmethod
    def fit(
        cls,
        atlas: Atlas,
        *,
        n_top_genes: int | None = 2_000,
        flavor: str = "auto",
        genes: Iterable[str] | None = None,
    ) -> Preprocessor:
        """Choose genes (all if ``n_top_genes`` is None or not below their number) and their scale."""
        names = atlas.var_names
        if genes is not None:
            names = _known_genes(atlas, genes)
        elif n_top_genes is not None and n_top_genes < atlas.n_vars:
            names = names[highly_variable_genes(atlas, n_top_genes, flavor=flavor)]
        unscaled = cls.of_genes(names, atlas.expression)
        moments = column_moments(atlas, target_sum=unscaled.scale_to, log1p=unscaled.log1p)
        where = atlas.var_names.get_indexer(names)
        if not moments.nonzero[where].any():
            raise InputError(f"{atlas.name} holds only zeros in the chosen genes; is the right layer read?")
        std = np.sqrt(moments.variance[where])
        # A silent gene has no scale; 1 leaves it at zero.
        std[std < 1e-6] = 1.0
        return cls(
            names,
            atlas.expression,
            mean=moments.mean[where].astype(np.float32),
            std=std.astype(np.float32),
            file_genes=atlas.n_vars,
        )

    @classmethod
    def of_genes(cls, genes: Iterable[str], expression: str) -> Preprocessor:
        """A preprocessor of a given gene list, without scale."""
        return cls(pd.Index(genes).astype(str), expression)

    @property
    def log1p(self) -> bool:
        """Whether ``log1p`` is to be taken, i.e. the data is not log1p already."""
        return self.expression != "log1p"

    @property
    def scale_to(self) -> float:
        """What every cell is scaled to; 0 for data that is normalised already."""
        return self.target_sum if self.log1p else 0.0

    @property
    def n_genes(self) -> int:
        """Number of chosen genes."""
        return len(self.genes)

    def column_of_gene(self, var_names: pd.Index) -> np.ndarray:
        """Output column of every gene of a file, -1 for genes not chosen; int32 [len(var_names)]."""
        return self.genes.get_indexer(var_names.astype(str)).astype(np.int32)

    def transform(
        self, atlas: Atlas, rows: np.ndarray | None = None, *, standardise: bool = False
    ) -> np.ndarray:
        """Dense float32 [n, G] of the given cells (all by default), read and converted in blocks.

        Genes are aligned by name. Those that the atlas lacks are zeros, which is said once in a warning.

        Raises
        ------
        InputError
            Less than half of the genes is in the atlas, or its expression is of another kind.
        """
        if (atlas.expression == "log1p") != (self.expression == "log1p"):
            raise InputError(
                f"{atlas.name} holds {atlas.expression}, the preprocessor was fitted on {self.expression}"
            )
        aligned = align_genes(self.genes, atlas.var_names, name=atlas.name)
        if not aligned.whole:
            remark_on_absent_genes(aligned.sentence, atlas.told)
        column = aligned.column
        rows = np.arange(atlas.n_obs) if rows is None else np.asarray(rows, dtype=np.int64)
        out = np.empty((len(rows), self.n_genes), dtype=np.float32)
        for start in range(0, len(rows), 4_096):
            block = atlas.read(rows[start : start + 4_096])
            self.write(
                block, np.arange(block.shape[0]), column, out[start : start + 4_096], standardise=standardise
            )
        return out

    def write(
        self, block: Any, rows: np.ndarray, column: np.ndarray, out: np.ndarray, *, standardise: bool = False
    ) -> None:
        """Fill ``out`` float32 [len(rows), G] from rows of a CSR block in one C++ pass."""
        mean, inverse = (self.mean, 1.0 / self.std) if standardise and self.std is not None else (None, None)
        arrays = (block.data, block.indices, block.indptr.astype(np.int64), rows.astype(np.int64), column)
        how = (None, self.scale_to, self.log1p, mean, inverse)
        _csr.gather_dense(*arrays, out, *how)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able state without the arrays."""
        return {
            "genes": list(map(str, self.genes)),
            "expression": self.expression,
            "target_sum": self.target_sum,
            "file_genes": self.file_genes,
        }


def _known_genes(atlas: Atlas, genes: Iterable[str]) -> pd.Index:
    wanted = pd.Index(genes).astype(str)
    missing = wanted[~wanted.isin(atlas.var_names)]
    if len(missing):
        raise InputError(f"genes= names {len(missing)} genes that {atlas.name} lacks, e.g. {missing[0]!r}")
    if not len(wanted) or wanted.has_duplicates:
        raise InputError("genes= is empty or names a gene twice")
    return wanted
