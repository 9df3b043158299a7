"""What a method returns, and how cells are put into an AnnData."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator

LABEL = "cell_type"


class Made(NamedTuple):
    """Generated cells with the class asked for in ``obs``; seconds; a remark for the table."""

    cells: AnnData
    train_seconds: float
    generate_seconds: float
    note: str = ""


class Watch:
    """Seconds since it was made or read last."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now, start = time.perf_counter(), self.start
        self.start = now
        return now - start


def as_cells(x: Any, labels: np.ndarray, genes: pd.Index) -> AnnData:
    """An AnnData of cells x [n, G] and their classes [n]."""
    obs = pd.DataFrame(
        {LABEL: np.asarray(labels, dtype=str)}, index=[f"generated_{i}" for i in range(len(labels))]
    )
    return AnnData(sparse.csr_matrix(x, dtype=np.float32), obs=obs, var=pd.DataFrame(index=genes))


def each_class(labels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Every class asked for, and the rows that are to be of it."""
    for name in np.unique(labels):
        yield str(name), np.flatnonzero(labels == name)
