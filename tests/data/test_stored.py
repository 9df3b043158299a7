"""CSR matrices as they lie in files: every layout reads right, and damage is an error that says where."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata.io import write_elem
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scdd import _csr
from scdd.data.atlas import Atlas
from scdd.data.expression import Faults
from scdd.data.formats.readers import ChunkReader, LibraryReader
from scdd.data.formats.stored import StoredCsr
from scdd.data.loader import CellLoader
from scdd.errors import DataFileError, InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore:batches are mixed badly"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding"),
]

HDF5 = {
    "contiguous": None,
    "chunked": {},
    "gzip": {"compression": "gzip"},
    "shuffle and gzip": {"compression": "gzip", "shuffle": True},
    "lzf": {"compression": "lzf"},
    "shuffle and lzf": {"compression": "lzf", "shuffle": True},
    "fletcher32": {"fletcher32": True},
    "gzip and fletcher32": {"compression": "gzip", "fletcher32": True},
}
# A build without a codec's library leaves its chunks to zarr; what is tested here is what it reads itself.
ZARR = [
    name
    for name, kind in {
        "v2 none": None,
        "v2 blosc": "blosc",
        "v2 zstd": "zstd",
        "v2 gzip": "gzip",
        "v2 lz4": "lz4_numcodecs",
        "v3 none": None,
        "v3 zstd": "zstd",
        "v3 gzip": "gzip",
        "v3 sharded": "zstd",
    }.items()
    if kind is None or _csr.codecs()[kind]
]


def built(*names: str) -> list[str]:
    """Those of the layouts that this build reads itself."""
    return [name for name in names if name in HDF5 or name in ZARR]


# What is stored together with a checksum: no damage to it may go unseen.
CHECKED = ["gzip", "shuffle and gzip", "fletcher32", "gzip and fletcher32", "v2 gzip", "v3 gzip"]

VALUES = ["f2", "f4", ">f4", "f8", ">f8", "i1", "i2", "i4", ">i4", "i8", "u1", "u2", ">u2", "u4", "u8", "?"]
INDICES = ["u2", "i4", ">i4", "i8", "u4", "u8"]
NOT_COUNTS = ("f2", "f4", "f8")


class Parts(NamedTuple):
    """A CSR matrix, unsorted and with duplicates, as a file may hold it."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    n_vars: int

    @property
    def n_rows(self):
        return len(self.indptr) - 1

    @property
    def csr(self):
        arrays = (self.data.astype(np.float32), self.indices.astype(np.int32), self.indptr.astype(np.int64))
        return sparse.csr_matrix(arrays, shape=(self.n_rows, self.n_vars))


def make_parts(seed=0, n_rows=200, n_vars=50, density=0.3, data="f4", indices="i4", indptr="i8", whole=True):
    rng = np.random.default_rng(seed)
    sizes = rng.poisson(density * n_vars, n_rows) * (rng.random(n_rows) > 0.2)
    pointers = np.concatenate([[0], np.cumsum(sizes)]).astype(indptr)
    n = int(pointers[-1])
    dtype = np.dtype(data)
    most = (
        2 if dtype.kind == "b" else 100 if dtype.itemsize == 1 else 2_000 if dtype.itemsize == 2 else 100_000
    )
    # Each row has its own range, so that a window keeps rows of every width.
    largest = np.repeat(rng.choice([2, 100, min(most, 300), most], n_rows), sizes)
    values = (rng.random(n) * np.minimum(largest, most)).astype(np.int64)
    values = values.astype(dtype)
    if not whole and dtype.kind == "f":
        values = (values + rng.integers(0, 2, n) * (rng.random(n) < 0.01) / 2).astype(dtype)
    genes = rng.integers(0, max(n_vars, 1), n).astype(indices)
    return Parts(values, genes, pointers, n_vars)


def write_parts(path, parts, codec, chunk=64, other_chunk=None):
    """Under ``X``, with anndata's attributes; data and indices may lie in chunks of different length."""
    shape = [parts.n_rows, parts.n_vars]
    attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape}
    lengths = {"data": chunk, "indices": other_chunk or chunk, "indptr": max(parts.n_rows + 1, 1)}
    arrays = {name: getattr(parts, name) for name in lengths}
    if codec in HDF5:
        with h5py.File(path, "a") as file:
            group = file.create_group("X")
            group.attrs.update(attributes)
            for name, values in arrays.items():
                options = HDF5[codec]
                # Only what may grow has chunks longer than itself.
                limit = (
                    {} if options is None else {"chunks": (lengths[name],), "maxshape": (None,), **options}
                )
                group.create_dataset(name, data=values, **limit)
        return path
    version, kind = codec.split()
    group = zarr.open_group(path, mode="a", zarr_format=int(version[1])).create_group("X")
    group.attrs.update(attributes)
    for name, values in arrays.items():
        options = {"chunks": (lengths[name],), "compressors": zarr_compressor(version, kind)}
        if kind == "sharded":
            options["shards"] = (3 * lengths[name],)
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, fill_value=0, **options)
        array[...] = values
    return path


def zarr_compressor(version, kind):
    import numcodecs

    if kind == "none":
        return None
    if version == "v2":
        made = {
            "blosc": numcodecs.Blosc,
            "zstd": numcodecs.Zstd,
            "gzip": numcodecs.GZip,
            "lz4": numcodecs.LZ4,
        }
        return made[kind]()
    return zarr.codecs.GzipCodec() if kind == "gzip" else zarr.codecs.ZstdCodec()


def open_parts(path, parts, codec):
    root = h5py.File(path, "r") if codec in HDF5 else zarr.open_group(path, mode="r")
    return StoredCsr(root["X"], (parts.n_rows, parts.n_vars), f"{Path(path).name}: X")


def expected_faults(parts, rows):
    csr = parts.csr
    faults = []
    for wrong in (np.isnan, np.isinf, lambda v: v < 0, lambda v: np.isfinite(v) & (v != np.rint(v))):
        found = [row for row in rows if wrong(csr.data[csr.indptr[row] : csr.indptr[row + 1]]).any()]
        faults.append(int(min(found)) if found else -1)
    return Faults(*faults)


def check_rows(stored, parts, rows, threads):
    """All ways in which rows can be read, against scipy."""
    csr = parts.csr
    matrix, faults = stored.rows(rows, threads=threads)
    pieces = [slice(csr.indptr[row], csr.indptr[row + 1]) for row in rows]
    for name in ("data", "indices"):
        wanted = np.concatenate([getattr(csr, name)[piece] for piece in pieces] + [getattr(csr, name)[:0]])
        np.testing.assert_array_equal(getattr(matrix, name), wanted)  # as the file has them, order included
    np.testing.assert_array_equal(np.diff(matrix.indptr), np.diff(csr.indptr)[rows])
    assert matrix.shape == (len(rows), parts.n_vars)
    assert faults == expected_faults(parts, rows)

    rng = np.random.default_rng(len(rows))
    kept = rng.permutation(parts.n_vars)[: int(rng.integers(0, parts.n_vars + 1))]
    column = np.full(parts.n_vars, -1, dtype=np.int32)
    column[kept] = np.arange(len(kept))
    n_slots = len(rows) + 3
    slots = rng.permutation(n_slots)[: len(rows)].astype(np.int64)
    dense = csr[rows].toarray()
    for genes, n_genes in ((None, parts.n_vars), (column, len(kept))):
        window = _csr.Window(n_slots, n_genes, _csr.WindowMemory())
        stored.fill(window, rows, slots, column_of_gene=genes, threads=threads)
        wanted = np.zeros((n_slots, n_genes), np.float32)
        wanted[slots] = dense if genes is None else dense[:, kept]
        asked = rng.integers(0, n_slots, 2 * n_slots)
        out = np.full((len(asked), n_genes), np.nan, dtype=np.float32)
        same = np.arange(n_genes, dtype=np.int32)
        totals = window.gather_dense(asked, same, out, threads=threads)
        np.testing.assert_allclose(out, wanted[asked], rtol=1e-6)
        np.testing.assert_allclose(totals, wanted.astype(np.float64).sum(1)[asked], rtol=1e-6)
        data, indices, indptr, sums = window.gather_csr(asked, None, threads=threads)
        made = sparse.csr_matrix((data, indices, indptr), shape=out.shape)
        assert made.has_canonical_format
        np.testing.assert_array_equal(made.toarray(), out)
        np.testing.assert_array_equal(sums, totals)


def check_windows(stored, parts, rng, edge_bytes, threads):
    """Rows in windows that share their memory are what they are alone, whatever was kept in between."""
    csr, same = parts.csr, np.arange(parts.n_vars, dtype=np.int32)
    memory = _csr.WindowMemory(1 << 12, edge_bytes)
    share = rng.integers(0, int(rng.integers(1, 5)), parts.n_rows)
    for number in [*range(share.max() + 1), 0]:
        rows = np.flatnonzero(share == number)
        window = _csr.Window(len(rows), parts.n_vars, memory)
        stored.fill(window, rows, np.arange(len(rows)), threads=threads)
        out = np.full((len(rows), parts.n_vars), np.nan, dtype=np.float32)
        window.gather_dense(np.arange(len(rows)), same, out)
        np.testing.assert_allclose(out, csr[rows].toarray(), rtol=1e-6)
        assert memory.edge_bytes <= edge_bytes


@pytest.mark.parametrize("codec", built("gzip", "shuffle and gzip", "lzf", "v2 zstd", "v3 sharded"))
@pytest.mark.parametrize(("data", "indices"), [("f4", "i4"), ("f8", "i8"), (">f4", "u2")])
def test_what_one_window_decodes_of_a_row_in_two_chunks_the_next_one_finds(tmp_path, codec, data, indices):
    parts = Parts(
        np.arange(1, 401).astype(data),
        np.tile(np.arange(10), 40).astype(indices),
        np.arange(0, 401, 10),  # 40 rows of 10 entries
        10,
    )
    stored = open_parts(
        write_parts(tmp_path / "a", parts, codec, 64), parts, codec
    )  # row 6 is in chunks 0 and 1
    same = np.arange(10, dtype=np.int32)

    def read(rows, memory):
        window = _csr.Window(len(rows), 10, memory)
        stored.fill(window, rows, np.arange(len(rows)))
        out = np.empty((len(rows), 10), dtype=np.float32)
        window.gather_dense(np.arange(len(rows)), same, out)
        np.testing.assert_array_equal(out, parts.csr[rows].toarray())
        return memory.edge_bytes

    # The first part first: what the second read leaves is what it would have left alone.
    memory = _csr.WindowMemory(1 << 12, 1 << 20)
    assert read(np.arange(6), memory) > 0
    left = read(np.arange(6, 12), memory)
    assert left == read(np.arange(6, 12), _csr.WindowMemory(1 << 12, 1 << 20))
    assert read(np.array([6]), memory) == left  # it is decoded now, and nothing kept
    # The second part first; the end of chunk 1 stays.
    memory = _csr.WindowMemory(1 << 12, 1 << 20)
    kept = read(np.arange(7, 12), memory)
    left = read(np.arange(7), memory)
    assert 0 < left < kept
    assert read(np.array([6]), memory) == left
    # Nothing is kept where there is no room, or too little.
    assert read(np.arange(6), _csr.WindowMemory(1 << 12)) == 0
    assert read(np.arange(6), _csr.WindowMemory(1 << 12, 20)) == 0


parts_strategy = st.builds(
    make_parts,
    seed=st.integers(0, 2**31),
    n_rows=st.integers(1, 90),
    n_vars=st.sampled_from([1, 7, 60, 300]),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.4]),
    data=st.sampled_from(VALUES),
    indices=st.sampled_from(INDICES),
    indptr=st.sampled_from(["i4", "i8", ">i8", "u4"]),
    whole=st.booleans(),
)


def check_layout(parts, codec, chunk, other_chunk, seed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("a.h5ad" if codec in HDF5 else "a.zarr")
        stored = open_parts(write_parts(path, parts, codec, chunk, other_chunk), parts, codec)
        assert stored.why_indirect is None
        assert stored.nbytes == 8 * len(parts.data)
        rng = np.random.default_rng(seed)
        some = np.sort(rng.choice(parts.n_rows, int(rng.integers(0, parts.n_rows + 1)), replace=False))
        for rows, threads in ((np.arange(parts.n_rows), 1), (some, 1), (some, 4)):
            check_rows(stored, parts, rows.astype(np.int64), threads)
        check_windows(stored, parts, rng, int(rng.choice([1, 500, 1 << 20])), int(rng.integers(1, 4)))
        start, stop = sorted(rng.integers(0, parts.n_rows + 1, 2))
        np.testing.assert_array_equal(stored.read(start, stop).toarray(), parts.csr[start:stop].toarray())


@settings(max_examples=100, deadline=None)
@given(
    parts_strategy,
    st.sampled_from(list(HDF5)),
    st.sampled_from([1, 3, 50, 997, 5_000]),
    st.sampled_from([2, 41, 1_200]),
    st.integers(0, 1_000),
)
def test_hdf5_is_read_as_it_lies(parts, codec, chunk, other_chunk, seed):
    check_layout(parts, codec, chunk, other_chunk, seed)


@settings(max_examples=40, deadline=None)
@given(
    parts_strategy,
    st.sampled_from(ZARR),
    st.sampled_from([50, 997, 5_000]),
    st.sampled_from([41, 1_200]),
    st.integers(0, 1_000),
)
def test_zarr_is_read_as_it_lies(parts, codec, chunk, other_chunk, seed):
    check_layout(parts, codec, chunk, other_chunk, seed)


@pytest.mark.parametrize("codec", [*HDF5, *ZARR])
def test_every_codec_reads_a_matrix_of_many_chunks(tmp_path, codec):
    parts = make_parts(3, n_rows=3_000, n_vars=400, density=0.1)
    path = write_parts(tmp_path / "a", parts, codec, 2_000, 3_001)
    stored = open_parts(path, parts, codec)
    rng = np.random.default_rng(0)
    for rows in (np.arange(3_000), np.sort(rng.choice(3_000, 300, replace=False)), np.array([2_999])):
        for threads in (1, 4):
            check_rows(stored, parts, rows, threads)


@pytest.mark.parametrize("codec", built("contiguous", "gzip", "v2 zstd", "v3 sharded"))
def test_matrices_without_entries(tmp_path, codec):
    parts = Parts(np.zeros(0, "f4"), np.zeros(0, "i4"), np.zeros(12, "i8"), 9)
    if codec.startswith("v"):
        path = write_parts(tmp_path / "a", parts._replace(), codec, 10)
    else:
        path = write_parts(tmp_path / "a", parts, codec)
    stored = open_parts(path, parts, codec)
    check_rows(stored, parts, np.arange(11), 2)
    check_rows(stored, parts, np.zeros(0, np.int64), 2)


@pytest.mark.parametrize("codec", ["contiguous", "gzip"])
def test_offsets_count_from_the_end_of_a_user_block(tmp_path, codec):
    parts = make_parts(1)
    with h5py.File(tmp_path / "a", "w", userblock_size=1_024):
        pass
    stored = open_parts(write_parts(tmp_path / "a", parts, codec), parts, codec)
    check_rows(stored, parts, np.arange(200), 2)


def test_arrays_may_lie_in_other_files(tmp_path):
    parts = make_parts(1)
    write_parts(tmp_path / "other", parts, "gzip")
    with h5py.File(write_parts(tmp_path / "a", parts._replace(data=parts.data + 1), "gzip"), "r+") as file:
        del file["X/data"]
        file["X/data"] = h5py.ExternalLink(str(tmp_path / "other"), "/X/data")
        file["X/more"] = file["X/indices"]
    check_rows(open_parts(tmp_path / "a", parts, "gzip"), parts, np.arange(200), 2)


def test_chunks_that_were_never_written_are_zero(tmp_path):
    parts = make_parts(1)
    with h5py.File(write_parts(tmp_path / "a", parts, "gzip"), "r+") as file:
        n = len(parts.data)
        del file["X/data"]
        array = file["X"].create_dataset("data", shape=(n,), dtype="f4", chunks=(100,), compression="gzip")
        array[100:200] = parts.data[100:200]
    data = np.zeros(n, "f4")
    data[100:200] = parts.data[100:200]
    expected = parts._replace(data=data)
    check_rows(open_parts(tmp_path / "a", parts, "gzip"), expected, np.arange(200), 2)


def test_chunks_that_lzf_could_not_compress_lie_raw(tmp_path):
    parts = make_parts(1, n_rows=50)
    noise = np.frombuffer(np.random.default_rng(0).bytes(4 * len(parts.data)), dtype=np.uint32)
    parts = parts._replace(data=noise)
    stored = open_parts(write_parts(tmp_path / "a", parts, "lzf", 100), parts, "lzf")
    assert (stored.layouts[0].masks != 0).any()
    check_rows(stored, parts, np.arange(50), 2)


@pytest.mark.parametrize("n_vars", [65_536, 65_537, 200_000])
def test_gene_numbers_beyond_two_bytes(tmp_path, n_vars):
    genes = np.array([0, n_vars - 1, 65_535, 5, n_vars - 1], "i8")
    parts = Parts(np.arange(1, 6, dtype="f4"), genes, np.array([0, 2, 2, 5]), n_vars)
    stored = open_parts(write_parts(tmp_path / "a", parts, "gzip"), parts, "gzip")
    check_rows(stored, parts, np.arange(3), 1)


def test_values_that_no_narrow_form_holds_exactly(tmp_path):
    rows = [[255], [256], [65_535], [65_536], [-0.0], [2**24], [0.5], [1e38], [254, 255, 256], [0], [1e-40]]
    data = np.concatenate(rows).astype("f4")
    indptr = np.cumsum([0, *map(len, rows)])
    parts = Parts(data, (np.arange(len(data)) % 7).astype("i4"), indptr, 7)
    stored = open_parts(write_parts(tmp_path / "a", parts, "chunked"), parts, "chunked")
    check_rows(stored, parts, np.arange(len(rows)), 1)


@pytest.mark.parametrize("codec", built("gzip", "v2 zstd", "v3 sharded"))
def test_unread_genes_and_wrong_arguments(tmp_path, codec):
    parts = make_parts(2)
    stored = open_parts(write_parts(tmp_path / "a", parts, codec), parts, codec)
    window = _csr.Window(10, parts.n_vars, _csr.WindowMemory())
    rows = np.arange(3)
    for error, message, arguments in [
        (IndexError, "row 200 lies outside", (np.array([1, 200]), np.arange(2))),
        (IndexError, "row -1 lies outside", (np.array([-1, 0]), np.arange(2))),
        (ValueError, "ascend", (np.array([3, 3]), np.arange(2))),
        (ValueError, "ascend", (np.array([3, 2]), np.arange(2))),
        (IndexError, "slot 10 lies outside", (rows, np.array([0, 1, 10]))),
        (ValueError, "slot 1 is given twice", (rows, np.array([0, 1, 1]))),
        (ValueError, "slots has 2 values", (rows, np.arange(2))),
    ]:
        with pytest.raises(error, match=message):
            stored.fill(window, *arguments)
    with pytest.raises(ValueError, match="column_of_gene"):
        stored.fill(_csr.Window(10, 3, _csr.WindowMemory()), rows, rows)
    with pytest.raises(IndexError, match="column_of_gene"):
        stored.fill(window, rows, rows, column_of_gene=np.full(parts.n_vars, parts.n_vars, np.int32))


def test_a_wish_to_stop_is_heard(tmp_path):
    parts = make_parts(2)
    stored = open_parts(write_parts(tmp_path / "a", parts, "gzip"), parts, "gzip")
    cancel = _csr.Cancel()
    cancel.request()
    window = _csr.Window(200, parts.n_vars, _csr.WindowMemory())
    with pytest.raises(_csr.Cancelled):
        stored.fill(window, np.arange(200), np.arange(200), threads=2, cancel=cancel)


def test_many_threads_may_read_at_once(tmp_path):
    parts = make_parts(2, n_rows=2_000)
    stored = open_parts(write_parts(tmp_path / "a", parts, "gzip"), parts, "gzip")
    expected, wrong = parts.csr, []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(10):
            rows = np.sort(rng.choice(2_000, 100, replace=False))
            wrong.append((stored.rows(rows, threads=2)[0] != expected[rows]).nnz)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [0] * 50


# What only h5py or zarr can read


@pytest.fixture
def without_deflate(monkeypatch):
    known = _csr.codecs()
    monkeypatch.setattr(
        "scdd.data.formats.stored._csr.codecs", lambda: known | {"deflate": None, "zstd": None, "gzip": None}
    )


@pytest.mark.parametrize("codec", built("gzip", "shuffle and gzip", "v2 zstd", "v3 sharded"))
def test_without_a_decoder_the_library_reads_the_same(tmp_path, without_deflate, codec):
    parts = make_parts(4, whole=False, data="f8")
    stored = open_parts(write_parts(tmp_path / "a", parts, codec), parts, codec)
    assert isinstance(stored._reader, LibraryReader)
    assert stored.why_indirect
    assert stored.chunk_rows is None
    rng = np.random.default_rng(0)
    for rows in (np.arange(200), np.sort(rng.choice(200, 40, replace=False)), np.zeros(0, np.int64)):
        check_rows(stored, parts, rows, 2)


def test_notes_say_why_a_file_is_read_slowly(tmp_path, without_deflate):
    path, adata = write_atlas(tmp_path / "a.h5ad", "gzip")
    atlas = Atlas(path)
    assert any("a.h5ad: X is read slowly" in note and "zlib" in note for note in atlas.notes())
    for batch in CellLoader(atlas, batch_size=32, window=64, normalise=False):
        np.testing.assert_array_equal(batch.x, adata.X[batch.row_ids].toarray())


def test_damage_is_found_without_a_decoder_too(tmp_path, without_deflate):
    path, _ = write_atlas(tmp_path / "a.h5ad", "gzip")
    with h5py.File(path, "r+") as file:
        file["X/indices"][700] = -3
    row = row_of(path, 700)
    with pytest.raises(
        DataFileError, match=rf"a\.h5ad: X is corrupt: indices\[700\] \(row {row}\) lies outside 0\.\.49"
    ):
        Atlas(path).read(np.arange(200))


# Damage


def write_atlas(path, codec, seed=0, n_rows=200, **options):
    """A complete file over `make_parts`; some 15 chunks of each array."""
    parts = make_parts(seed, n_rows=n_rows, **options)
    parts.data[:] = np.maximum(parts.data, 1)
    obs = pd.DataFrame(
        {"label": pd.Categorical(["a", "b"] * (n_rows // 2))}, index=[f"c{i}" for i in range(n_rows)]
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(parts.n_vars)])
    root = (
        h5py.File(path, "w") if codec in HDF5 else zarr.open_group(path, mode="w", zarr_format=int(codec[1]))
    )
    write_elem(root, "obs", obs)
    write_elem(root, "var", var)
    if codec in HDF5:
        root.close()
    write_parts(path, parts, codec, 200, 230)
    return path, ad.AnnData(parts.csr, obs=obs, var=var)


def row_of(path, place):
    with h5py.File(path, "r") as file:
        return int(np.searchsorted(file["X/indptr"][...], place, side="right")) - 1


def read_all(path, **options):
    """The cells as the atlas and as the loader give them."""
    atlas = Atlas(path, **options)
    found = [atlas.read(np.arange(atlas.n_obs)).toarray()]
    delivered = np.full_like(found[0], np.nan)
    for batch in CellLoader(atlas, batch_size=16, window=64, normalise=False):
        delivered[batch.row_ids] = batch.x
    return [*found, delivered]


def check_outcome(path, expected, *, detected=True):
    """Right cells or an error that names the file; without a checksum, other values may pass unseen."""
    try:
        found = read_all(path)
    except (DataFileError, InputError) as error:
        said = error
    else:
        said = None
    if said is not None:
        assert path.name in str(said), f"{said} does not name {path.name}"
        return type(said).__name__
    for cells in found:
        assert cells.shape == expected.shape
        if detected:
            np.testing.assert_array_equal(cells, expected)
        else:
            np.testing.assert_array_equal(cells, found[0])
    return "read"


@pytest.mark.parametrize("codec", ["contiguous", "chunked", "gzip", "lzf", "gzip and fletcher32"])
def test_truncated_hdf5_files(tmp_path, codec):
    path, adata = write_atlas(tmp_path / "a.h5ad", codec)
    whole = path.read_bytes()
    rng = random.Random(codec)
    for length in [0, 1, 511, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(12))]:
        path.write_bytes(whole[:length])
        assert check_outcome(path, adata.X.toarray()) == "DataFileError"


@pytest.mark.parametrize("codec", ZARR)
def test_truncated_zarr_chunks(tmp_path, codec):
    path, adata = write_atlas(tmp_path / "a.zarr", codec)
    files = [file for name in ("data", "indices") for file in (path / "X" / name).rglob("*")]
    files = sorted(
        file for file in files if file.is_file() and file.name[0] not in ".z" and file.stat().st_size > 100
    )
    rng = random.Random(codec)
    for _ in range(8):
        file = rng.choice(files)
        whole = file.read_bytes()
        file.write_bytes(whole[: rng.randrange(len(whole))])
        assert check_outcome(path, adata.X.toarray()) == "DataFileError"
        file.write_bytes(whole)
    assert check_outcome(path, adata.X.toarray()) == "read"


def chunk_places(path, codec):
    """File, first byte and length of every chunk of data and indices."""
    places = []
    if codec in HDF5:
        with h5py.File(path, "r") as file:
            for name in ("data", "indices"):
                array = file["X"][name].id
                for number in range(array.get_num_chunks()):
                    info = array.get_chunk_info(number)
                    places.append((path, info.byte_offset, info.size))
        return places
    for name in ("data", "indices"):
        for file in sorted((path / "X" / name).rglob("*")):
            if file.is_file() and file.name[0] not in ".z":
                places.append((file, 0, file.stat().st_size))
    return places


@pytest.mark.parametrize("codec", [name for name in [*HDF5, *ZARR] if name != "contiguous"])
def test_flipped_bits_in_chunks(tmp_path, codec):
    path, adata = write_atlas(tmp_path / ("a.h5ad" if codec in HDF5 else "a.zarr"), codec)
    places = chunk_places(path, codec)
    rng = random.Random(codec)
    outcomes = []
    for _ in range(25):
        file, start, size = rng.choice(places)
        place = start + rng.randrange(size)
        with file.open("r+b") as handle:
            handle.seek(place)
            byte = handle.read(1)[0]
            handle.seek(place)
            handle.write(bytes([byte ^ (1 << rng.randrange(8))]))
        outcomes.append(check_outcome(path, adata.X.toarray(), detected=codec in CHECKED))
        with file.open("r+b") as handle:
            handle.seek(place)
            handle.write(bytes([byte]))
    if codec in CHECKED:
        assert outcomes.count("read") <= 2  # a gzip header has bits that mean nothing
    assert check_outcome(path, adata.X.toarray()) == "read"


@pytest.mark.parametrize("length", ["more", "fewer", "far fewer", "nothing", "no zlib"])
@pytest.mark.parametrize("array", ["data", "indices"])
def test_chunks_of_the_wrong_length(tmp_path, array, length):
    path, _ = write_atlas(tmp_path / "a.h5ad", "gzip")
    with h5py.File(path, "r+") as file:
        dataset = file["X"][array]
        step = dataset.chunks[0]
        values = dataset[5 * step : 6 * step]
        raw = values.tobytes()
        content = {
            "more": raw + raw[:40],
            "fewer": raw[:-4],
            "far fewer": raw[:40],
            "nothing": b"",
            "no zlib": b"",
        }
        encoded = b"\x00" * 30 if length == "no zlib" else zlib.compress(content[length])
        dataset.id.write_direct_chunk((5 * step,), encoded)
    with pytest.raises(DataFileError, match=r"a\.h5ad.*chunk 5.*again"):
        Atlas(path).read(np.arange(200))
    with pytest.raises(DataFileError, match=r"a\.h5ad.*chunk 5.*again"):
        list(CellLoader(Atlas(path), batch_size=16, window=32))


def test_zlib_bombs_are_not_inflated(tmp_path):
    path, _ = write_atlas(tmp_path / "a.h5ad", "gzip")
    with h5py.File(path, "r+") as file:
        file["X/data"].id.write_direct_chunk((1_000,), zlib.compress(bytes(1 << 28)))
    with pytest.raises(DataFileError, match=r"a\.h5ad"):
        Atlas(path).read(np.arange(200))


@pytest.mark.parametrize("codec", ["contiguous", "gzip"])
@pytest.mark.parametrize("gene", [50, 2**31 - 1, -1, -(2**31)])
def test_gene_numbers_outside(tmp_path, codec, gene):
    path, _ = write_atlas(tmp_path / "a.h5ad", codec)
    with h5py.File(path, "r+") as file:
        file["X/indices"][700] = gene
    message = (
        rf"a\.h5ad: X is corrupt: indices\[700\] \(row {row_of(path, 700)}\) lies outside 0\.\.49.*again"
    )
    with pytest.raises(DataFileError, match=message):
        Atlas(path).read(np.arange(200))


def test_gene_numbers_outside_of_wider_types(tmp_path):
    for number, dtype, gene in [
        (0, "i8", 2**32),
        (1, "i8", -(2**40)),
        (2, "u8", 2**64 - 1),
        (3, "u4", 2**32 - 1),
    ]:
        path, _ = write_atlas(tmp_path / f"a{number}.h5ad", "gzip", indices=dtype)
        with h5py.File(path, "r+") as file:
            file["X/indices"][700] = np.array(gene, dtype)
        with pytest.raises(DataFileError, match=r"indices\[700\] .* lies outside"):
            Atlas(path).read(np.arange(200))


def test_of_several_faults_the_first_is_named_whatever_the_threads(tmp_path):
    path, _ = write_atlas(tmp_path / "a.h5ad", "gzip", n_rows=2_000)
    with h5py.File(path, "r+") as file:
        for place in (20_000, 9_000, 5_000, 23_000):
            file["X/indices"][place] = 60
    with h5py.File(path, "r") as file:
        stored = StoredCsr(file["X"], (2_000, 50), "a.h5ad: X")
        for threads in (1, 2, 5, 16):
            for _ in range(5):
                with pytest.raises(DataFileError, match=r"indices\[5000\]"):
                    stored.rows(np.arange(2_000), threads=threads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: np.r_[p[:50], p[49] - 1, p[51:]], "decreases"),
        (lambda p: np.r_[p[:-1], p[-1] + 1], "indptr ends at"),
        (lambda p: np.r_[p[:-1], 2**62], "indptr ends at"),
        (lambda p: np.r_[p[:-1], p[-1] - 1], "decreases|indptr ends at"),
        (lambda p: np.r_[1, p[1:]], "does not start at 0"),
        (lambda p: np.r_[-5, p[1:]], "does not start at 0"),
        (lambda p: p[:-1], "indptr has 200 entries for 200 rows"),
        (lambda p: np.r_[p, p[-1]], "indptr has 202 entries for 200 rows"),
        (lambda p: p[:0], "indptr has 0 entries"),
        (lambda p: (p % 1_000).astype("i4"), "decreases"),  # as an int32 that overflowed
    ],
)
@pytest.mark.parametrize("codec", built("gzip", "v2 zstd"))
def test_damaged_row_pointers(tmp_path, codec, change, message):
    path, _ = write_atlas(tmp_path / "a.h5ad", codec)
    root = h5py.File(path, "r+") if codec in HDF5 else zarr.open_group(path, mode="r+")
    pointers = change(root["X/indptr"][...])
    del root["X/indptr"]
    if codec in HDF5:
        root["X"].create_dataset("indptr", data=pointers)
        root.close()
    else:
        root["X"].create_array("indptr", data=pointers)
    with pytest.raises(DataFileError, match=rf"a\.h5ad: X is corrupt.*({message}).*again"):
        Atlas(path)


@pytest.mark.parametrize("missing", ["data", "indices", "indptr", "shape"])
def test_missing_parts(tmp_path, missing):
    path, _ = write_atlas(tmp_path / "a.h5ad", "gzip")
    with h5py.File(path, "r+") as file:
        if missing == "shape":
            del file["X"].attrs["shape"]
        else:
            del file["X"][missing]
    with pytest.raises(DataFileError, match=r"a\.h5ad"):
        Atlas(path)


@pytest.mark.parametrize("shape", [(200, 2**40), (200, -1), (2**40, 50), (-1, 50), (200, 49), (201, 50)])
def test_shapes_that_cannot_be(tmp_path, shape):
    path, _ = write_atlas(tmp_path / "a.h5ad", "gzip")
    with h5py.File(path, "r+") as file:
        file["X"].attrs["shape"] = np.array(shape)
    with pytest.raises(DataFileError, match=r"a\.h5ad"):
        Atlas(path).read(np.arange(10))


def test_a_row_that_would_need_the_memory_of_an_atlas(tmp_path):
    path, _ = write_atlas(tmp_path / "a.h5ad", "gzip")
    n = 70_000
    with h5py.File(path, "r+") as file:
        for name, values in (
            ("data", np.ones(n, "f4")),
            ("indices", np.zeros(n, "i4")),
            ("indptr", np.r_[np.zeros(100, "i8"), np.full(101, n)]),
        ):
            del file["X"][name]
            file["X"].create_dataset(name, data=values, chunks=(min(1_000, len(values)),), compression="gzip")
    with pytest.raises(DataFileError, match=r"a\.h5ad: X.*row 99 has 70000 entries for 50 genes"):
        Atlas(path).read(np.array([99]))


@pytest.mark.parametrize(
    ("value", "expression", "message"),
    [
        (np.nan, "counts", "holds NaN or infinity, not counts; repair or drop"),
        (np.inf, "counts", "holds NaN or infinity, not counts; repair or drop"),
        (-1.0, "counts", "negative values.*layer="),
        (0.5, "counts", "pass expression="),
        (np.nan, "fractional", "holds NaN or infinity, not fractional"),
        (-0.5, "fractional", "negative values"),
    ],
)
@pytest.mark.parametrize("codec", built("contiguous", "gzip", "v3 sharded"))
def test_values_that_are_no_counts_are_named_with_their_row(
    tmp_path, monkeypatch, value, expression, message, codec
):
    monkeypatch.setattr("scdd.data.expression._SAMPLED_ROWS", 8)
    path, _ = write_atlas(tmp_path / "a.h5ad", codec)
    root = h5py.File(path, "r+") if codec in HDF5 else zarr.open_group(path, mode="r+")
    pointers = root["X/indptr"][...]
    sampled = {int(start) for start in np.linspace(0, 199, 8)}
    row = next(r for r in range(60, 200) if r not in sampled and pointers[r + 1] > pointers[r])
    root["X/data"][int(pointers[row])] = value
    if expression == "fractional":
        root["X/data"][0] = 99.5  # so that the sample looks the part
    if codec in HDF5:
        root.close()
    pattern = rf"a\.h5ad: X, row {row},? .*{message}"
    atlas = Atlas(path, expression=expression)
    with pytest.raises(InputError, match=pattern):
        atlas.read(np.arange(200))
    with pytest.raises(InputError, match=pattern):
        list(CellLoader(atlas, batch_size=16, window=32))


@pytest.mark.parametrize("codec", built("gzip", "contiguous", "v2 zstd", "v3 sharded"))
@pytest.mark.parametrize("how", ["replaced", "truncated", "written to", "deleted"])
def test_files_that_change_between_two_reads(tmp_path, codec, how):
    path, adata = write_atlas(tmp_path / "a.h5ad", codec)
    atlas = Atlas(path)
    np.testing.assert_array_equal(atlas.read(np.arange(50)).toarray(), adata.X[:50].toarray())
    file = path if codec in HDF5 else chunk_places(path, codec)[2 if codec != "v3 sharded" else 0][0]
    stat = file.stat()
    if how == "deleted":
        file.unlink()
    elif how == "replaced":
        shutil.copy(file, tmp_path / "other")
        os.replace(tmp_path / "other", file)  # noqa: PTH105
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # even one of that size and time
    elif how == "truncated":
        os.truncate(file, stat.st_size // 2)
    else:
        with file.open("r+b") as handle:
            handle.seek(stat.st_size // 2)
            handle.write(b"\0")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    with pytest.raises(DataFileError, match=r"a\.h5ad.* changed or replaced while in use.*again"):
        atlas.read(np.arange(50))
    with pytest.raises(DataFileError, match=r"a\.h5ad"):
        list(CellLoader(atlas, batch_size=16, window=32))


def test_zarr_arrays_filled_with_another_number(tmp_path):
    path, adata = write_atlas(tmp_path / "a.zarr", "v2 zstd")
    root = zarr.open_group(path, mode="r+")
    for name in ("data", "indices"):
        values = root["X"][name][...]
        del root["X"][name]
        root["X"].create_array(name, shape=values.shape, dtype=values.dtype, chunks=(100,), fill_value=1)[
            ...
        ] = values
    # A chunk of nothing but ones is not stored at all.
    np.testing.assert_array_equal(Atlas(path).read(np.arange(200)).toarray(), adata.X.toarray())


def test_values_that_are_no_real_numbers(tmp_path):
    for number, (name, dtype) in enumerate(
        [("data", "c8"), ("indices", "f4"), ("indices", "f2"), ("data", "S3")]
    ):
        path, _ = write_atlas(tmp_path / f"a{number}.h5ad", "chunked")
        with h5py.File(path, "r+") as file:
            values = file["X"][name][...].astype(dtype)
            del file["X"][name]
            file["X"].create_dataset(name, data=values, chunks=(100,))
        if (name, dtype) == ("indices", "f4"):
            continue  # whole numbers after all
        with pytest.raises(DataFileError, match=rf"a{number}\.h5ad"):
            Atlas(path).read(np.arange(200))


CSC = """
import sys
from scdd import Atlas
from scdd.errors import DataFileError
try:
    Atlas(sys.argv[1]).read([1, 2])
except DataFileError as error:
    print(error)
"""


@pytest.mark.parametrize(("array", "value"), [("indices", -(2**30)), ("indptr", 2**30)])
def test_damaged_csc_files_do_not_end_the_process(tmp_path, array, value):
    """They did: what is turned to CSR as a whole was once handed over unchecked."""
    matrix = sparse.random(200, 50, 0.2, "csc", dtype="f4", random_state=0)
    matrix.data[:] = 1
    path = tmp_path / "a.h5ad"
    obs, var = (
        pd.DataFrame(index=[f"c{i}" for i in range(200)]),
        pd.DataFrame(index=[f"g{i}" for i in range(50)]),
    )
    ad.AnnData(matrix, obs=obs, var=var).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file["X"][array][5] = value
    command = [sys.executable, "-c", CSC, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-300:]
    assert "a.h5ad: X is corrupt" in done.stdout


def test_a_reader_opens_its_files_again_in_another_process(tmp_path):
    parts = make_parts(2)
    stored = open_parts(write_parts(tmp_path / "a", parts, "gzip"), parts, "gzip")
    assert isinstance(stored._reader, ChunkReader)
    check_rows(pickle.loads(pickle.dumps(stored)), parts, np.arange(200), 2)


def test_a_library_reader_opens_its_file_again_too(tmp_path, without_deflate):
    parts = make_parts(2)
    stored = open_parts(write_parts(tmp_path / "a", parts, "gzip"), parts, "gzip")
    assert isinstance(stored._reader, LibraryReader)
    check_rows(pickle.loads(pickle.dumps(stored)), parts, np.arange(200), 2)
    stored = open_parts(write_parts(tmp_path / "b", parts, "v2 zstd"), parts, "v2 zstd")
    with pytest.raises(DataFileError, match=r"b: X is read by zarr and cannot be opened in another process"):
        pickle.loads(pickle.dumps(stored))
