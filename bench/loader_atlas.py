"""A simulated atlas for timing loaders: the same cells in every format that a loader might be given.

`python bench/loader_atlas.py FOLDER` writes `FOLDER/gzip.h5ad`, `shuffle_gzip.h5ad`, `raw.h5ad` and `zstd.h5ad`
(400,000 cells x 20,000 genes, some 610 million stored counts); `--cells 20000` a small one. Chunks are compressed in
threads and written past HDF5's own filters, which is ten times as fast as writing through anndata; the files equal
anndata's own in layout, attributes, filters and bytes of each chunk (`--check` compares all of that on a small
atlas). annbatch's own format is written by annbatch: `python bench/loader/collection.py`.
"""

from __future__ import annotations

import argparse
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from numcodecs import Zstd
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

N_CELLS, N_GENES, N_TYPES, N_DONORS = 400_000, 20_000, 64, 20
RUN_LENGTH = 200  # cells of one type that follow each other, on average
TABLE = 1 << 18  # places of a cell type's lookup table: a random place holds gene g with probability p(g)
MOLECULES, MOLECULES_SIGMA = 3_050, 0.35
POPULARITY_SIGMA, TYPE_SIGMA = 2.2, 0.5  # of log gene popularity: over all types, and from type to type


class Rows(NamedTuple):
    """The atlas as flat files, from which each format is written without holding it in memory."""

    data: np.ndarray  # float32 [nnz]
    indices: np.ndarray  # int32 [nnz]
    indptr: np.ndarray  # int32 [n_cells + 1]
    cell_type: np.ndarray  # int8 [n_cells]


class Format(NamedTuple):
    """One way of storing: what anndata would be told, and how a chunk is encoded."""

    options: dict[str, Any]
    encode: Callable[[bytes], bytes]


def shuffled(chunk: bytes) -> bytes:
    """HDF5's byte shuffle of four-byte elements: all first bytes, then all second ones, ..."""
    return np.frombuffer(chunk, np.uint8).reshape(-1, 4).T.tobytes()


FORMATS = {
    "gzip": Format({"compression": "gzip"}, lambda chunk: zlib.compress(chunk, 4)),
    "shuffle_gzip": Format(
        {"compression": "gzip", "shuffle": True}, lambda chunk: zlib.compress(shuffled(chunk), 4)
    ),
    "raw": Format({}, lambda chunk: chunk),
    # HDF5 filter 32015; whoever reads it through HDF5 needs the package hdf5plugin, whoever writes it here does not.
    "zstd": Format(
        {"compression": 32015, "compression_opts": (3,), "allow_unknown_filter": True},
        lambda chunk: Zstd(level=3).encode(chunk),
    ),
}


def gene_tables(seed: int) -> np.ndarray:
    """uint16 [N_TYPES, TABLE]: which gene a random place stands for, in each cell type."""
    rng = np.random.default_rng([seed, 0])
    popularity = rng.lognormal(sigma=POPULARITY_SIGMA, size=N_GENES)
    tables = np.empty((N_TYPES, TABLE), np.uint16)
    for table in tables:
        weights = popularity * rng.lognormal(sigma=TYPE_SIGMA, size=N_GENES)
        table[:] = np.repeat(np.arange(N_GENES), rng.multinomial(TABLE, weights / weights.sum()))
    return tables


def runs(n_cells: int, seed: int) -> Iterator[tuple[int, int]]:
    """Yield (cell type, length) of consecutive runs until there are `n_cells`."""
    rng = np.random.default_rng([seed, 1])
    left = n_cells
    while left:
        length = min(left, 1 + int(rng.poisson(RUN_LENGTH - 1)))
        yield int(rng.integers(N_TYPES)), length
        left -= length


def run_of_cells(
    rng: np.random.Generator, table: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the molecules of `n` cells of one type: stored entries a cell, genes, counts."""
    size_factor = rng.lognormal(-0.5 * MOLECULES_SIGMA**2, MOLECULES_SIGMA, n)
    molecules = rng.poisson(MOLECULES * size_factor)
    genes = table[rng.integers(0, TABLE, molecules.sum(), dtype=np.uint32)]
    counts = np.bincount(np.repeat(np.arange(n) * N_GENES, molecules) + genes, minlength=n * N_GENES)
    stored = np.flatnonzero(counts)
    sizes = np.bincount(stored // N_GENES, minlength=n)
    return sizes, (stored % N_GENES).astype(np.int32), counts[stored].astype(np.float32)


def draw_rows(folder: Path, n_cells: int, seed: int) -> None:
    """Write the atlas to flat files in `folder`, run by run; each run depends on the seed and its number alone."""
    tables = gene_tables(seed)
    sizes, types = [], []
    with (folder / "data").open("wb") as data_file, (folder / "indices").open("wb") as indices_file:
        for number, (cell_type, length) in enumerate(runs(n_cells, seed)):
            rng = np.random.default_rng([seed, 2, number])
            size, genes, counts = run_of_cells(rng, tables[cell_type], length)
            counts.tofile(data_file)
            genes.tofile(indices_file)
            sizes.append(size)
            types.append(np.full(length, cell_type, np.int8))
    np.save(folder / "cell_type.npy", np.concatenate(types))
    # int32 as scipy keeps it while the number of entries allows
    np.save(folder / "indptr.npy", np.concatenate([[0], *sizes]).cumsum().astype(np.int32))


def rows_in(folder: Path, n_cells: int, seed: int) -> Rows:
    """Open the flat files, drawing them first where there are none."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "indptr.npy").exists():
        draw_rows(folder, n_cells, seed)
    return Rows(
        np.memmap(folder / "data", np.float32, "r"),
        np.memmap(folder / "indices", np.int32, "r"),
        np.load(folder / "indptr.npy"),
        np.load(folder / "cell_type.npy"),
    )


def annotation(rows: Rows) -> ad.AnnData:
    """Everything but the matrix: cell types in runs, donors in contiguous blocks."""
    n = len(rows.cell_type)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(rows.cell_type, [f"type_{k:02d}" for k in range(N_TYPES)]),
            "donor": pd.Categorical.from_codes(
                np.arange(n) * N_DONORS // n, [f"donor_{k:02d}" for k in range(N_DONORS)]
            ),
        },
        index=[f"cell_{k:06d}" for k in range(n)],
    )
    return ad.AnnData(obs=obs, var=pd.DataFrame(index=[f"gene_{k:05d}" for k in range(N_GENES)]))


def write_dataset(
    group: h5py.Group, name: str, values: np.ndarray, way: Format, pool: ThreadPoolExecutor
) -> None:
    """What `group.create_dataset(name, data=values, maxshape=(None,), ...)` writes, with chunks encoded in threads."""
    dataset = group.create_dataset(
        name, shape=values.shape, dtype=values.dtype, maxshape=(None,), **way.options
    )
    (length,) = dataset.chunks

    def encoded(start: int) -> tuple[int, bytes]:
        chunk = values[start : start + length]
        return start, way.encode(chunk.tobytes() + bytes((length - len(chunk)) * values.itemsize))

    starts = iter(range(0, len(values), length))
    while batch := list(islice(starts, 256)):  # bounds what is held: 256 chunks of about 150 kB
        for start, chunk in pool.map(encoded, batch):
            dataset.id.write_direct_chunk((start,), chunk)


def write_h5ad(path: Path, rows: Rows, way: Format, threads: int) -> None:
    """Write the atlas as `AnnData.write_h5ad` would with these options for `X`."""
    annotation(rows).write_h5ad(path, compression="gzip" if way.options else None)
    with h5py.File(path, "r+") as file, ThreadPoolExecutor(threads) as pool:
        group = file.create_group("X")
        group.attrs["encoding-type"], group.attrs["encoding-version"] = "csr_matrix", "0.1.0"
        group.attrs["shape"] = np.array([len(rows.cell_type), N_GENES])
        for name in ("data", "indices", "indptr"):
            write_dataset(group, name, getattr(rows, name), way, pool)


def described(path: Path, *, decoded: bool) -> dict[str, Any]:
    """Everything that a reader could notice about `X`: attributes, properties, each chunk as stored or its values."""
    with h5py.File(path, "r") as file:
        found: dict[str, Any] = {
            "attributes": {k: np.asarray(v).tolist() for k, v in file["X"].attrs.items()}
        }
        for name, dataset in file["X"].items():
            plist = dataset.id.get_create_plist()
            filters = [plist.get_filter(k)[:3] for k in range(plist.get_nfilters())]
            starts = range(0, dataset.shape[0], dataset.chunks[0])
            chunks = dataset[:].tolist() if decoded else [dataset.id.read_direct_chunk((k,)) for k in starts]
            found[name] = (dataset.dtype, dataset.shape, dataset.maxshape, dataset.chunks, filters, chunks)
            found[name] += (dict(dataset.attrs), plist.get_alloc_time(), plist.get_fill_time())
    return found


def check(folder: Path) -> None:
    """Compare with what anndata itself writes; zstd only where hdf5plugin can write it."""
    rows = rows_in(folder / "rows", 300, seed=1)
    matrix = sparse.csr_matrix((rows.data, rows.indices, rows.indptr), shape=(len(rows.cell_type), N_GENES))
    for name, way in FORMATS.items():
        if name == "zstd":
            import hdf5plugin  # noqa: F401
        write_h5ad(folder / "ours.h5ad", rows, way, 2)
        with h5py.File(folder / "anndata.h5ad", "w") as file:
            ad.io.write_elem(file, "X", matrix, dataset_kwargs=way.options)
        # two versions of libzstd write different, equally valid bytes
        ours, theirs = (
            described(folder / f"{who}.h5ad", decoded=name == "zstd") for who in ("ours", "anndata")
        )
        for key, value in theirs.items():
            if ours[key] != value:
                raise SystemExit(
                    f"{name}: X/{key} differs from anndata's: {ours[key]!s:.300} | {value!s:.300}"
                )
        print(f"{name}: as anndata writes it")


def main() -> None:
    """Write what is missing; a file that is there is complete, since it gets its name last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=N_CELLS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--check", action="store_true", help="compare with anndata's own files instead")
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.folder)
    rows = rows_in(arguments.folder / "rows", arguments.cells, arguments.seed)
    print(
        f"{len(rows.data) / len(rows.cell_type):.0f} stored a cell, {np.mean(rows.data[: 10**7] == 1):.1%} ones"
    )
    for name in arguments.formats:
        path = arguments.folder / f"{name}.h5ad"
        if not path.exists():
            write_h5ad(part := path.with_suffix(".part"), rows, FORMATS[name], arguments.threads)
            part.rename(path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB", flush=True)
    return None


if __name__ == "__main__":
    main()
