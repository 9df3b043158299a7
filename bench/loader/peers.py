"""The peers, each in the best setting that its documentation offers, on the source that suits it.

Each opener takes the path and the case and returns a `Stream`; a peer's package is imported by its opener alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from cases import N_CHOSEN, TARGET_SUM, Case, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scipy import sparse

BLOCK, WINDOW = (
    32,
    16_384,
)  # of scDataset and of the threads in Python; see the README of annbatch for its own


class Peer(NamedTuple):
    """A contender that is not ours.

    Attributes
    ----------
    open : opens the file
    environment : the interpreter that has it, as named to ``--peer-python``; None: any
    sources, outputs : what it reads and delivers here
    what : one line for the table
    """

    open: Callable[[Path, Case], Stream]
    environment: str | None
    sources: tuple[str, ...]
    what: str
    outputs: tuple[str, ...] = ("csr", "dense")


def chosen_genes(n_vars: int) -> np.ndarray:
    """The 2,000 genes of the dense batches, sorted."""
    return np.sort(np.random.default_rng(0).choice(n_vars, min(N_CHOSEN, n_vars), replace=False))


def delivered(batches: Callable[[], Iterator[sparse.csr_matrix]], output: str, n_vars: int) -> Callable:
    """The batches themselves, or what a user of scipy makes of each of them at its best."""
    genes = chosen_genes(n_vars)

    def dense(x: sparse.csr_matrix) -> np.ndarray:
        totals = np.asarray(x.sum(axis=1), dtype=np.float64).ravel()
        x = x[:, genes]
        scale = np.divide(TARGET_SUM, totals, out=np.zeros_like(totals), where=totals > 0).astype(np.float32)
        x.data = np.log1p(x.data * np.repeat(scale, np.diff(x.indptr)))  # of the stored values alone
        return x.toarray()

    return batches if output == "csr" else lambda: (dense(x) for x in batches())


def annbatch(chunk: int, preload: int) -> Callable[[Path, Case], Stream]:
    """`annbatch.Loader` over its own collection, with zarrs as its README asks; no obs, no torch (faster)."""

    def opened(path: Path, case: Case) -> Stream:
        import anndata as ad
        import zarr
        from annbatch import DatasetCollection, Loader

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        loader = Loader(
            batch_size=case.batch,
            chunk_size=chunk,
            preload_nchunks=preload,
            shuffle=True,
            rng=np.random.default_rng(0),
            to=None,
        )
        loader.use_collection(
            DatasetCollection(path), load_adata=lambda group: ad.AnnData(X=ad.io.sparse_dataset(group["X"]))
        )

        def batches() -> Iterator[Any]:
            return (batch["X"] for batch in loader)

        return Stream(delivered(batches, case.output, loader.n_var), chunk * preload, chunk)

    return opened


def _backed(path: Path) -> Any:
    """X of a backed AnnData."""
    import contextlib

    import anndata

    with contextlib.suppress(ImportError):  # HDF5's filters, for zstd.h5ad
        import hdf5plugin  # noqa: F401
    return anndata.read_h5ad(path, backed="r")


def scdataset(path: Path, case: Case) -> Stream:
    """Shuffles blocks; its fetch callback reads by a mask, which anndata serves by slices (faster than its default)."""
    from scdataset import BlockShuffling, scDataset

    adata = _backed(path)

    def fetch(collection: Any, rows: np.ndarray) -> sparse.csr_matrix:
        mask = np.zeros(collection.shape[0], bool)
        mask[rows] = True
        return collection.X[mask]

    data = scDataset(
        adata,
        BlockShuffling(block_size=BLOCK),
        batch_size=case.batch,
        fetch_factor=WINDOW // case.batch,
        fetch_callback=fetch,
        seed=0,
    )
    return Stream(delivered(lambda: iter(data), case.output, adata.n_vars), WINDOW, BLOCK)


def ann_loader(path: Path, case: Case) -> Stream:
    """`anndata.experimental.AnnLoader` on a backed file, without its conversion to dense."""
    from anndata.experimental import AnnLoader

    adata = _backed(path)
    loader = AnnLoader(adata, batch_size=case.batch, shuffle=True, use_default_converter=False)
    batches = delivered(lambda: (view.X for view in loader), case.output, adata.n_vars)
    return Stream(batches, case.batch, 1)


def backed_contiguous(path: Path, case: Case) -> Stream:
    """Slices of a backed AnnData in the order of the file: no shuffling at all."""
    adata = _backed(path)
    starts = range(0, adata.n_obs, case.batch)
    batches = delivered(lambda: (adata.X[k : k + case.batch] for k in starts), case.output, adata.n_vars)
    return Stream(batches, case.batch, case.batch)


def backed_random(path: Path, case: Case) -> Stream:
    """Random rows of a backed AnnData, sorted within the batch as h5py asks."""
    adata = _backed(path)

    def batches() -> Iterator[sparse.csr_matrix]:
        order = np.random.default_rng(0).permutation(adata.n_obs)
        for k in range(0, len(order), case.batch):
            yield adata.X[np.sort(order[k : k + case.batch])]

    return Stream(delivered(batches, case.output, adata.n_vars), case.batch, 1)


def scipy_rows(path: Path, case: Case) -> Stream:
    """Random rows of a matrix that is held in memory."""
    import anndata

    matrix = anndata.read_h5ad(path).X

    def batches() -> Iterator[sparse.csr_matrix]:
        order = np.random.default_rng(0).permutation(matrix.shape[0])
        for k in range(0, len(order), case.batch):
            yield matrix[order[k : k + case.batch]]

    return Stream(delivered(batches, case.output, matrix.shape[1]), case.batch, 1)


def scvi(path: Path, case: Case) -> Stream:
    """scvi-tools' own loader over a matrix in memory, to sparse tensors."""
    import anndata
    from scvi.data import AnnDataManager
    from scvi.data.fields import LayerField
    from scvi.dataloaders import AnnDataLoader

    manager = AnnDataManager([LayerField("X", None, is_count_data=True)])
    manager.register_fields(anndata.read_h5ad(path))
    loader = AnnDataLoader(manager, batch_size=case.batch, shuffle=True, load_sparse_tensor=True)
    return Stream(lambda: (batch["X"] for batch in loader), case.batch, 1)


def python_threads(path: Path, case: Case) -> Stream:
    """The chunks themselves, inflated by threads in Python (the way of anndata's PR 2471), in shuffled blocks."""
    from threads import open_threads

    matrix, batches = open_threads(path, block=BLOCK, window=WINDOW, batch=case.batch)
    return Stream(delivered(batches, case.output, matrix.n_vars), WINDOW, BLOCK)


_H5AD = ("gzip", "shuffle_gzip", "zstd", "raw")
PEERS = {
    "annbatch-32": Peer(annbatch(32, 256), "annbatch", ("annbatch",), "annbatch, chunk 32, window 8,192"),
    "annbatch-64": Peer(annbatch(64, 256), "annbatch", ("annbatch",), "annbatch, chunk 64, window 16,384"),
    "annbatch-512": Peer(annbatch(512, 32), "annbatch", ("annbatch",), "annbatch, chunk 512, window 16,384"),
    "scdataset": Peer(scdataset, "scdataset", _H5AD, "scDataset, mask fetch, blocks of 32, window 16,384"),
    "python-threads": Peer(python_threads, None, _H5AD, "threads and zlib in Python, blocks of 32"),
    "annloader": Peer(ann_loader, "scdataset", ("gzip", "raw"), "AnnLoader, random rows", ("csr",)),
    "backed-contiguous": Peer(backed_contiguous, "scdataset", _H5AD, "backed AnnData in order"),
    "backed-random": Peer(
        backed_random, "scdataset", ("gzip", "raw"), "backed AnnData, random rows", ("csr",)
    ),
    "scipy-memory": Peer(scipy_rows, None, ("memory",), "scipy rows in memory"),
    "scvi-memory": Peer(scvi, "scvi", ("memory",), "scvi-tools AnnDataLoader in memory", ("csr",)),
}
