"""The streaming writer: what AnnData reads back, at every boundary, and what is left when it fails."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.zstd import Zstd
from scipy import sparse

from scdd.data.writing.writer import write_csr
from scdd.errors import DataFileError, InputError


def names(stem, n):
    return pd.DataFrame(index=pd.Index([f"{stem}{i}" for i in range(n)], dtype=object))


def make(seed, n_rows, n_vars, density, dtype=np.float32):
    """Some rows empty, counts, sorted."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(2.0, (n_rows, n_vars)) * (rng.random((n_rows, n_vars)) < density)
    counts[rng.random(n_rows) < 0.2] = 0
    return sparse.csr_matrix(counts.astype(dtype))


def cut(x, sizes):
    """Blocks of the given sizes, over and over."""
    start = 0
    while start < x.shape[0]:
        for size in sizes:
            yield x[start : start + size]
            start += size


def read(path):
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def assert_stored(path, x):
    """The very arrays, not only an equal matrix."""
    root = h5py.File(path) if path.suffix == ".h5ad" else zarr.open_group(str(path), mode="r")
    group = root["X"]
    assert group["indptr"].dtype == np.int64
    assert group["indices"].dtype == np.int32
    assert group["data"].dtype == x.data.dtype
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(group[name][...], getattr(x, name))
    attributes = {key: group.attrs[key] for key in ("encoding-type", "encoding-version")}
    assert attributes == {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
    assert list(group.attrs["shape"]) == list(x.shape)
    if path.suffix == ".h5ad":
        root.close()


KINDS = [
    (".h5ad", "gzip"),
    (".h5ad", "lzf"),
    (".h5ad", None),
    (".zarr", "zstd"),
    (".zarr", "lz4"),
    (".zarr", "gzip"),
    (".zarr", None),
]


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**31),
    n_rows=st.integers(0, 40),
    n_vars=st.integers(1, 20),
    density=st.sampled_from([0.0, 0.1, 0.9]),
    sizes=st.lists(st.integers(0, 17), min_size=1, max_size=4).filter(any),
    chunk=st.sampled_from([1, 3, 16, 1000]),
    shard=st.sampled_from([1, 16, 50, 10_000]),
    shuffle=st.booleans(),
    threads=st.integers(1, 3),
    dtype=st.sampled_from(["f4", "f8", "i4", "u1", "u2", "i8"]),
)
def test_what_is_read_is_what_was_written(
    kind, seed, n_rows, n_vars, density, sizes, chunk, shard, shuffle, threads, dtype
):
    suffix, compression = kind
    if suffix == ".zarr" and n_rows * n_vars * density > 200 and chunk == 1:
        chunk = 3  # a file for every value takes long
    x = make(seed, n_rows, n_vars, density, dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = write_csr(
            Path(folder) / f"atlas{suffix}",
            cut(x, sizes),
            obs=names("cell", n_rows),
            var=names("gene", n_vars),
            compression=compression,
            chunk_elements=chunk,
            shard_elements=shard,
            shuffle=shuffle,
            threads=threads,
            dtype=None if n_rows else dtype,
        )
        assert [p.name for p in Path(folder).iterdir()] == [path.name]
        assert_stored(path, x)
        again = read(path)
        assert again.shape == x.shape
        np.testing.assert_array_equal(again.X.toarray(), x.toarray())
        assert list(again.obs_names) == list(names("cell", n_rows).index)
        assert list(again.var_names) == list(names("gene", n_vars).index)


@pytest.mark.parametrize("nnz", [63, 64, 65, 127, 128, 129, 64 * 7])
@pytest.mark.parametrize("kind", KINDS[:4])
def test_chunk_boundaries(tmp_path, nnz, kind):
    x = sparse.csr_matrix((np.arange(1, nnz + 1, dtype=np.float32), (np.arange(nnz), np.arange(nnz) % 5)))
    path = tmp_path / f"atlas{kind[0]}"
    options = {"compression": kind[1], "chunk_elements": 64, "shard_elements": 128}
    write_csr(path, [x], obs=names("c", nnz), var=names("g", 5), **options)
    assert_stored(path, x)
    if kind == (".h5ad", "gzip"):
        with h5py.File(path) as file:
            assert file["X/data"].chunks == (min(nnz, 64),)
            assert file["X/data"].id.get_num_chunks() == -(-nnz // 64)
            assert file["X/data"].compression == "gzip"


def test_annotation_and_backed_mode(tmp_path, adata):
    adata.uns["note"] = {"seed": 3, "names": np.array(["a", "b"])}
    path = tmp_path / "atlas.h5ad"
    write_csr(path, cut(adata.X, [7, 100]), obs=adata.obs, var=adata.var, uns=adata.uns, chunk_elements=100)
    again = ad.read_h5ad(path)
    pd.testing.assert_frame_equal(again.obs, adata.obs)
    assert again.uns["note"]["seed"] == 3
    assert list(again.uns["note"]["names"]) == ["a", "b"]
    backed = ad.read_h5ad(path, backed="r")
    for rows in (slice(31, 99), [5, 1, 200]):
        np.testing.assert_array_equal(backed[rows].to_memory().X.toarray(), adata.X[rows].toarray())
    backed.file.close()


def test_scanpy_and_atlas_read_it(tmp_path, adata):
    import scdd

    sc = pytest.importorskip("scanpy")
    for suffix in (".h5ad", ".zarr"):
        path = write_csr(tmp_path / f"a{suffix}", [adata.X], obs=adata.obs, var=adata.var)
        atlas = scdd.Atlas(path)
        assert (atlas.read(np.arange(240)) != adata.X).nnz == 0
    again = sc.read_h5ad(tmp_path / "a.h5ad")
    sc.pp.normalize_total(again)
    assert again.X.sum() > 0


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_obs_that_comes_with_the_blocks(tmp_path, suffix, monkeypatch):
    from scdd.data.writing import frames as writer_frames

    monkeypatch.setattr(writer_frames, "_ROWS", {".h5ad": 10, ".zarr": 10})
    n = 101
    x = make(1, n, 6, 0.5)
    obs = names("cell", n)
    obs["type"] = pd.Categorical.from_codes(np.arange(n) % 2, ["a", "b", "never"])
    obs["size"] = np.arange(n, dtype=np.int16)
    obs["share"] = np.linspace(0, 1, n)
    obs["ok"] = np.arange(n) % 3 == 0
    obs["text"] = [f"t{i}" for i in range(n)]
    blocks = [(x[i : i + 7], obs.iloc[i : i + 7]) for i in range(0, n, 7)]
    path = write_csr(tmp_path / f"atlas{suffix}", blocks, obs=None, var=names("g", 6))
    assert_stored(path, x)
    again = read(path).obs
    again["text"] = again["text"].astype(object)
    pd.testing.assert_frame_equal(again, obs, check_index_type=False)


def test_zstd_in_hdf5_is_the_registered_filter(tmp_path):
    x = make(0, 50, 30, 0.5)
    options = {"compression": "zstd", "chunk_elements": 100}
    path = write_csr(tmp_path / "a.h5ad", [x], obs=names("c", 50), var=names("g", 30), **options)
    with h5py.File(path) as file:
        data = file["X/data"]
        plist = data.id.get_create_plist()
        assert [plist.get_filter(i)[0] for i in range(plist.get_nfilters())] == [2, 32015]
        mask, encoded = data.id.read_direct_chunk((100,))
        assert mask == 0
        bytes_of_values = np.frombuffer(Zstd().decode(encoded), np.uint8).reshape(4, 100).T
        values = np.ascontiguousarray(bytes_of_values).view(np.float32).ravel()
        np.testing.assert_array_equal(values, x.data[100:200])


def test_zarr_is_sharded(tmp_path):
    x = make(0, 200, 30, 0.9)
    options = {"chunk_elements": 100, "shard_elements": 1_050}
    path = write_csr(tmp_path / "a.zarr", [x], obs=names("c", 200), var=names("g", 30), **options)
    group = zarr.open_group(str(path), mode="r")
    assert group.metadata.zarr_format == 3
    assert group["X/data"].chunks == (100,)
    assert group["X/data"].shards == (1_000,)
    files = [p for p in (path / "X" / "data" / "c").rglob("*") if p.is_file()]
    assert len(files) == -(-x.nnz // 1_000)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_threads_and_blocks_change_nothing(tmp_path, suffix):
    x = make(3, 300, 40, 0.4)
    stored = []
    for threads, size in ((1, 300), (3, 11)):
        path = tmp_path / f"a{threads}{suffix}"
        options = {"threads": threads, "chunk_elements": 128, "shard_elements": 512}
        write_csr(path, cut(x, [size]), obs=names("c", 300), var=names("g", 40), **options)
        if suffix == ".zarr":
            stored.append([p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()])
            continue
        with h5py.File(path) as file:
            ids = [file["X"][name].id for name in ("data", "indices", "indptr")]
            stored.append([i.read_direct_chunk((k,)) for i in ids for k in range(0, i.shape[0], 128)])
    assert stored[0] == stored[1]


def test_unsorted_and_repeated_columns_are_kept(tmp_path):
    x = sparse.csr_matrix(
        (np.arange(1, 6, dtype=np.float32), np.array([3, 1, 1, 0, 0]), np.array([0, 3, 3, 5])), shape=(3, 4)
    )
    path = write_csr(tmp_path / "a.h5ad", [x], obs=names("c", 3), var=names("g", 4))
    assert_stored(path, x)


def test_room_behind_the_last_value_is_left_out(tmp_path):
    x = sparse.csr_matrix((3, 4), dtype=np.float32)
    x.data, x.indices = np.ones(10, np.float32), np.full(10, 77, np.int32)
    x.indptr = np.array([0, 0, 0, 0], np.int32)
    path = write_csr(tmp_path / "a.h5ad", [x], obs=names("c", 3), var=names("g", 4))
    assert ad.read_h5ad(path).X.nnz == 0


def test_a_block_may_be_overwritten_by_its_maker(tmp_path):
    x = make(5, 100, 30, 0.5)
    buffer = x[:10].copy()

    def blocks():
        for start in range(0, 100, 10):
            part = x[start : start + 10]
            buffer.data, buffer.indices, buffer.indptr = part.data.copy(), part.indices.copy(), part.indptr
            yield buffer
            buffer.data[:] = -1
            buffer.indices[:] = 0

    path = write_csr(tmp_path / "a.h5ad", blocks(), obs=names("c", 100), var=names("g", 30), threads=2)
    assert_stored(path, x)


def test_the_dtype_may_be_chosen(tmp_path):
    x = make(0, 20, 10, 0.5, np.int64)
    path = write_csr(tmp_path / "a.h5ad", [x], obs=names("c", 20), var=names("g", 10), dtype=np.float32)
    assert_stored(path, x.astype(np.float32))


@pytest.mark.parametrize(
    ("value", "stored", "dtype"),
    [
        (2**24 + 1, np.int64, np.float32),
        (0.5, np.float32, np.int32),
        (300, np.int32, np.uint8),
        (-1, np.int32, np.uint16),
        (1e300, np.float64, np.float32),
        (np.nan, np.float32, np.int32),
        (2**63, np.uint64, np.int64),
    ],
)
def test_values_that_do_not_fit_are_refused(tmp_path, value, stored, dtype):
    x = sparse.csr_matrix(np.array([[1, value]], dtype=stored))
    with pytest.raises(InputError, match="cannot hold"):
        write_csr(tmp_path / "a.h5ad", [x], obs=names("c", 1), var=names("g", 2), dtype=dtype)
    assert not list(tmp_path.iterdir())


X = make(0, 6, 4, 0.9)
OBS, VAR = names("c", 6), names("g", 4)


def broken(**parts):
    x = X.copy()
    for name, value in parts.items():
        setattr(x, name, np.asarray(value, dtype=getattr(x, name).dtype))
    return x


@pytest.mark.parametrize(
    ("blocks", "options", "message"),
    [
        ([X[:, :3]], {}, "block 0 has 3 columns, var 4 genes"),
        ([X[:2], X[:2].toarray()], {}, "block 1 is ndarray"),
        ([X.tocsc()], {}, "a csc matrix: pass"),
        ([X, X], {}, "the blocks up to 1 have 12 cells, obs has 6"),
        ([X[:5]], {}, "the blocks have 5 cells, obs has 6"),
        ([broken(indices=X.indices * 0 + 4)], {}, "no sound CSR matrix: .*outside 0..3"),
        ([broken(indices=X.indices * 0 - 1)], {}, "no sound CSR matrix"),
        ([broken(indptr=X.indptr[::-1])], {}, "no sound CSR matrix"),
        ([broken(data=X.data[:-1])], {}, "no sound CSR matrix"),
        ([X.astype(np.complex64)], {}, "dtype is complex64"),
        ([X], {"obs": None}, "block 0 is no \\(matrix, data frame\\)"),
        ([(X, OBS.iloc[:5])], {"obs": None}, "6 cells and 5 rows of obs"),
        ([X], {"compression": "lzma"}, "compression is 'lzma'"),
        ([X], {"compression": "gzip", "level": 10}, "level is 10: gzip takes 0 to 9"),
        ([X], {"chunk_elements": 0}, "chunk_elements is 0"),
        ([X], {"threads": 0}, "threads is 0"),
        ([X], {"uns": {"f": print}}, "uns holds what AnnData cannot store"),
        ([X], {"var": X}, "var is a csr_matrix"),
        ([X], {"obs": OBS.index}, "obs is a Index"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, blocks, options, message):
    for suffix in (".h5ad", ".zarr"):
        with pytest.raises(InputError, match=message):
            write_csr(tmp_path / f"a{suffix}", iter(blocks), **{"obs": OBS, "var": VAR, **options})
        assert not list(tmp_path.iterdir())


def test_frames_must_agree(tmp_path):
    frame = pd.DataFrame({"a": pd.Categorical(["x"] * 3)}, index=OBS.index[:3])
    other = pd.DataFrame({"a": pd.Categorical(["y"] * 3)}, index=OBS.index[3:])
    for second, message in ((other, "categories"), (other.rename(columns={"a": "b"}), "same columns")):
        with pytest.raises(InputError, match=message):
            write_csr(tmp_path / "a.h5ad", [(X[:3], frame), (X[3:], second)], obs=None, var=VAR)
    nullable = pd.DataFrame({"a": pd.array([1, None, 3], dtype="Int64")}, index=OBS.index[:3])
    with pytest.raises(InputError, match="cannot be appended to"):
        write_csr(tmp_path / "a.h5ad", [(X[:3], nullable)], obs=None, var=VAR)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="ends in"):
        write_csr(tmp_path / "a.loom", [X], obs=OBS, var=VAR)
    with pytest.raises(DataFileError, match="does not exist"):
        write_csr(tmp_path / "missing" / "a.h5ad", [X], obs=OBS, var=VAR)
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(DataFileError, match="exists"):
        write_csr(tmp_path / "a.zarr", [X], obs=OBS, var=VAR)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_a_failure_of_the_maker_leaves_what_was_there(tmp_path, suffix, error):
    path = tmp_path / f"a{suffix}"
    if suffix == ".h5ad":
        path.write_text("old")

    def blocks():
        yield X[:3]
        raise error("stop")

    with pytest.raises(error, match="stop"):
        write_csr(path, blocks(), obs=OBS, var=VAR, chunk_elements=2)
    assert [p.read_text() for p in tmp_path.iterdir()] == (["old"] if suffix == ".h5ad" else [])


CHILD = """
    import itertools, resource, signal, sys
    import numpy as np, pandas as pd
    from scipy import sparse
    from scdd.data.writing.writer import write_csr
    from scdd.errors import DataFileError
    import anndata.io, h5py, zarr
    rng = np.random.default_rng(0)
    x = sparse.csr_matrix(rng.random((200, 100), dtype=np.float32))
    frame = pd.DataFrame(index=[str(i) for i in range(200)])
    def blocks():
        for number in itertools.count():
            if number == 3:
                print("running", flush=True)
            yield x, frame
    if sys.argv[2] == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
    try:
        write_csr(sys.argv[1], blocks(), obs=None, var=pd.DataFrame(index=[str(i) for i in range(100)]),
                  chunk_elements=1 << 12, shard_elements=1 << 18, compression=None)
    except DataFileError as error:
        print("said:", error)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on the size of files here")
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_full_disk_leaves_nothing(tmp_path, suffix):
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / f"a{suffix}"), "full"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_an_interrupt_leaves_nothing(tmp_path, suffix):
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / f"a{suffix}"), "endless"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "running\n"
        child.send_signal(signal.SIGINT)
        out, error = child.communicate(timeout=120)
    assert "interrupted" in out, error
    assert not list(tmp_path.iterdir())
