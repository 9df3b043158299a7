"""Packed rows and folders: every bit back, every instruction set alike, no damage that crashes."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import typer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse
from typer.testing import CliRunner

import scdd
from scdd import _csr
from scdd.cli import pack as pack_verb
from scdd.data.packed import writing as packing
from scdd.data.packed.fingerprint import is_fresh
from scdd.data.packed.header import HEADER, OFFSETS, ROWS, TABLES, Header
from scdd.data.packed.store import PackedStore, packed_store
from scdd.data.packed.writing import pack
from scdd.errors import DataFileError, InputError

SIMD = _csr.packed_simd()
FILES = [HEADER, ROWS, OFFSETS, TABLES]
INT_MAX = 2**31 - 1

awkward = st.sampled_from(
    [0.0, -0.0, 0.5, 1.0, 254.0, 255.0, 256.0, 65535.0, 65536.0, 1e9, -1.0, np.inf, -np.inf, np.nan, 1e-40]
)
counts = st.sampled_from([1, 1, 1, 1, 2, 2, 3, 7, 200, 254, 255, 256, 300]).map(float)
fractions = st.integers(1, 400).map(lambda count: float(np.log1p(np.float32(count * 0.37))))


def bits(values):
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


def reference(data, indices, indptr):
    """Rows in order of genes, duplicates as they came."""
    order = [
        start + np.argsort(indices[start:stop], kind="stable") for start, stop in itertools.pairwise(indptr)
    ]
    order = np.concatenate(order) if order else np.zeros(0, int)
    return data[order].astype(np.float32), indices[order].astype(np.int32)


def assert_round_trip(data, indices, indptr, n_vars, threads=1):
    packed, offsets = _csr.pack_rows(data, indices, indptr, n_vars, threads)
    assert offsets[0] == 0
    assert offsets[-1] == len(packed)
    values, genes = reference(data, indices, indptr)
    for simd in SIMD:
        back = _csr.unpack_rows(packed, offsets, None, n_vars, threads, simd)
        np.testing.assert_array_equal(bits(back[0]), bits(values))
        np.testing.assert_array_equal(back[1], genes)
        np.testing.assert_array_equal(back[2], indptr)
    np.testing.assert_array_equal(_csr.packed_totals(packed, offsets), _csr.row_totals(values, indptr))
    return packed, offsets


@st.composite
def matrices(draw):
    """Rows of every mode: counts, log-normalised, anything; genes near and far, unsorted, repeated."""
    n_vars = draw(st.sampled_from([1, 40, 300, 70_000, INT_MAX]))
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        size = draw(st.integers(0, 150))
        rng = np.random.default_rng(draw(st.integers(0, 2**31)))
        near = min(n_vars, draw(st.sampled_from([40, 700, 100_000, INT_MAX])))
        genes = rng.integers(0, near, size)
        if draw(st.booleans()):
            genes.sort()
        kind = draw(st.sampled_from([counts, fractions, awkward, counts | awkward]))
        few = draw(st.lists(kind, min_size=1, max_size=12))
        values = rng.choice(np.array(few, np.float32), size)
        if draw(st.integers(0, 3)) == 0:
            values = rng.integers(0, 2**32, size, dtype=np.uint32).view(np.float32)
        rows.append((values, genes.astype(np.int32)))
    indptr = np.cumsum([0, *(len(genes) for _, genes in rows)]).astype(np.int64)
    empty = np.zeros(0, np.float32), np.zeros(0, np.int32)
    data, indices = (np.concatenate(parts) for parts in zip(empty, *rows, strict=True))
    return data, indices, indptr, n_vars


@settings(max_examples=250, deadline=None)
@given(matrices())
def test_every_bit_comes_back_on_every_instruction_set(matrix):
    assert_round_trip(*matrix)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint16, np.uint8]),
    st.sampled_from([np.int32, np.int64, np.uint16]),
    st.integers(1, 3),
)
def test_every_dtype(seed, value, index, threads):
    rng = np.random.default_rng(seed)
    sizes = rng.poisson(30, rng.integers(0, 150)) * (rng.random() < 0.9)
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    data = (rng.geometric(0.01, indptr[-1]) / (4 if np.issubdtype(value, np.floating) else 1)).astype(value)
    assert_round_trip(data, rng.integers(0, 50_000, indptr[-1]).astype(index), indptr, 50_000, threads)


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, 1, 254, 255, 256, 65_535, 65_536, 1e9, 0.5, -3, np.inf, -np.inf, np.nan, 3e-45, 254.5],
)
@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 32, 33, 64, 65, 500])
def test_one_value_among_ones(value, size):
    for place in {0, size // 2, size - 1}:
        data = np.ones(size, np.float32)
        data[place] = value
        assert_round_trip(data, np.arange(size, dtype=np.int32), np.array([0, size]), size)


def test_payloads_of_nan_and_bits_of_zero():
    data = np.array([0x7FC00001, 0x7F800001, 0xFFC12345, 0x80000000, 0], np.uint32).view(np.float32)
    for repeats in (1, 60):  # as escapes, and as a table
        many = np.tile(data, repeats)
        assert_round_trip(many, np.arange(len(many), dtype=np.int32), np.array([0, len(many)]), 1_000)


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 65_535, 65_536, 10**8])
@pytest.mark.parametrize("size", [2, 16, 17, 33, 40])
def test_gaps_of_every_width(gap, size):
    for place in (1, size // 2, size - 1):
        steps = np.ones(size, np.int64)
        steps[place] = gap
        genes = np.cumsum(steps).astype(np.int32)
        assert_round_trip(np.ones(size, np.float32), genes, np.array([0, size]), INT_MAX)


def test_the_last_gene_there_can_be():
    genes = np.array([INT_MAX - 1, 0, INT_MAX - 1], np.int32)
    assert_round_trip(np.arange(3, dtype=np.float32), genes, np.array([0, 3]), INT_MAX)


def test_sizes_are_those_promised():
    rng = np.random.default_rng(0)
    n, genes = 40, 20_000
    indices = np.concatenate([np.sort(rng.choice(genes, 1_500, replace=False)) for _ in range(n)])
    indptr = np.arange(n + 1, dtype=np.int64) * 1_500
    count = rng.geometric(0.68, n * 1_500).astype(np.float32)
    scale = np.repeat(rng.random(n).astype(np.float32) + 0.1, 1_500)
    for values, most in ((count, 2.1), (np.log1p(count * scale), 2.2), (rng.random(n * 1_500), 5.1)):
        matrix = values.astype(np.float32), indices.astype(np.int32), indptr
        packed, _ = assert_round_trip(*matrix, genes)
        assert len(packed) / len(values) < most
    deep = rng.geometric(0.001, n * 1_500).astype(np.float32)  # counts of full-length protocols
    packed, _ = assert_round_trip(deep, indices.astype(np.int32), indptr, genes)
    assert len(packed) / len(deep) < 4.0


def test_chosen_rows_and_threads():
    rng = np.random.default_rng(1)
    matrix = sparse.random(700, 300, 0.2, format="csr", dtype=np.float32, rng=rng)
    parts = matrix.data, matrix.indices, matrix.indptr.astype(np.int64)
    one = _csr.pack_rows(*parts, 300, 1)
    for threads in (2, 3, 16):
        np.testing.assert_array_equal(_csr.pack_rows(*parts, 300, threads)[0], one[0])
    rows = rng.integers(0, 700, 400)
    back = _csr.unpack_rows(*one, rows, 300, 3)
    assert (sparse.csr_matrix(back, shape=(400, 300)) != matrix[rows]).nnz == 0
    np.testing.assert_array_equal(_csr.packed_totals(*one, rows), _csr.packed_totals(*one)[rows])


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("gene", [-1, 5, INT_MAX, -INT_MAX - 1])
def test_a_gene_outside_is_named(gene, index):
    for indices in ([0, 1, 4, gene, 2], [gene, 0, 1, 2, 3]):
        with pytest.raises(IndexError, match=rf"indices\[{3 + indices.index(gene)}\] = {gene} \(row 1\)"):
            _csr.pack_rows(
                np.ones(8, np.float32), np.array([0, 1, 2, *indices], index), np.array([0, 3, 8]), 5
            )


@pytest.fixture(scope="module")
def records():
    """Rows of all three modes, with long gaps and escapes."""
    rng = np.random.default_rng(5)
    rows = [rng.geometric(0.5, 90), np.log1p(rng.geometric(0.5, 90) * 0.3), rng.random(90), [1e9], []]
    indptr = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    genes = [np.sort(rng.integers(0, 9_000, len(row))) for row in rows]
    data, indices = np.concatenate(rows).astype(np.float32), np.concatenate(genes).astype(np.int32)
    return _csr.pack_rows(data, indices, indptr, 9_000)


def outcome(packed, offsets, n_vars, simd):
    """What an instruction set makes of bytes: the rows' bits, or the error."""
    try:
        values, genes, indptr = _csr.unpack_rows(packed, offsets, None, n_vars, 1, simd)
    except (ValueError, IndexError) as error:
        return str(error)
    if len(genes):
        assert genes.min() >= 0
        assert genes.max() < n_vars
    for start, stop in itertools.pairwise(indptr):
        assert (np.diff(genes[start:stop]) >= 0).all()
    return bits(values).tobytes(), genes.tobytes(), indptr.tobytes()


def gathered(packed, offsets, n_vars, simd, **how):
    """What a sparse batch of all rows holds, as bytes, or the error."""
    rows = np.arange(len(offsets) - 1)
    try:
        parts = _csr.PackedRows(packed, offsets, n_vars, simd).gather_csr(rows, None, **how)
    except (ValueError, IndexError) as error:
        return str(error)
    return tuple(part.tobytes() for part in parts)


@pytest.mark.parametrize("simd", SIMD)
@pytest.mark.parametrize("lead", [0, 1, 5, 15])
@pytest.mark.parametrize("step", [1, 2, 40, 300])
def test_sparse_batches_hold_what_was_packed(simd, lead, step):
    """Rows of every length up to some lines, of all modes, beginning anywhere within a line."""
    rng = np.random.default_rng(lead)
    sizes = [lead, *rng.permutation(70), 0, 300]
    indptr = np.cumsum([0, *sizes]).astype(np.int64)
    genes = np.concatenate([rng.integers(0, 3) + np.cumsum(np.full(n, step)) - step for n in sizes])
    scales = np.repeat(rng.choice([1.0, 0.3, 90.0, 1e5], len(sizes)), sizes)
    data = (rng.geometric(0.5, len(genes)) * scales).astype(np.float32)
    data[::7] += rng.random(len(data[::7])).astype(np.float32) * (rng.random() < 0.5)
    genes = genes.astype(np.int32)
    packed, offsets = _csr.pack_rows(data, genes, indptr, 100_000)
    source = _csr.PackedRows(packed, offsets, 100_000, simd)
    for threads in (1, 2):
        found = source.gather_csr(np.arange(len(sizes)), None, threads=threads)
        assert [part.tobytes() for part in found[:3]] == [a.tobytes() for a in (data, genes, indptr)]
        sums = [data[a:b].astype(np.float64).sum() for a, b in itertools.pairwise(indptr)]
        np.testing.assert_allclose(found[3], sums, rtol=1e-12)
    logged = source.gather_csr(np.arange(len(sizes)), None, target_sum=1e4, log1p=True)
    expected = _csr.gather_csr(
        data, genes, indptr, np.arange(len(sizes)), None, target_sum=1e4, log1p=True, n_vars=100_000
    )
    assert [part.tobytes() for part in logged[:3]] == [part.tobytes() for part in expected[:3]]


def test_genes_named_twice_are_added_up(records):
    packed, offsets = _csr.pack_rows(
        np.array([1, 2, 3, 4], np.float32), np.array([7, 7, 300, 300], np.int32), np.array([0, 4]), 9_000
    )
    for simd in SIMD:
        values, genes, indptr, totals = _csr.PackedRows(packed, offsets, 9_000, simd).gather_csr(
            np.zeros(2, np.int64), None
        )
        assert (values.tolist(), genes.tolist()) == ([3, 7, 3, 7], [7, 300, 7, 300])
        assert (indptr.tolist(), totals.tolist()) == ([0, 2, 4], [10, 10])


def test_no_sum_of_gaps_comes_round_again():
    """Two gaps that add up to 2^32 lead back to a gene that there is."""
    header = bytes([0, 1, 0, 0]) + np.array([3, 2, 0], "<u4").tobytes() + np.float64(3).tobytes()
    gaps = np.array([2**32 - 2, 5], "<u4").tobytes()
    raw = header + bytes([255, 255, 1]) + bytes([1, 1, 1]) + gaps
    packed, offsets = np.frombuffer(raw, np.uint8), np.array([0, len(raw)])
    for simd in SIMD:
        assert "holds gene 4294967300, outside 0..8999" in gathered(packed, offsets, 9_000, simd)


@pytest.mark.parametrize("simd", SIMD)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
@pytest.mark.parametrize("size", [0, 1, 7, 15, 16, 17, 31, 40, 64, 100])
def test_widening(simd, dtype, size):
    rng = np.random.default_rng(size)
    for lead in range(16):
        rising = np.sort(rng.choice(np.arange(256), size, replace=False)).astype(dtype)
        repeated = rising.copy()
        if size > 1:
            place = rng.integers(1, size)
            repeated[place] = repeated[place - 1]
        high = rng.integers(0, np.iinfo(dtype).max, size, endpoint=True).astype(dtype)
        for numbers in (rising, repeated, high):
            for genes in (True, False):
                out, ordered = _csr.widen(numbers, genes, lead, simd)
                assert out.tolist() == [-1] * lead + out.dtype.type(numbers).tolist() + [-1] * (32 - lead)
                if genes:
                    assert ordered == bool((np.diff(numbers.astype(np.int64)) > 0).all())


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_damaged_records_never_reach_outside(records, data):
    packed, offsets = records
    damaged = packed.copy()
    # Headers are hit more often than chance would: that is where sizes lie.
    places = st.integers(0, len(packed) - 1) | st.sampled_from(
        [int(o) + k for o in offsets[:-1] for k in range(24)]
    )
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255) | st.sampled_from([0, 1, 127, 128, 254, 255]))
    (seen,) = {outcome(damaged, offsets, 9_000, simd) for simd in SIMD}
    (batch,) = {gathered(damaged, offsets, 9_000, simd) for simd in SIMD}
    assert isinstance(batch, str) == isinstance(seen, str)
    assert not isinstance(seen, str) or "packed row" in seen, "an error names the row"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.sampled_from([1, 200, INT_MAX]))
@example(b"", 1)
@example(bytes([0, 0, 0, 0, *b"\xff\xff\xff\xff" * 3, *bytes(8)]), 1)
def test_arbitrary_bytes(raw, n_vars):
    packed = np.frombuffer(raw, np.uint8)
    for way in (outcome, gathered):
        assert len({way(packed, np.array([0, len(raw)]), n_vars, simd) for simd in SIMD}) == 1


@pytest.mark.parametrize("offsets", [[0, -1], [-5, 10], [10, 5], [0, 10**9], [2**63 - 1, -(2**63)]])
def test_damaged_offsets(records, offsets):
    with pytest.raises(ValueError, match="packed row 0 is damaged"):
        _csr.unpack_rows(records[0], np.array(offsets, np.int64), None, 9_000)


def test_wrong_arguments(records):
    for rows in ([-1], [5], [0, 2**62]):
        with pytest.raises(IndexError, match=r"outside 0\.\.4"):
            _csr.unpack_rows(*records, np.array(rows), 9_000)
    with pytest.raises(IndexError, match="packed row 0 holds gene"):
        _csr.unpack_rows(*records, None, 10)
    with pytest.raises(ValueError, match="simd=sse9"):
        _csr.unpack_rows(*records, None, 9_000, 1, "sse9")
    with pytest.raises(TypeError, match="bytes has dtype"):
        _csr.unpack_rows(records[0].view(np.int8), records[1], None, 9_000)
    with pytest.raises(ValueError, match="n_vars"):
        _csr.unpack_rows(*records, None, -1)


# --- the folder ---


@pytest.fixture
def atlas(h5ad):
    return scdd.Atlas(h5ad)


@pytest.fixture
def folder(atlas, tmp_path):
    path = tmp_path / "atlas.packed"
    pack(atlas, path)
    return path


def assert_same(packed, atlas):
    whole = atlas.read(np.arange(atlas.n_obs))
    assert packed.shape == whole.shape
    assert packed.nbytes == 8 * whole.nnz
    assert (packed.read(0, atlas.n_obs) != whole).nnz == 0


def left_over(path):
    return [file.name for file in path.parent.iterdir() if file.name.startswith(".")]


def test_a_folder_holds_the_atlas(folder, atlas, adata):
    packed = PackedStore.open(folder, verify=True)
    assert_same(packed, atlas)
    assert packed.read(0, 5).dtype == np.float32
    pd.testing.assert_frame_equal(packed.obs, adata.obs)
    assert list(packed.var_names) == list(adata.var_names)
    assert (packed.header.layer, packed.header.expression) == ("X", "counts")
    assert packed.header.nnz == adata.X.nnz
    np.testing.assert_allclose(packed.totals(), adata.X.sum(1).A1)
    assert not left_over(folder)


def test_rows_in_any_order(folder, atlas):
    packed = PackedStore.open(folder)
    rows = np.random.default_rng(0).integers(0, atlas.n_obs, 500)
    assert (packed.rows(rows)[0] != atlas.read(rows)).nnz == 0
    assert packed.rows(np.zeros(0, int))[0].shape == (0, atlas.n_vars)
    for wrong in ([-1], [atlas.n_obs]):
        with pytest.raises(InputError, match=f"row {wrong[0]} is not in"):
            packed.rows(np.array(wrong))


def test_an_atlas_of_a_packed_folder(folder, atlas):
    store = packed_store(folder)
    assert list(store.layers) == ["X"]
    assert_same(store.layers["X"](), atlas)
    assert len(store.obs) == atlas.n_obs
    assert store.var_names["X"].equals(atlas.var_names)


def test_more_cells_than_a_block(tmp_path, adata, monkeypatch):
    monkeypatch.setattr(packing, "_CELLS", 7)
    atlas = scdd.Atlas(adata)
    assert_same(pack(atlas, tmp_path / "a.packed", threads=2), atlas)
    PackedStore.open(tmp_path / "a.packed", verify=True)


def test_checksums_of_many_blocks(tmp_path, adata, monkeypatch):
    monkeypatch.setattr(packing, "BLOCK", 1_000)
    monkeypatch.setattr("scdd.data.packed.header.BLOCK", 1_000)
    store = pack(scdd.Atlas(adata), tmp_path / "a.packed")
    sums = store.header.files[ROWS]
    assert len(sums.crc32) == -(-sums.size // 1_000)
    PackedStore.open(tmp_path / "a.packed", verify=True)
    damage(tmp_path / "a.packed" / ROWS, 2_345)
    with pytest.raises(DataFileError, match=r"rows.bin is corrupt in bytes 2000..3000"):
        PackedStore.open(tmp_path / "a.packed", verify=True)


def test_odd_annotation(tmp_path, make_atlas):
    adata = make_atlas(40)
    adata.obs["mixed"] = pd.Series(["a", None, 3, 2.5] * 10, index=adata.obs_names, dtype=object)
    adata.obs["nullable"] = pd.array([1, None] * 20, dtype="Int64")
    adata.obs["flag"] = True
    packed = pack(scdd.Atlas(adata), tmp_path / "a.packed")
    assert packed.obs["mixed"].isna().sum() == 10
    assert set(packed.obs["mixed"].cat.categories) == {"a", "3", "2.5"}
    assert packed.obs["nullable"].isna().sum() == 20
    assert packed.obs["flag"].all()


@pytest.mark.parametrize("layer", ["layers/counts", "raw/X"])
def test_other_layers_keep_their_name(tmp_path, make_atlas, layer):
    adata = make_atlas(40)
    adata.raw = adata
    adata.layers["counts"] = adata.X
    atlas = scdd.Atlas(adata, layer=layer)
    pack(atlas, tmp_path / "a.packed")
    store = packed_store(tmp_path / "a.packed")
    assert list(store.layers) == [layer]
    assert store.var_names["raw/X" if layer == "raw/X" else "X"].equals(atlas.var_names)


def test_log_normalised(tmp_path, make_atlas):
    adata = make_atlas(40)
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray() * 0.731).astype(np.float32))
    atlas = scdd.Atlas(adata, expression="log1p")
    assert_same(pack(atlas, tmp_path / "a.packed"), atlas)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(folder, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    packed = PackedStore.open(folder)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=total_elsewhere, args=(packed, queue))
    child.start()
    assert queue.get(timeout=60) == packed.rows(np.array([3, 1]))[0].sum()
    child.join()


def total_elsewhere(packed, queue):
    queue.put(packed.rows(np.array([3, 1]))[0].sum())


def test_pickling(folder, atlas, h5ad):
    packed = PackedStore.open(folder)
    kept = pickle.dumps(packed)
    assert len(kept) < 10_000, "the rows themselves must not travel"
    assert_same(pickle.loads(kept), atlas)
    pack(atlas.subset(np.arange(100)), folder, overwrite=True)
    with pytest.raises(DataFileError, match="packed again since"):
        pickle.loads(kept)
    assert packed.rows(np.array([200]))[0].shape == (1, atlas.n_vars), (
        "an open store keeps the rows it opened"
    )


# --- freshness ---


def touch(path):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def test_fresh_until_the_source_changes(folder, h5ad, atlas):
    assert is_fresh(folder, scdd.Atlas(h5ad))
    before = (folder / HEADER).stat().st_ino
    pack(scdd.Atlas(h5ad), folder)
    assert (folder / HEADER).stat().st_ino == before, "nothing is written where nothing has changed"
    touch(h5ad)
    assert not is_fresh(folder, scdd.Atlas(h5ad))
    pack(scdd.Atlas(h5ad), folder)
    assert (folder / HEADER).stat().st_ino != before
    assert is_fresh(folder, scdd.Atlas(h5ad))


def test_other_cells_genes_or_annotation_are_not_fresh(folder, atlas, h5ad):
    assert not is_fresh(folder, atlas.subset(np.arange(10)))
    assert not is_fresh(folder, atlas.subset(np.arange(atlas.n_obs)[::-1]))
    other = scdd.Atlas(h5ad)
    other.obs["new"] = 1
    assert not is_fresh(folder, other)


def test_fresh_in_memory(tmp_path, adata):
    path = tmp_path / "a.packed"
    pack(scdd.Atlas(adata), path)
    assert is_fresh(path, scdd.Atlas(adata))
    adata.X[-1, 0] += 1
    assert not is_fresh(path, scdd.Atlas(adata))


def test_fresh_zarr(tmp_path, adata):
    adata.write_zarr(tmp_path / "a.zarr")
    path = tmp_path / "a.packed"
    pack(scdd.Atlas(tmp_path / "a.zarr"), path)
    assert is_fresh(path, scdd.Atlas(tmp_path / "a.zarr"))
    touch(next(p for p in (tmp_path / "a.zarr" / "X" / "data").rglob("*") if p.is_file()))
    assert not is_fresh(path, scdd.Atlas(tmp_path / "a.zarr"))


@pytest.mark.parametrize("name", FILES)
def test_damaged_is_not_fresh(folder, atlas, name):
    (folder / name).unlink()
    assert not is_fresh(folder, atlas)


# --- writing that goes wrong ---


def stop_after(monkeypatch, error, calls):
    """Packing a block fails with `error` after `calls` blocks."""
    real, seen = packing._packed, []

    def fail(*arguments):
        seen.append(1)
        if len(seen) > calls:
            raise error
        return real(*arguments)

    monkeypatch.setattr(packing, "_CELLS", 50)
    monkeypatch.setattr(packing, "_packed", fail)


@pytest.mark.parametrize("calls", [0, 1, 4])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), OSError(errno.ENOSPC, "No space left")]
)
def test_nothing_is_left_of_a_failure(tmp_path, adata, monkeypatch, error, calls):
    path = tmp_path / "a.packed"
    stop_after(monkeypatch, error, calls)
    expected = DataFileError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as raised:
        pack(scdd.Atlas(adata), path)
    if isinstance(error, OSError):
        assert "No space left" in str(raised.value)
        assert "free space" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_failure_keeps_what_was_there(folder, h5ad, monkeypatch, error):
    touch(h5ad)
    before = {name: (folder / name).read_bytes() for name in FILES}
    stop_after(monkeypatch, error, 1)
    with pytest.raises((KeyboardInterrupt, DataFileError)):
        pack(scdd.Atlas(h5ad), folder)
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    assert not left_over(folder)


def test_a_rename_that_fails_brings_the_old_folder_back(folder, h5ad, monkeypatch):
    touch(h5ad)
    real = type(folder).rename

    def rename(self, target):
        if ".tmp" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(type(folder), "rename", rename)
    with pytest.raises(DataFileError, match="cannot be written"):
        pack(scdd.Atlas(h5ad), folder)
    PackedStore.open(folder, verify=True)
    assert not left_over(folder)


def test_only_packed_folders_are_replaced(tmp_path, folder, atlas, h5ad):
    file, other = tmp_path / "file.packed", tmp_path / "other.packed"
    file.write_text("mine")
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    for path in (file, other, folder):
        with pytest.raises(DataFileError, match="is not a packed folder"):
            pack(atlas, path, overwrite=True)
    assert file.read_text() == "mine"
    assert (other / "notes.txt").read_text() == (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match=r"ends in \.packed"):
        pack(atlas, tmp_path / "a.h5ad")
    with pytest.raises(DataFileError, match="does not exist"):
        pack(atlas, tmp_path / "nowhere" / "a.packed")


def test_a_folder_of_another_source_is_kept(tmp_path, folder, make_atlas):
    other = tmp_path / "other.h5ad"
    make_atlas(30, seed=1).write_h5ad(other)
    with pytest.raises(InputError, match="packed from another source"):
        pack(scdd.Atlas(other), folder)
    assert PackedStore.open(folder).shape[0] == 240
    assert pack(scdd.Atlas(other), folder, overwrite=True).shape[0] == 30


def test_an_empty_atlas_is_refused(tmp_path, atlas):
    with pytest.raises(InputError, match="no cells to pack"):
        pack(atlas.subset(np.zeros(0, int)), tmp_path / "a.packed")


# --- reading what is damaged ---


def damage(path, place, value=None):
    raw = bytearray(path.read_bytes())
    raw[place] = raw[place] ^ 0x41 if value is None else value
    path.write_bytes(raw)


@pytest.mark.parametrize("name", FILES)
def test_verify_sees_every_damage(folder, name):
    size = (folder / name).stat().st_size
    original = (folder / name).read_bytes()
    places = range(size) if name == HEADER else np.linspace(0, size - 1, 40).astype(int)
    for place in places:
        damage(folder / name, place)
        with pytest.raises(DataFileError, match=r"scdd pack"):
            PackedStore.open(folder, verify=True)
        (folder / name).write_bytes(original)
    PackedStore.open(folder, verify=True)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_without_verify_is_an_error_or_other_values(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("packed") / "a.packed"
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(0.4, (20, 30)).astype(np.float32)))
    pack(scdd.Atlas(adata), path, progress=False)
    name = data.draw(st.sampled_from(FILES))
    place = data.draw(st.integers(0, (path / name).stat().st_size - 1))
    damage(path / name, place, data.draw(st.integers(0, 255)))
    try:
        packed = PackedStore.open(path)
        block, obs, names = packed.read(0, 20), packed.obs, packed.var_names
    except DataFileError:
        return
    block.check_format(full_check=True)
    assert (block.shape, len(obs), len(names)) == ((20, 30), 20, 30)


@pytest.mark.parametrize("name", FILES)
def test_missing_and_truncated_files(folder, name):
    raw = (folder / name).read_bytes()
    (folder / name).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataFileError, match="scdd pack"):
        PackedStore.open(folder)
    (folder / name).unlink()
    with pytest.raises(DataFileError, match="scdd pack"):
        PackedStore.open(folder)


def test_not_a_packed_folder(tmp_path, h5ad):
    for path in (tmp_path / "nowhere.packed", tmp_path, h5ad):
        with pytest.raises(DataFileError, match="make one with `scdd pack`"):
            PackedStore.open(path)


def test_headers_that_lie(folder):
    header = Header.from_bytes((folder / HEADER).read_bytes(), folder)
    for change in ({"n_obs": 10**12}, {"n_obs": -1}, {"n_vars": 2**31}, {"n_obs": 2.5}, {"layer": None}):
        changed = Header(**{**header.__dict__, **change})
        (folder / HEADER).write_bytes(changed.to_bytes())
        with pytest.raises(DataFileError, match="scdd pack"):
            PackedStore.open(folder)
    text = header.to_bytes().replace(b'"version": 1', b'"version": 2')
    (folder / HEADER).write_bytes(text)
    with pytest.raises(DataFileError, match="has version 2"):
        PackedStore.open(folder)


def test_a_source_time_full_of_zeros_survives_the_seal(folder):
    header = Header.from_bytes((folder / HEADER).read_bytes(), folder)
    source = {**header.source, "mtime_ns": 1_700_000_000_000_000_000, "text": "00000000"}
    changed = Header(**{**header.__dict__, "source": source})
    assert Header.from_bytes(changed.to_bytes(), folder) == changed


def test_offsets_that_lie(folder):
    offsets = np.load(folder / OFFSETS)
    for place, value in ((0, 1), (5, -1), (5, 2**63 - 1), (5, int(offsets[4]) + 23), (-1, 7)):
        wrong = offsets.copy()
        wrong[place] = value
        np.save(folder / OFFSETS, wrong)
        with pytest.raises(DataFileError, match="scdd pack"):
            PackedStore.open(folder)


# --- the command ---


@pytest.fixture
def command():
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    pack_verb.register(app)
    return lambda *words: CliRunner().invoke(app, ["pack", *map(str, words)])


def test_the_command(command, h5ad, tmp_path):
    result = command(h5ad, "--verify")
    assert result.exit_code == 0, result.output
    path = h5ad.with_suffix(".packed")
    assert f"wrote {path}: 240 cells x 60 genes" in result.stdout
    assert "bytes a cell (the source: " in result.stdout
    assert "up to date" in command(h5ad).stdout
    assert "wrote" in command(h5ad, "--force").stdout
    assert "verified" in command(path, "--verify").stdout
    damage(path / ROWS, 100)
    with pytest.raises(DataFileError, match="checksum"):
        raise command(path, "--verify").exception
    with pytest.raises(InputError, match="--out"):
        raise command(h5ad, h5ad).exception
