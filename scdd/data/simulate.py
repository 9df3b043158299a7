"""Simulated atlases of known truth: negative binomial counts by class and batch, of any number of cells.

A cell i of class c and batch b has size s_i and counts x_ig ~ NB(mean μ_ig, dispersion α_g):

    log s_i ~ N(m_c, v_c²)        μ_ig = s_i · f_cg h_bg / Σ_g' f_cg' h_bg'
    x_ig | λ ~ Poisson(λ μ_ig)    λ ~ Gamma(shape 1/α_g, mean 1)      so  Var x = μ + α μ²

f_c are a class's expression fractions and h_b a batch's factor on each gene. Zeros come from low means
alone (Svensson, "Droplet scRNA-seq is not zero-inflated", Nat. Biotechnol. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scdd.data.atlas import Atlas
from scdd.errors import InputError
from scdd.output import atomic_path
from scdd.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata
    import h5py

# Cells drawn by one random stream. Fixed, so that no block size or path to disk changes a single count.
CHUNK = 256
_STORED = 1 << 16  # values in a chunk of the file
_ROUNDS = 20  # of fitting two sets of parameters in turn
_DISPERSION = (1e-6, 100.0)  # the lower is Poisson to six digits; the upper is one odd cell, not a gene


@dataclass(frozen=True)
class CountModel:
    """Parameters of the simulator, for K classes, B batches and G genes."""

    fraction: np.ndarray  # float64 [K, G], rows sum to 1
    batch_factor: np.ndarray  # float64 [B, G], 1 where a batch does nothing
    dispersion: np.ndarray  # float64 [G], α > 0
    log_size_mean: np.ndarray  # float64 [K], m
    log_size_sd: np.ndarray  # float64 [K], v
    proportion: np.ndarray  # float64 [K, B], of all cells, sums to 1
    var_names: pd.Index
    classes: list[str]
    batches: list[str]
    origin: str  # "design" or the name of the reference


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
    obs = pd.DataFrame(
        {
            label_key: pd.Categorical.from_codes(cells.label, model.classes),
            batch_key: pd.Categorical.from_codes(cells.batch, model.batches),
            "n_counts": _totals(cells.counts).astype(np.int64),
        },
        index=pd.Index(_cell_names(0, n_cells)),
    )
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
    """Write what `simulate` returns to an `.h5ad` file, `block` cells at a time.

    Memory is bounded by one block. The file takes its name when it is complete and never before.

    Parameters
    ----------
    path
        File to write; replaced if it is there.
    reference, n_cells, n_genes, n_classes, n_batches, class_imbalance, label_key, batch_key, seed
        As in `simulate`.
    block
        Cells drawn before they are written; it changes memory, never the cells.
    compression
        HDF5 filter of the matrix: None, "gzip" or "lzf".

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        As `simulate`; a path that is not `.h5ad`; block < 1.
    DataFileError
        A folder that is missing or cannot be written, a full disk.
    """
    import h5py
    from anndata.io import write_elem

    path = Path(path)
    keys = (label_key, batch_key)
    _check_draw(n_cells, keys, seed)
    _at_least("block", block, 1)
    if path.suffix != ".h5ad":
        raise InputError(f"path is {path}: simulated atlases are written as .h5ad, give it that suffix")
    if compression not in (None, "gzip", "lzf"):
        raise InputError(f"compression is {compression!r}: choose None, 'gzip' or 'lzf'")
    model = _model(reference, (n_genes, n_classes, n_batches, class_imbalance), keys, seed)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        columns = _create(file, model, n_cells, keys, compression)
        write_elem(file, "uns", _provenance(model, seed))
        with progress_bar("simulate", n_cells) as advance:
            for cells in _blocks(model, n_cells, seed, block):
                _append(columns, cells)
                advance(len(cells.label))
    return path


def design_count_model(
    *,
    n_genes: int = 2_000,
    n_classes: int = 8,
    n_batches: int = 1,
    class_imbalance: float = 10.0,
    marker_fold: float = 8.0,
    batch_effect: float = 0.15,
    dispersion: float = 0.3,
    library_size: float = 1_500.0,
    library_sd: float = 0.35,
    seed: int = 0,
) -> CountModel:
    """Design a model: log-normal genes, f_cg ∝ e^(2 z_g), times `marker_fold` where g marks class c.

    Every class has up to 50 markers of its own, none below the median gene. Class proportions fall
    geometrically, p_c ∝ r^(−c/(K−1)), and batches are equally large with h_bg = e^(`batch_effect` z_bg).

    Parameters
    ----------
    n_genes, n_classes, n_batches
        G, K, B; every class needs a gene.
    class_imbalance
        r, largest class over smallest, at least 1.
    marker_fold, batch_effect, dispersion
        Fold change of markers, standard deviation of log h, α of every gene.
    library_size, library_sd
        Median counts of a cell and the standard deviation of their logarithm.
    seed
        Of the genes, markers and batch factors.

    Raises
    ------
    InputError
        A number out of range, or more classes than genes.
    """
    sizes = {"n_genes": n_genes, "n_classes": n_classes, "n_batches": n_batches}
    for name, value in {**sizes, "class_imbalance": class_imbalance}.items():
        _at_least(name, value, 1, whole=name in sizes)
    for name, number in {
        "marker_fold": marker_fold,
        "dispersion": dispersion,
        "library_size": library_size,
    }.items():
        if not 0 < number < np.inf:
            raise InputError(f"{name} is {number!r}: give a positive number")
    for name, number in {"batch_effect": batch_effect, "library_sd": library_sd}.items():
        _at_least(name, number, 0, whole=False)
    if n_classes > n_genes:
        raise InputError(f"n_classes is {n_classes} but n_genes {n_genes}: every class needs a marker gene")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    fraction = np.tile(rng.lognormal(0.0, 2.0, n_genes), (n_classes, 1))
    n_markers = max(1, min(50, n_genes // (2 * n_classes)))
    markers = rng.permutation(n_genes)[: n_classes * n_markers].reshape(n_classes, n_markers)
    # A fold change of a gene that is never seen marks nothing.
    fraction[:, markers.ravel()] = np.maximum(fraction[:, markers.ravel()], np.median(fraction))
    fraction[np.arange(n_classes)[:, None], markers] *= marker_fold
    proportion = class_imbalance ** -np.linspace(0.0, 1.0, n_classes)
    factor = (
        rng.lognormal(0.0, batch_effect, (n_batches, n_genes)) if n_batches > 1 else np.ones((1, n_genes))
    )
    return CountModel(
        fraction=fraction / fraction.sum(axis=1, keepdims=True),
        batch_factor=factor,
        dispersion=np.full(n_genes, dispersion),
        log_size_mean=np.full(n_classes, np.log(library_size)),
        log_size_sd=np.full(n_classes, library_sd),
        proportion=np.repeat((proportion / proportion.sum() / n_batches)[:, None], n_batches, axis=1),
        var_names=pd.Index(_numbered("gene", n_genes, 4)),
        classes=_numbered("class", n_classes),
        batches=_numbered("batch", n_batches),
        origin="design",
    )


def fit_count_model(reference: Any, *, label_key: str = "cell_type", batch_key: str = "batch") -> CountModel:
    """Fit the model to an atlas of counts by moments, in one pass over its blocks.

    f_cg = Σ x / Σ s h over the class and h_bg = (1 + Σ x) / (1 + Σ s f) over the batch, in turn; since
    E[x² − x] = (1 + α) μ², α_g = Σ (x² − x) / Σ μ² − 1 over all cells; m and v are those of log s over
    the class's cells with any count, less what counting adds to them. Proportions are those of the
    atlas. Memory is O((K + B) G).

    Parameters
    ----------
    reference
        Atlas, AnnData or path, of counts.
    label_key, batch_key
        Columns of its `obs`; without a column "batch" it is one batch.

    Raises
    ------
    InputError
        No such column, cells without a label, values that are no counts, a class without any count.
    """
    atlas = Atlas.of(reference)
    if atlas.expression == "log1p":
        raise InputError(f"{atlas.name} holds log1p values: the simulator fits counts, read it as counts")
    label, classes = atlas.labels(label_key)
    batch, batches = np.zeros(atlas.n_obs, dtype=np.int64), ["batch_1"]
    if batch_key != "batch" or batch_key in atlas.obs:
        batch, batches = atlas.labels(batch_key)
    sums = _sums(atlas, label, batch, (len(classes), len(batches)))
    size = sums.by_class.sum(axis=1)
    if not size.all():
        empty = classes[int(size.argmin())]
        raise InputError(f"no cell of {label_key} {empty!r} has any count: leave that class out")
    fraction, factor = _factorise(sums)
    dispersion, noise = _dispersion(sums, fraction, factor)
    mean, sd = _log_moments(sums, label, noise)
    return CountModel(
        fraction=fraction,
        batch_factor=factor,
        dispersion=dispersion,
        log_size_mean=mean,
        log_size_sd=sd,
        proportion=sums.cells / sums.cells.sum(),
        var_names=pd.Index(atlas.var_names),
        classes=list(classes),
        batches=list(batches),
        origin=atlas.name,
    )


class _Sums(NamedTuple):
    """What one pass leaves, over the cells of each class (K), batch (B) or both."""

    by_class: np.ndarray  # [K, G] Σ x
    by_batch: np.ndarray  # [B, G] Σ x
    pairs: np.ndarray  # [G] Σ x² − x
    cells: np.ndarray  # [K, B]
    size: np.ndarray  # [K, B] Σ s
    square: np.ndarray  # [K, B] Σ s² − s
    total: np.ndarray  # [n] of every cell


def _sums(atlas: Atlas, label: np.ndarray, batch: np.ndarray, shape: tuple[int, int]) -> _Sums:
    by_class, by_batch = (np.zeros((k, atlas.n_vars)) for k in shape)
    pairs, total = np.zeros(atlas.n_vars), np.zeros(atlas.n_obs)
    for rows, counts in atlas.blocks():
        block = counts.astype(np.float64)
        total[rows] = _totals(block)
        by_class += (_indicator(label[rows], shape[0]) @ block).toarray()
        by_batch += (_indicator(batch[rows], shape[1]) @ block).toarray()
        pairs += np.bincount(block.indices, block.data * (block.data - 1.0), minlength=atlas.n_vars)
    cell = label * shape[1] + batch
    cells, size, square = (
        np.bincount(cell, weight, minlength=shape[0] * shape[1]).reshape(shape)
        for weight in (None, total, total * (total - 1.0))
    )
    return _Sums(by_class, by_batch, pairs, cells, size, square, total)


def _indicator(codes: np.ndarray, k: int) -> sparse.csr_matrix:
    n = len(codes)
    return sparse.csr_matrix((np.ones(n), (codes, np.arange(n))), shape=(k, n))


def _factorise(sums: _Sums) -> tuple[np.ndarray, np.ndarray]:
    """Split means into class and batch: each in turn given the other, the Poisson likelihood rises.

    One round would leave a batch's effect in the classes that it holds most of.
    """
    factor = np.ones_like(sums.by_batch)
    for _ in range(_ROUNDS):
        fraction = sums.by_class / (sums.size @ factor)
        factor = (1.0 + sums.by_batch) / (1.0 + sums.size.T @ fraction)
    return fraction / fraction.sum(axis=1, keepdims=True), factor


def _dispersion(sums: _Sums, fraction: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimate α, and by it the noise Σ_g α_g p_g² of a cell's total about its size, [K, B].

    The total T of a cell is known, its size s is not: E[T² − T] = E[s²] (1 + Σ_g α_g p_g²). To take T
    for s would lose part of every α to the sizes, so α and E[s²] are solved for in turn.
    """
    f_square, h_square, norm = fraction**2, factor**2, (fraction @ factor.T) ** 2
    alpha = np.zeros(fraction.shape[1])
    for _ in range(_ROUNDS):
        noise = (f_square * alpha) @ h_square.T / norm
        size_square = sums.square / (1.0 + noise) / norm
        mean_square = (h_square * (size_square.T @ f_square)).sum(axis=0)
        ratio = np.divide(sums.pairs, mean_square, out=np.ones_like(alpha), where=mean_square > 0)
        alpha = np.clip(ratio - 1.0, *_DISPERSION)
    return alpha, noise


def _log_moments(sums: _Sums, label: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of log s by class: those of log T without what counting adds."""
    filled, k = sums.total > 0, len(sums.cells)
    log, label = np.log(sums.total[filled]), label[filled]
    n = np.bincount(label, minlength=k)
    mean = np.bincount(label, log, minlength=k) / n
    # From the mean, not as E[log²] − E[log]², which would cancel.
    variance = np.bincount(label, (log - mean[label]) ** 2, minlength=k) / n
    cells = sums.cells.sum(axis=1)
    spread = (sums.cells * noise).sum(axis=1) / cells + cells / sums.size.sum(axis=1)
    added = np.minimum(np.log1p(spread), variance)
    return mean + added / 2, np.sqrt(variance - added)


def sample_negative_binomial(
    mean: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Draw x ~ NB(μ, α), Var x = μ + α μ², at the cost of one exponential an entry and the non-zeros.

    An NB count is a Poisson number of bursts of logarithmic size: rate ρ = log(1 + α μ) / α and
    size ~ Log(α μ / (1 + α μ)). An entry is non-zero if its first burst, at time E ~ Exp(1), comes
    before ρ; then Poisson(ρ − E) follow it. So zeros, nearly all entries, need no gamma draw.

    Parameters
    ----------
    mean
        μ ≥ 0, [n, G].
    dispersion
        α > 0, broadcast against `mean`.
    rng
        Source of randomness.

    Returns
    -------
    scipy.sparse.csr_matrix
        float32 [n, G], whole numbers.

    References
    ----------
    Quenouille, "A relation between the logarithmic, Poisson, and negative binomial series",
    Biometrics 1949.
    """
    odds = mean * dispersion
    rate = np.log1p(odds) / dispersion
    rate -= rng.standard_exponential(mean.shape)
    row, column = np.nonzero(rate > 0)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(mean)))])
    bursts = 1 + rng.poisson(rate[row, column])
    odds = odds[row, column]
    sizes = rng.logseries(np.repeat(odds / (1.0 + odds), bursts))
    counts = np.diff(np.concatenate([[0], np.cumsum(sizes)[np.cumsum(bursts) - 1]]))
    return sparse.csr_matrix((counts.astype(np.float32), column.astype(np.int32), indptr), shape=mean.shape)


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


def _stack(cells: list[Cells]) -> Cells:
    counts, label, batch = zip(*cells, strict=True)
    return Cells(sparse.vstack(counts, format="csr"), np.concatenate(label), np.concatenate(batch))


def _create(
    file: h5py.File, model: CountModel, n_cells: int, keys: tuple[str, str], compression: str | None
) -> dict[str, h5py.Dataset]:
    """Lay out an empty AnnData 0.1.0 file; return the columns that `_append` extends."""
    from anndata.io import write_elem

    _encode(file, "anndata", "0.1.0")
    write_elem(file, "var", pd.DataFrame(index=model.var_names))
    for name in ("layers", "obsm", "obsp", "varm", "varp"):
        write_elem(file, name, {})
    matrix, obs = file.create_group("X"), file.create_group("obs")
    _encode(matrix, "csr_matrix", "0.1.0", shape=(n_cells, len(model.var_names)))
    _encode(obs, "dataframe", "0.2.0", **{"_index": "_index", "column-order": [*keys, "n_counts"]})
    columns = {
        "data": _growing(matrix, "data", np.float32, compression),
        "indices": _growing(matrix, "indices", np.int32, compression),
        "indptr": _growing(matrix, "indptr", np.int64),
        "names": _growing(obs, "_index", None),
        "n_counts": _growing(obs, "n_counts", np.int64),
    }
    columns["indptr"].resize((1,))
    for role, key, names in zip(("label", "batch"), keys, (model.classes, model.batches), strict=True):
        group = obs.create_group(key)
        _encode(group, "categorical", "0.2.0", ordered=False)
        write_elem(group, "categories", np.array(names, dtype=object))
        codes = pd.Categorical.from_codes([0], names).codes.dtype
        columns[role] = _growing(group, "codes", codes)
    return columns


def _encode(group: h5py.Group | h5py.Dataset, kind: str, version: str, **attributes: Any) -> None:
    """Name an element's type the way AnnData's on-disk format does."""
    group.attrs.update({"encoding-type": kind, "encoding-version": version, **attributes})


def _growing(group: h5py.Group, name: str, dtype: Any, compression: str | None = None) -> h5py.Dataset:
    """Create an empty array that can be extended; of strings if `dtype` is None."""
    import h5py

    kind = h5py.string_dtype() if dtype is None else dtype
    layout = {"maxshape": (None,), "chunks": (_STORED,), "compression": compression}
    column = group.create_dataset(name, shape=(0,), dtype=kind, **layout)
    _encode(column, "string-array" if dtype is None else "array", "0.2.0")
    return column


def _append(columns: dict[str, h5py.Dataset], cells: Cells) -> None:
    start, stored = len(columns["names"]), len(columns["data"])
    values = {
        "data": cells.counts.data,
        "indices": cells.counts.indices,
        "indptr": cells.counts.indptr[1:].astype(np.int64) + stored,
        "names": _cell_names(start, start + len(cells.label)),
        "n_counts": _totals(cells.counts).astype(np.int64),
        "label": cells.label,
        "batch": cells.batch,
    }
    for name, column in columns.items():
        old = len(column)
        column.resize((old + len(values[name]),))
        column[old:] = values[name]


def _totals(counts: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


def _cell_names(start: int, stop: int) -> list[str]:
    return [f"cell_{i:07d}" for i in range(start, stop)]


def _numbered(stem: str, count: int, width: int = 1) -> list[str]:
    """Names numbered from 1, padded to one width so that sorting keeps their order."""
    width = max(width, len(str(count)))
    return [f"{stem}_{i + 1:0{width}d}" for i in range(count)]


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
    _at_least("n_cells", n_cells, 1)
    _at_least("seed", seed, 0)
    if len({*keys, "n_counts", "_index"}) < 4:
        raise InputError(f"label_key and batch_key are {keys}: give two names, neither n_counts nor _index")


def _at_least(name: str, value: float, least: int, *, whole: bool = True) -> None:
    kinds = (int, np.integer) if whole else (int, float, np.number)
    if isinstance(value, bool) or not isinstance(value, kinds) or not np.isfinite(value) or value < least:
        raise InputError(f"{name} is {value!r}: give a {'whole ' if whole else ''}number of at least {least}")
