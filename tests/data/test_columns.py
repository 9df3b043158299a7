"""A CSC matrix on disk is turned into rows in bounded memory, and nothing is left behind."""

from __future__ import annotations

import errno
import tracemalloc

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scdd.data.formats import buckets, columns
from scdd.data.formats.columns import rows_of_columns
from scdd.errors import DataFileError, InputError

LEAST = 1 << 21


class Group(dict):
    """Arrays in place of a group on disk."""


def _group(csc):
    return Group(data=csc.data, indices=csc.indices, indptr=csc.indptr)


def _random(n_rows, n_columns, density, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    csc = sparse.random(n_rows, n_columns, density, format="csc", rng=rng, dtype=np.float64)
    csc.data = rng.integers(1, 200, csc.nnz).astype(dtype)
    return csc


def _turn(csc, folder, **options):
    options = {"memory_limit": LEAST, "place": "a.h5ad: X", "progress": False, **options}
    return list(rows_of_columns(_group(csc), csc.shape, folder=folder, **options))


def _check(blocks, csc):
    expected, start = csc.tocsr(), 0
    for block in blocks:
        assert isinstance(block, sparse.csr_matrix)
        assert block.dtype == np.float32
        assert block.indices.dtype == np.int32
        assert block.has_sorted_indices
        piece = expected[start : start + block.shape[0]]
        np.testing.assert_array_equal(block.indptr, piece.indptr)
        np.testing.assert_array_equal(block.indices, piece.indices)
        np.testing.assert_array_equal(block.data, piece.data.astype(np.float32))
        start += block.shape[0]
    assert start == csc.shape[0]


@settings(max_examples=60, deadline=None)
@given(
    n_rows=st.integers(0, 60),
    n_columns=st.integers(0, 60),
    density=st.floats(0, 1),
    dealt=st.integers(1, 2_000),
    ordered=st.integers(60, 500),
    row=st.integers(1, 1_000),
    seed=st.integers(0, 99),
)
def test_any_shape_and_any_division(tmp_path_factory, n_rows, n_columns, density, dealt, ordered, row, seed):
    """However many slabs, buckets and parts of buckets there are, the rows are those of scipy."""
    csc, folder = _random(n_rows, n_columns, density, seed), tmp_path_factory.mktemp("any")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_DEALT_BYTES", LEAST // dealt)
        patch.setattr(columns, "_ORDERED_BYTES", LEAST // ordered)
        patch.setattr(columns, "_ROW_BYTES", LEAST // row)
        _check(_turn(csc, folder, memory_limit=4 * LEAST), csc)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("dtype", ["f8", "i8", "u2", "?", ">f4"])
@pytest.mark.parametrize("index", ["i8", "u2", ">i4"])
def test_dtypes_on_disk(tmp_path, dtype, index):
    csc = _random(300, 200, 0.1, dtype=dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"], file["indices"] = csc.data.astype(dtype), csc.indices.astype(index)
        file["indptr"] = csc.indptr.astype("u8")
        _check(rows_of_columns(file, csc.shape, memory_limit=LEAST, place="X", folder=tmp_path), csc)


def test_what_anndata_writes(adata, tmp_path):
    adata.X = sparse.csc_matrix(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    adata.write_zarr(tmp_path / "a.zarr")
    with h5py.File(tmp_path / "a.h5ad") as file:
        _check(rows_of_columns(file["X"], adata.shape, memory_limit=LEAST, place="X"), adata.X)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    _check(rows_of_columns(group["X"], adata.shape, memory_limit=LEAST, place="X"), adata.X)


def test_full_rows_beside_empty_ones_are_divided(tmp_path, monkeypatch):
    """A bucket of equal row ranges may hold far more than the others."""
    monkeypatch.setattr(columns, "_ORDERED_BYTES", LEAST // 500)
    dense = np.zeros((400, 100), dtype="f4")
    dense[37:60] = 1 + np.arange(100)
    csc = sparse.csc_matrix(dense)
    blocks = _turn(csc, tmp_path, memory_limit=3 * LEAST)
    _check(blocks, csc)
    assert max(block.nnz for block in blocks) <= 3 * 500
    assert len(blocks) == 4  # of three buckets


def test_duplicates_are_added_up(tmp_path):
    csc = sparse.csc_matrix((np.array([1.0, 2, 4, 8], "f4"), [1, 0, 1, 1], [0, 3, 4]), shape=(2, 2))
    (block,) = _turn(csc, tmp_path)
    np.testing.assert_array_equal(block.toarray(), [[2, 0], [5, 8]])


def test_memory_stays_within_its_limit(tmp_path):
    """Two million entries are 24 MB as a matrix, and 80 MB while scipy turns them."""
    csc, limit = _random(20_000, 500, 0.2, dtype="f8"), 8 << 20
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for part in ("data", "indices", "indptr"):
            file.create_dataset(part, data=getattr(csc, part), chunks=True)
    total, shape, nnz = csc.sum(0), csc.shape, csc.nnz
    del csc
    with h5py.File(path) as file:
        tracemalloc.start()
        seen, found = 0, np.zeros((1, shape[1]))
        for block in rows_of_columns(file, shape, memory_limit=limit, place="X", folder=tmp_path):
            seen += block.nnz
            found += block.sum(0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seen == nnz
    np.testing.assert_allclose(found, total)
    assert peak <= limit


def _damage(csc, fault):
    group = _group(csc.copy())
    if fault in ("indices", "data", "indptr"):
        group[fault] = group[fault][:-1]
    elif fault == "missing":
        del group["indices"]
    elif fault == "strings":
        group["data"] = group["data"].astype(str)
    elif fault == "two-dimensional":
        group["indptr"] = group["indptr"][:, None]
    elif fault == "decreases":
        group["indptr"][3] = 0
    elif fault == "start":
        group["indptr"] = group["indptr"] + 1
    else:
        group["indices"] = group["indices"].astype("i8")
        group["indices"][7] = {"row": csc.shape[0], "negative": -1, "huge": 2**40}[fault]
    return group


FAULTS = ["indices", "data", "indptr", "missing", "strings", "two-dimensional", "decreases", "start"]


@pytest.mark.parametrize("fault", [*FAULTS, "row", "negative", "huge"])
def test_a_corrupt_matrix_is_refused(tmp_path, fault):
    csc = _random(50, 40, 0.3)
    with pytest.raises(DataFileError, match=r"a\.h5ad: X is (corrupt|not a complete sparse matrix).*again"):
        list(
            rows_of_columns(
                _damage(csc, fault), csc.shape, memory_limit=LEAST, place="a.h5ad: X", folder=tmp_path
            )
        )
    assert not list(tmp_path.iterdir())


def test_a_row_of_endless_duplicates_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "_ORDERED_BYTES", 1 << 14)
    indices, indptr = np.zeros(5_000, dtype="i4"), np.array([0, 5_000])
    csc = sparse.csc_matrix((np.ones(5_000, "f4"), indices, indptr), shape=(2, 1))
    with pytest.raises(DataFileError, match="a row has 5000 entries in 1 columns"):
        _turn(csc, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_limit_that_is_too_small_says_what_is_needed(tmp_path):
    csc = _random(50, 40, 0.3)
    with pytest.raises(InputError, match=r"memory_limit=1000 is too small.*allow 1,049,888 bytes"):
        _turn(csc, tmp_path, memory_limit=1_000)
    _check(_turn(csc, tmp_path, memory_limit=1_049_888), csc)


def test_errors_come_before_the_first_row_is_asked_for(tmp_path):
    csc = _random(50, 40, 0.3)
    with pytest.raises(DataFileError, match="indptr"):
        rows_of_columns(_damage(csc, "indptr"), csc.shape, memory_limit=LEAST, place="X")
    with pytest.raises(DataFileError, match="cannot be used"):
        rows_of_columns(_group(csc), csc.shape, memory_limit=LEAST, place="X", folder=tmp_path / "none")


def test_a_full_disk(tmp_path, monkeypatch):
    csc = _random(50, 40, 0.3)
    with monkeypatch.context() as patch:
        usage = columns.shutil.disk_usage(tmp_path)._replace(free=100)
        patch.setattr(columns.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(DataFileError, match=r"has no room for the .* GB of temporary files"):
            _turn(csc, tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(buckets.Buckets, "add", full)
    with pytest.raises(DataFileError, match="has no room for"):
        _turn(csc, tmp_path)
    assert not list(tmp_path.iterdir())


def test_temporary_files_go_when_the_caller_stops_or_reading_fails(tmp_path, monkeypatch):
    csc = _random(2_000, 40, 0.3)
    monkeypatch.setattr(columns, "_ORDERED_BYTES", LEAST // 500)
    stream = rows_of_columns(_group(csc), csc.shape, memory_limit=LEAST, place="X", folder=tmp_path)
    next(stream)
    assert list(tmp_path.iterdir())
    stream.close()
    assert not list(tmp_path.iterdir())

    class Failing:
        dtype, shape = csc.data.dtype, csc.data.shape

        def __getitem__(self, key):
            raise RuntimeError("bad chunk")

    group = _group(csc) | {"data": Failing()}
    with pytest.raises(DataFileError, match=r"X cannot be read at entries 0:.*bad chunk"):
        list(rows_of_columns(group, csc.shape, memory_limit=LEAST, place="X", folder=tmp_path))
    assert not list(tmp_path.iterdir())
