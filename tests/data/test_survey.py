"""What `scdd info` says of a file is what the file and the loader themselves say."""

from __future__ import annotations

import re
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import io, sparse

import scdd
from scdd import _csr
from scdd.data.formats import matrix
from scdd.data.formats.transcoded import TranscodedRows
from scdd.data.inspection import reading_speed, survey
from scdd.data.inspection.describe import describe
from scdd.data.inspection.stored_form import form_of
from scdd.errors import DataFileError, InputError

N, GENES = 900, 60


@pytest.fixture(scope="module")
def cells(make_atlas):
    return make_atlas(N, GENES)


def write(cells, path, **options):
    getattr(cells, "write_zarr" if path.suffix == ".zarr" else "write_h5ad")(path, **options)
    return path


def number(pattern, text):
    found = re.search(pattern, text)
    assert found, text
    return float(found[1].replace(",", ""))


def rewritten(path, name, **options):
    """The same array, stored otherwise."""
    with h5py.File(path, "r+") as file:
        values = file[name][...]
        del file[name]
        file.create_dataset(name, data=values, **options)


def measured(text, most):
    """The line on speed: of so many cells, at a rate above zero, of which the file has enough."""
    assert number(r"about ([\d,]+) cells/s are read and decoded", text) > 0
    assert 0 < number(r"measured on ([\d,]+) cells just now", text) <= most


# How a matrix lies


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"compression": "gzip"}, "gzip"),
        ({"compression": "gzip", "shuffle": True}, "shuffle + gzip"),
        ({"compression": "lzf", "fletcher32": True}, "lzf + fletcher32"),
        ({}, "not compressed"),
    ],
)
def test_chunks_and_codecs(cells, tmp_path, options, name):
    path = write(cells, tmp_path / "a.h5ad")
    for part in ("X/data", "X/indices"):
        rewritten(path, part, chunks=(700,), **options)
    text = describe(path)
    each = 700 * N / cells.X.nnz
    assert f"data and indices: chunks of 700, {each:.1f} cells each, {name}\n" in text
    with h5py.File(path) as file:
        size = sum(file[f"X/{part}"].id.get_storage_size() for part in ("data", "indices", "indptr"))
    assert f"CSR: data float32, indices int32; {size / N:,.0f} bytes a cell on disk" in text
    assert "read directly, by C++ threads" in text
    measured(text, N)


def test_arrays_that_differ(cells, tmp_path):
    path = write(cells, tmp_path / "a.h5ad")
    rewritten(path, "X/data", dtype="i2")
    rewritten(path, "X/indices", chunks=(500,), compression="gzip")
    text = describe(path)
    assert "data int16, indices int32" in text
    assert "    data: contiguous, not compressed\n" in text
    assert re.search(r"    indices: chunks of 500, \d+\.\d cells each, gzip\n", text)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:(Writing zarr v2|zarr v3|Consolidated)")
def test_zarr(cells, tmp_path, zarr_format):
    if not _csr.codecs()["blosc" if zarr_format == 2 else "zstd"]:
        pytest.skip("built without this codec")
    with ad.settings.override(zarr_write_format=zarr_format):
        path = write(cells, tmp_path / "a.zarr", chunks=None)
    form = form_of(path, "X")
    array = zarr.open_group(path)["X/data"]
    assert form.arrays["data"].chunks == array.chunks
    files = [file for part in ("data", "indices", "indptr") for file in (path / "X" / part).rglob("*")]
    assert form.stored_bytes == sum(file.stat().st_size for file in files if file.is_file())
    assert {part.encoding for part in form.arrays.values()} == {"blosc (lz4)" if zarr_format == 2 else "zstd"}
    text = describe(path)
    assert "read directly" in text
    measured(text, N)


def test_chunks_within_shards(cells, tmp_path):
    path = scdd.write_csr(
        tmp_path / "a.zarr", [cells.X], obs=cells.obs, var=cells.var, compression="lz4", chunk_elements=800,
        shard_elements=8_000,
    )  # fmt: skip
    assert re.search(r"data and indices: chunks of 800, \d+\.\d cells each, blosc \(lz4\)\n", describe(path))


def test_dense(cells, tmp_path):
    dense = cells.copy()
    dense.X = cells.X.toarray()
    path = write(dense, tmp_path / "a.h5ad")
    rewritten(path, "X", chunks=(40, 60), compression="gzip")
    with h5py.File(path, "r+") as file:
        file["X"].attrs["encoding-type"], file["X"].attrs["encoding-version"] = "array", "0.2.0"
    text = describe(path)
    assert "values: chunks of 40 x 60, 40.0 cells each, gzip" in text
    assert "one thread at a time: dense" in text
    measured(text, N)


def test_tenx_h5_lies_by_cells(cells, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for part in ("data", "indices", "indptr"):
            group.create_dataset(part, data=getattr(cells.X, part), chunks=(300,), compression="gzip")
        group["shape"] = np.array(cells.X.T.shape)
        group["barcodes"] = np.array(cells.obs_names, "S")
        for part in ("id", "name"):
            group[f"features/{part}"] = np.array(cells.var_names, "S")
    text = describe(path)
    assert "    CSR: " in text
    assert f"chunks of 300, {300 * N / cells.X.nnz:.1f} cells each, gzip" in text
    assert "read directly" in text


def test_text_is_read_whole(cells, tmp_path):
    io.mmwrite(tmp_path / "matrix.mtx", cells.X.T.tocoo(), field="integer")
    for table, names in (("barcodes", cells.obs_names), ("genes", cells.var_names)):
        (tmp_path / f"{table}.tsv").write_text("".join(f"{name}\t{name}\n" for name in names))
    text = describe(tmp_path)
    assert "read whole into memory on opening" in text
    assert "MB): text" in text
    assert f"{8 * cells.X.nnz / 1e6:.1f} MB" in text


def test_packed_folder(cells, tmp_path):
    packed = scdd.pack(scdd.Atlas(cells), tmp_path / "a.packed", progress=False)
    text = describe(packed.path)
    size = sum(file.stat().st_size for file in packed.path.glob("[rto]*"))
    assert number(r"packed, ([\d,]+) bytes a cell", text) == round(size / N)
    assert "truly random order" in text
    measured(text, N)


# What only h5py can read, and columns


def test_the_reason_for_the_slow_way_is_given(cells, tmp_path):
    path = write(cells, tmp_path / "a.h5ad")
    rewritten(path, "X/indices", chunks=(500,), scaleoffset=0)
    text = describe(path)
    assert "scaleoffset" in text
    assert "read slowly, one thread at a time: " in text
    assert "written with gzip, zstd" in text
    assert "decoded on one thread" in text
    measured(text, N)


@pytest.fixture
def by_columns(cells, tmp_path):
    turned = cells.copy()
    turned.X = cells.X.tocsc()
    return write(turned, tmp_path / "a.h5ad", compression="gzip")


def test_small_csc(by_columns):
    text = describe(by_columns)
    assert "    CSC: data float32" in text
    assert "cells each" not in text
    assert "rows cannot be read from columns" in text
    assert "read whole into memory" in text


def test_large_csc_is_not_converted_to_be_looked_at(cells, by_columns, monkeypatch):
    monkeypatch.setattr(matrix, "_LARGEST_CSC", 0)
    monkeypatch.setattr(TranscodedRows, "_convert", lambda self: pytest.fail("converted"))
    text = describe(by_columns, label="cell_type")
    assert "whole numbers" in text
    assert "scdd converts it once" in text
    assert f"folder of about {2 * cells.X.nnz / 1e6:,.0f} MB" in text
    assert "measured on " in text
    assert "type 1: 300" in text


# What is predicted


@pytest.mark.filterwarnings("ignore:batches are mixed badly")
def test_mixing_is_that_of_the_loader(make_atlas, tmp_path, monkeypatch):
    atlas = make_atlas(8_000, 60)
    order = np.argsort(atlas.obs["cell_type"].to_numpy(dtype=str), kind="stable")
    path = scdd.write_csr(
        tmp_path / "a.h5ad", [atlas.X[order]], obs=atlas.obs.iloc[order], var=atlas.var, chunk_elements=2_048
    )
    limit = 3_000_000
    monkeypatch.setattr(survey, "_MEMORY", limit)
    text = describe(path)
    loader = scdd.CellLoader(
        scdd.Atlas(path), batch_size=512, memory_limit=limit, genes=["GENE1"], workers=1, preload=0
    )
    plan = loader.plan()
    assert plan.variance_inflation > 1.05, "else this shows nothing"
    assert f"variance inflation of {plan.variance_inflation:.2f}:" in text
    assert f"blocks of {plan.block_size:.0f} cells" in text
    assert f"two windows of {plan.window:,} cells" in text
    assert number(r"cells in ([\d,]+) MiB", text) == round(2 * plan.window_bytes / 2**20)


def test_the_size_of_the_packed_folder(make_atlas, tmp_path):
    path = write(make_atlas(8_000), tmp_path / "a.h5ad", compression="gzip")
    packed = scdd.pack(scdd.Atlas(path), tmp_path / "a.packed", progress=False)
    size = sum((packed.path / name).stat().st_size for name in ("rows.bin", "offsets.npy")) / 1e6
    assert number(r"for about ([\d,.]+) MB", describe(path)) == pytest.approx(size, abs=0.08)


class Clock:
    """Time that passes only where rows are read: ``wall`` a cell, of which threads work a share."""

    def __init__(self, n_obs, wall, share):
        self.shape, self.share = (n_obs, 5), share
        self.now, self.seen = 0.0, []
        self.layouts = ("data", "indices")
        self.wall_at = lambda seen: wall

    def rows(self, rows, *, threads):
        self.now += self.wall_at(len(self.seen)) * len(rows)
        self.seen.extend(rows)
        self.threads = threads
        return sparse.csr_matrix((len(rows), 5), dtype=np.float32), None

    def perf_counter(self):
        return self.now

    def process_time(self):
        return self.now * self.share * self.threads if self.seen else 0.0


@pytest.mark.parametrize("wall", [1e-5, 1e-3, 0.02])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_measurement_is_short_and_says_what_it_saw(monkeypatch, wall, share):
    clock = Clock(1_000_000, wall, share)
    monkeypatch.setattr(reading_speed, "time", SimpleNamespace(**{
        name: getattr(clock, name) for name in ("perf_counter", "process_time")
    }))  # fmt: skip
    edges = np.arange(0, 1_000_001, 4)
    speed, _ = reading_speed.reading_speed(clock, edges)
    assert speed.cells == len(clock.seen) == len(set(clock.seen))
    assert speed.blocks == speed.cells / 4
    assert 0.3 <= speed.seconds <= 0.7
    assert speed.cells / speed.seconds == pytest.approx(1 / wall)
    assert speed.busy == pytest.approx(share)
    waits = "waiting" in survey._limit(speed, clock, None)
    assert waits == (share < 0.6)
    assert f"about {1 / wall:,.0f} cells/s" in str(speed)
    assert speed.unhindered == pytest.approx(1 / wall / share, rel=0.05)
    spread = np.diff(np.sort(clock.seen)).max()
    assert spread > 4, "blocks lie apart"


def test_blocks_that_happen_to_be_fast_do_not_make_it_long(monkeypatch):
    clock = Clock(1_000_000, 1e-3, 1.0)
    clock.wall_at = lambda seen: 1e-9 if seen < 100 else 1e-3
    monkeypatch.setattr(reading_speed, "time", clock)
    speed, _ = reading_speed.reading_speed(clock, np.arange(1_000_001))
    assert 0.3 <= speed.seconds <= 0.7


def test_a_block_of_any_length_is_read_in_part(monkeypatch):
    clock = Clock(10**9, 1e-5, 1.0)
    monkeypatch.setattr(reading_speed, "time", clock)
    speed, _ = reading_speed.reading_speed(clock, np.array([0, 10**9]))
    assert speed.cells <= 5_000


# Odd files


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_an_empty_atlas(cells, tmp_path, kind):
    nothing = cells[:0].copy()
    if kind == "dense":
        nothing.X = np.zeros((0, GENES), dtype=np.float32)
    assert "0 cells" in describe(write(nothing, tmp_path / "a.h5ad"))


@pytest.mark.parametrize("values", ["scaled", "log1p", "none"])
def test_other_values_and_no_values(cells, tmp_path, values):
    changed = cells.copy()
    changed.X = {
        "scaled": lambda: sparse.csr_matrix(cells.X.toarray() - 1.0),
        "log1p": cells.X.log1p,
        "none": lambda: sparse.csr_matrix(cells.X.shape, dtype=np.float32),
    }[values]()
    measured(describe(write(changed, tmp_path / "a.h5ad")), N)


def test_every_matrix_has_its_own(cells, tmp_path):
    more = cells.copy()
    more.layers["counts"] = cells.X.astype("u2")
    more.raw = cells
    more.X = cells.X.log1p().toarray()
    text = describe(write(more, tmp_path / "a.h5ad"))
    assert re.search(r"X: 60 genes, looks like log1p.*\n    dense: values float", text)
    assert re.search(r"layers/counts: 60 genes, holds whole numbers\n    CSR: data uint16", text)
    assert re.search(r"raw/X: 60 genes, holds whole numbers\n    CSR: data float32", text)


def test_other_features_are_left_out(cells, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(cells.X, part)
        group["shape"], group["barcodes"] = np.array(cells.X.T.shape), np.array(cells.obs_names, "S")
        for part in ("id", "name"):
            group[f"features/{part}"] = np.array(cells.var_names, "S")
        types = ["Gene Expression"] * 50 + ["Antibody Capture"] * 10
        group["features/feature_type"] = np.array(types, "S")
    text = describe(path)
    assert "X: 50 genes" in text
    assert "data and indices: contiguous, not compressed" in text
    measured(text, N)


def test_no_such_label(h5ad):
    with pytest.raises(InputError, match=r"no column 'celltype'.*cell_type"):
        describe(h5ad, label="celltype")


def test_missing_labels_are_not_counted(cells, tmp_path):
    changed = cells.copy()
    changed.obs["cell_type"] = pd.Series(["b", None] * (N // 2), index=cells.obs_names)
    said = describe(write(changed, tmp_path / "a.h5ad"), label="cell_type")
    assert f"    b: {N // 2}\n    (no label): {N // 2}" in said
    changed.obs["cell_type"] = ["b", ""] * (N // 2)
    said = describe(write(changed, tmp_path / "b.h5ad"), label="cell_type")
    assert f"    '': {N // 2}" in said
    assert "no label" not in said


def test_a_table_without_columns(cells, tmp_path):
    bare = cells.copy()
    bare.obs = bare.obs[[]]
    assert describe(write(bare, tmp_path / "a.h5ad")).endswith("  obs columns: none")


def test_a_folder_of_10x_files_names_them(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.h5").touch()
    with pytest.raises(
        DataFileError, match=r"name its \.h5 files \(a\.h5, b\.h5, c\.h5, \.\.\.\), one or a list"
    ):
        describe(tmp_path)


# What an atlas would refuse, leave out or rename


def test_genes_that_are_there_twice_are_shown(cells, tmp_path):
    twice = cells.copy()
    twice.var_names = ["GENE7", *twice.var_names[1:]]
    said = describe(write(twice, tmp_path / "a.h5ad"))
    assert "1 duplicated gene names, e.g. 'GENE7'; make them unique first" in said
    assert "duplicated" not in describe(write(cells, tmp_path / "b.h5ad"))


def test_other_features_of_10x_are_shown(tmp_path):
    counts = sparse.csc_matrix(np.random.default_rng(0).poisson(1.0, (4, 30)))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(counts, name)
        group["shape"], group["barcodes"] = (
            np.array(counts.shape),
            np.array([f"c{i}" for i in range(30)], "S"),
        )
        features = group.create_group("features")
        features["id"], features["name"] = np.array(list("abcd"), "S"), np.array(["A", "B", "B", "CD3"], "S")
        features["feature_type"] = np.array([*["Gene Expression"] * 3, "Antibody Capture"], "S")
    said = describe(tmp_path / "a.h5")
    assert "a.h5: only Gene Expression is read; left out: 1 Antibody Capture" in said
    assert "1 repeated gene symbols got a number" in said
    assert "X: 3 genes" in said


def test_a_folder_is_described_file_by_file_and_says_what_is_left_out(cells, tmp_path):
    write(cells[:500], tmp_path / "a.h5ad"), write(cells[500:], tmp_path / "b.zarr")
    assert "of the folder" not in describe(tmp_path)
    (tmp_path / "raw.h5").touch()
    said = describe(tmp_path)
    assert f"{tmp_path / 'a.h5ad'}: 500 cells" in said
    assert f"{tmp_path / 'b.zarr'}: 400 cells" in said
    note = f"of the folder {tmp_path} only .h5ad and .zarr are read, not raw.h5: they may hold the same cells"
    assert note in said
    notes = scdd.Atlas(tmp_path).notes()
    assert [line for line in notes if line.startswith(note)]
    assert not [line for line in scdd.Atlas(tmp_path / "a.h5ad").notes() if "folder" in line]
