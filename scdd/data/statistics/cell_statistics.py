"""Quality control of every cell, streamed: counts, genes seen, share of mitochondrial counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scdd import _csr
from scdd.data.loading.gather import Arrays
from scdd.data.threads import thread_count
from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas


class CellStatistics(NamedTuple):
    """Per cell: ``total`` counts float64, ``n_genes`` seen int64, ``mitochondrial`` share float64; [n]."""

    total: np.ndarray
    n_genes: np.ndarray
    mitochondrial: np.ndarray


def cell_statistics(
    atlas: Atlas, *, mitochondrial: np.ndarray | None = None, threads: int | None = None
) -> CellStatistics:
    """What scanpy's ``calculate_qc_metrics`` says of cells, in one pass over the atlas.

    Parameters
    ----------
    atlas
        Of counts.
    mitochondrial
        Mask of genes, bool [n_vars]; by default those named ``MT-`` in any case, as in human, mouse and rat.
    threads
        C++ threads; by default one a core. Results do not depend on them.

    Returns
    -------
    CellStatistics
        ``n_genes`` counts genes whose stored entries do not add up to zero. The share is 0 in cells
        without counts, and NaN everywhere if no gene is mitochondrial (say, names are Ensembl ids).

    Raises
    ------
    InputError
        A mask of another shape or dtype; an atlas of log1p values, whose sums are no counts.
    """
    if atlas.expression == "log1p":
        raise InputError(f"{atlas.name} holds log1p values: quality control counts, read a layer of counts")
    mask = mitochondrial_genes(atlas) if mitochondrial is None else _checked(mitochondrial, atlas.n_vars)
    threads = thread_count(threads)
    total, marked = np.zeros((2, atlas.n_obs))
    n_genes = np.zeros(atlas.n_obs, dtype=np.int64)
    for rows, block in atlas.blocks():
        arrays = Arrays.of(block)
        total[rows], n_genes[rows], marked[rows] = _csr.row_statistics(
            *arrays, atlas.n_vars, mask.view(np.uint8), threads=threads
        )
    empty = np.zeros_like(total) if mask.any() else np.full_like(total, np.nan)
    share = np.divide(marked, total, out=empty, where=(total > 0) & mask.any())
    return CellStatistics(total, n_genes, share)


def mitochondrial_genes(atlas: Atlas) -> np.ndarray:
    """Whether each gene's name begins with ``MT-`` in any case, bool [n_vars]."""
    return np.asarray(atlas.var_names.astype(str).str.upper().str.startswith("MT-"), dtype=bool)


def _checked(mask: np.ndarray, n_vars: int) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != (n_vars,):
        raise InputError(
            f"mitochondrial= is {mask.dtype} of shape {mask.shape}; pass one bool for each of {n_vars} genes"
        )
    return np.ascontiguousarray(mask)
