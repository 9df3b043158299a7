"""Simulated atlases of known truth: negative binomial counts by class and batch, of any number of cells.

A cell i of class c and batch b has size s_i and counts x_ig ~ NB(mean μ_ig, dispersion α_g):

    log s_i ~ N(m_c, v_c²)        μ_ig = s_i · f_cg h_bg / Σ_g' f_cg' h_bg'
    x_ig | λ ~ Poisson(λ μ_ig)    λ ~ Gamma(shape 1/α_g, mean 1)      so  Var x = μ + α μ²

f_c are a class's expression fractions and h_b a batch's factor on each gene. Zeros come from low means
alone (Svensson, "Droplet scRNA-seq is not zero-inflated", Nat. Biotechnol. 2020).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scdd.data.simulation.counts import sample_negative_binomial
from scdd.data.simulation.fit import fit_count_model, row_totals
from scdd.data.simulation.model import CountModel, at_least, design_count_model
from scdd.data.writing.writer import write_csr
from scdd.errors import InputError
from scdd.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import anndata

# Cells drawn by one random stream. Fixed, so that no block size or path to disk changes a single count.
CHUNK = 256
_COMPRESSIONS = (None, "gzip", "zstd", "lz4", "lzf")

__all__ = [
    "CHUNK",
    "Cells",
    "CountModel",
    "design_count_model",
    "fit_count_model",
    "sample_negative_binomial",
    "simulate",
    "simulate_to_file",
]


class Cells(NamedTuple):
    """Cells as they are drawn: `counts` float32 CSR [n, G], class and batch codes int64 [n]."""

    counts: sparse.csr_matrix
    label: np.ndarray
    batch: np.ndarray


def simulate(
    reference: Any = None,
    *,
    n_cells: int,
    n_genes: int = 2_000,
    n_classes: int = 8,
    n_batches: int = 1,
    class_imbalance: float = 10.0,
    label_key: str = "cell_type",
    batch_key: str = "batch",
    seed: int = 0,
) -> anndata.AnnData:
    """Draw cells with x ~ NB(s f_c h_b, α), from a reference atlas or from a design.

    Parameters
    ----------
    reference
        Atlas, AnnData or path to fit the model to (`fit_count_model`), or a `CountModel`. With one,
        `n_genes`, `n_classes`, `n_batches` and `class_imbalance` are its own.
    n_cells
        Cells to draw.
    n_genes, n_classes, n_batches
        Size of the design (`design_count_model`).
    class_imbalance
        Cells of the design's largest class for each of its smallest.
    label_key, batch_key
        Columns of `obs`, in the result and in the reference. A reference without a column "batch" is
        taken as one batch; any other missing name is an error.
    seed
        Non-negative. The same seed gives the same cells bit for bit, as `simulate_to_file` does.

    Returns
    -------
    anndata.AnnData
        `X` float32 CSR of whole numbers; `obs` has the class and batch as categories and `n_counts`.
        Memory is bounded by twice the non-zeros of `X`.

    Raises
    ------
    InputError
        An argument out of range, or a reference that cannot be fitted.
    """
    import anndata

    _check_draw(n_cells, (label_key, batch_key), seed)
    design = (n_genes, n_classes, n_batches, class_imbalance)
    model = _model(reference, design, (label_key, batch_key), seed)
    cells = _stack(list(_chunks(model, n_cells, seed)))
    obs = _obs(cells, model, (label_key, batch_key))
    var = pd.DataFrame(index=model.var_names)
    return anndata.AnnData(cells.counts, obs=obs, var=var, uns=_provenance(model, seed))


def simulate_to_file(
    path: str | Path,
    reference: Any = None,
    *,
    n_cells: int,
    n_genes: int = 2_000,
    n_classes: int = 8,
    n_batches: int = 1,
    class_imbalance: float = 10.0,
    label_key: str = "cell_type",
    batch_key: str = "batch",
    seed: int = 0,
    block: int = 20_000,
    compression: str | None = None,
) -> Path:
    """Write what `simulate` returns to an `.h5ad` or `.zarr`, `block` cells at a time.

    Memory is bounded by one block. The file takes its name when it is complete and never before.

    Parameters
    ----------
    path
        `.h5ad`, replaced if it is there, or a new `.zarr`.
    reference, n_cells, n_genes, n_classes, n_batches, class_imbalance, label_key, batch_key, seed
        As in `simulate`.
    block
        Cells drawn before they are written; it changes memory, never the cells.
    compression
        Of the matrix: None, "gzip" or as else `write_csr` takes for this kind of file.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        As `simulate`; a path of another kind; block < 1.
    DataFileError
        A folder that is missing or cannot be written, a full disk.
    """
    path = Path(path)
    keys = (label_key, batch_key)
    _check_draw(n_cells, keys, seed)
    at_least("block", block, 1)
    if path.suffix not in (".h5ad", ".zarr"):
        raise InputError(f"path is {path}: simulated atlases are .h5ad or .zarr, give it such a suffix")
    if compression not in _COMPRESSIONS:
        raise InputError(f"compression is {compression!r}: choose one of {_COMPRESSIONS}")
    model = _model(reference, (n_genes, n_classes, n_batches, class_imbalance), keys, seed)
    with progress_bar("simulate", n_cells) as advance:
        write_csr(
            path,
            _with_obs(_blocks(model, n_cells, seed, block), model, keys, advance),
            obs=None,
            var=pd.DataFrame(index=model.var_names),
            uns=_provenance(model, seed),
            compression=compression,
        )
    return path


def _draw(model: CountModel, n: int, rng: np.random.Generator) -> Cells:
    """Draw n cells from one random stream."""
    pair = rng.choice(model.proportion.size, n, p=model.proportion.ravel())
    label, batch = np.divmod(pair, len(model.batches))
    size = np.exp(rng.normal(model.log_size_mean[label], model.log_size_sd[label]))
    mean = model.fraction[label]
    mean *= model.batch_factor[batch]
    mean *= (size / mean.sum(axis=1))[:, None]
    return Cells(sample_negative_binomial(mean, model.dispersion, rng), label, batch)


def _chunks(model: CountModel, n_cells: int, seed: int) -> Iterator[Cells]:
    for number, start in enumerate(range(0, n_cells, CHUNK)):
        stream = np.random.SeedSequence(seed, spawn_key=(1, number))
        yield _draw(model, min(CHUNK, n_cells - start), np.random.default_rng(stream))


def _blocks(model: CountModel, n_cells: int, seed: int, block: int) -> Iterator[Cells]:
    """Join chunks to blocks of at least `block` cells, the last of what is left."""
    waiting: list[Cells] = []
    for chunk in _chunks(model, n_cells, seed):
        waiting.append(chunk)
        if len(waiting) * CHUNK >= block:
            yield _stack(waiting)
            waiting = []
    if waiting:
        yield _stack(waiting)


def _with_obs(
    blocks: Iterator[Cells], model: CountModel, keys: tuple[str, str], advance: Callable[..., None]
) -> Iterator[tuple[sparse.csr_matrix, pd.DataFrame]]:
    start = 0
    for cells in blocks:
        yield cells.counts, _obs(cells, model, keys, start)
        start += len(cells.label)
        advance(len(cells.label))


def _obs(cells: Cells, model: CountModel, keys: tuple[str, str], start: int = 0) -> pd.DataFrame:
    """Return the table of cells, numbered from `start`."""
    return pd.DataFrame(
        {
            keys[0]: pd.Categorical.from_codes(cells.label, model.classes),
            keys[1]: pd.Categorical.from_codes(cells.batch, model.batches),
            "n_counts": row_totals(cells.counts).astype(np.int64),
        },
        index=pd.Index(_cell_names(start, start + len(cells.label))),
    )


def _stack(cells: list[Cells]) -> Cells:
    counts, label, batch = zip(*cells, strict=True)
    return Cells(sparse.vstack(counts, format="csr"), np.concatenate(label), np.concatenate(batch))


def _cell_names(start: int, stop: int) -> list[str]:
    return [f"cell_{i:07d}" for i in range(start, stop)]


def _provenance(model: CountModel, seed: int) -> dict[str, Any]:
    from scdd import __version__

    return {"scdd": {"simulated_from": model.origin, "seed": seed, "version": __version__}}


def _model(
    reference: Any, design: tuple[int, int, int, float], keys: tuple[str, str], seed: int
) -> CountModel:
    if isinstance(reference, CountModel):
        return reference
    if reference is not None:
        return fit_count_model(reference, label_key=keys[0], batch_key=keys[1])
    names = ("n_genes", "n_classes", "n_batches", "class_imbalance")
    return design_count_model(**dict(zip(names, design, strict=True)), seed=seed)  # type: ignore[arg-type]


def _check_draw(n_cells: int, keys: tuple[str, str], seed: int) -> None:
    at_least("n_cells", n_cells, 1)
    at_least("seed", seed, 0)
    if len({*keys, "n_counts", "_index"}) < 4:
        raise InputError(f"label_key and batch_key are {keys}: give two names, neither n_counts nor _index")
