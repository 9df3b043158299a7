"""10x files and folders are read as cells x genes, without other features and without loading values."""

from __future__ import annotations

import gzip
import shutil

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import io, sparse

import scdd
from scdd.data.formats.chosen import ChosenColumns
from scdd.data.formats.matrix import StoredCsr
from scdd.data.source import open_source, store_of
from scdd.errors import DataFileError, InputError


@pytest.fixture
def counts():
    """30 cells x 12 features."""
    return sparse.csr_matrix(np.random.default_rng(0).poisson(0.7, (30, 12)).astype("i4"))


BARCODES = [f"ACGT{i}-1" for i in range(30)]
NAMES = [f"GENE{i}" for i in range(12)]
IDS = [f"ENSG{i:04d}" for i in range(12)]
EXPRESSION = ["Gene Expression"] * 12
MIXED = [
    *["Gene Expression"] * 5,
    "Antibody Capture",
    *["Gene Expression"] * 4,
    *["CRISPR Guide Capture"] * 2,
]


def _arrays(group, counts):
    by_barcode = counts.T.tocsc()  # features x barcodes, compressed by barcode
    group["data"], group["indices"] = by_barcode.data, by_barcode.indices.astype("i8")
    group["indptr"] = by_barcode.indptr.astype("i8")
    group["shape"] = np.array(by_barcode.shape, dtype="i4")
    group["barcodes"] = np.array(BARCODES, dtype="S18")


def _v3(path, counts, *, names=NAMES, types=EXPRESSION):
    with h5py.File(path, "w") as file:
        file.attrs["filetype"] = "matrix"
        _arrays(file.create_group("matrix"), counts)
        features = file["matrix"].create_group("features")
        features["id"], features["name"] = np.array(IDS, "S"), np.array(names, "S")
        features["genome"] = np.array(["GRCh38"] * 12, "S")
        if types is not None:
            features["feature_type"] = np.array(types, "S")
    return path


def _v2(path, counts, genomes=("hg19",)):
    with h5py.File(path, "w") as file:
        for genome in genomes:
            _arrays(file.create_group(genome), counts)
            file[genome]["genes"], file[genome]["gene_names"] = np.array(IDS, "S"), np.array(NAMES, "S")
    return path


def _folder(path, counts, *, prefix="", zipped=True, names=NAMES, types=EXPRESSION):
    """``types=None`` writes what Cell Ranger 2 wrote."""
    path.mkdir(exist_ok=True)
    table = "genes" if types is None else "features"
    columns = (IDS, names) if types is None else (IDS, names, types)
    io.mmwrite(path / f"{prefix}matrix.mtx", counts.T.tocoo(), field="integer")
    (path / f"{prefix}{table}.tsv").write_text(
        "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True))
    )
    (path / f"{prefix}barcodes.tsv").write_text("".join(f"{barcode}\n" for barcode in BARCODES))
    if zipped:
        for part in list(path.glob(f"{prefix}*")):
            part.with_name(f"{part.name}.gz").write_bytes(gzip.compress(part.read_bytes()))
            part.unlink()
    return path


def _write(kind, tmp_path, counts):
    return {
        "v3": lambda: _v3(tmp_path / "a.h5", counts),
        "v3 without types": lambda: _v3(tmp_path / "a.h5", counts, types=None),
        "v2": lambda: _v2(tmp_path / "a.h5", counts),
        "mtx": lambda: _folder(tmp_path / "sample", counts, zipped=False),
        "mtx.gz": lambda: _folder(tmp_path / "sample", counts),
        "genes": lambda: _folder(tmp_path / "sample", counts, types=None, zipped=False),
        "prefix": lambda: _folder(tmp_path / "sample", counts, prefix="GSM1_"),
    }[kind]()


@pytest.mark.parametrize("kind", ["v3", "v3 without types", "v2", "mtx", "mtx.gz", "genes", "prefix"])
def test_every_kind_is_read_as_cells_by_genes(tmp_path, counts, kind):
    atlas = scdd.Atlas(_write(kind, tmp_path, counts))
    assert atlas.shape == (30, 12)
    assert list(atlas.obs.index) == BARCODES
    assert list(atlas.var_names) == NAMES
    rows = np.array([3, 29, 0, 3])
    np.testing.assert_array_equal(atlas.read(rows).toarray(), counts[rows].toarray())


def test_the_values_of_a_file_are_not_loaded(tmp_path, counts):
    assert isinstance(store_of(_v3(tmp_path / "a.h5", counts)).layers["X"](), StoredCsr)


@pytest.mark.parametrize("kind", ["h5", "mtx"])
def test_only_gene_expression_is_offered(tmp_path, counts, kind):
    if kind == "h5":
        path = _v3(tmp_path / "a.h5", counts, types=MIXED)
    else:
        path = _folder(tmp_path / "sample", counts, types=MIXED)
    source = open_source(path, layer="auto", expression="counts")
    kept = [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert isinstance(source.matrix, ChosenColumns)
    np.testing.assert_array_equal(source.matrix.columns, kept)
    assert list(source.var_names) == [NAMES[i] for i in kept]
    (note,) = source.notes
    assert "2 CRISPR Guide Capture, 1 Antibody Capture" in note
    atlas = scdd.Atlas(path)
    np.testing.assert_array_equal(atlas.read(np.arange(30)).toarray(), counts[:, kept].toarray())
    for batch in scdd.CellLoader(atlas, shuffle=False, batch_size=7, normalise=False):
        np.testing.assert_array_equal(batch.x, counts[batch.row_ids][:, kept].toarray())
    with pytest.raises(InputError, match="holds Antibody Capture but no Gene Expression"):
        scdd.Atlas(_v3(tmp_path / "b.h5", counts, types=["Antibody Capture"] * 12))


def test_repeated_symbols_become_unique_as_in_scanpy(tmp_path, counts):
    names = ["A", "B", "A", "NA", "A-1", *NAMES[5:11], "A"]
    store = store_of(_v3(tmp_path / "a.h5", counts, names=names))
    with pytest.warns(UserWarning, match="Suffix used"):
        expected = ad.utils.make_index_unique(pd.Index(names))
    assert list(store.var_names["X"]) == list(expected)
    assert "2 repeated gene symbols" in store.notes[0]
    assert list(store_of(_folder(tmp_path / "s", counts, names=names)).var_names["X"]) == list(expected)


def test_a_feature_without_a_symbol_goes_by_its_id(tmp_path, counts):
    store = store_of(_folder(tmp_path / "s", counts, names=["", '5" end', *NAMES[2:]]))
    assert list(store.var_names["X"][:3]) == ["ENSG0000", '5" end', "GENE2"]


def test_several_genomes_are_refused(tmp_path, counts):
    with pytest.raises(InputError, match=r"2 genomes \(hg19, mm10\).*scanpy\.read_10x_h5"):
        scdd.Atlas(_v2(tmp_path / "a.h5", counts, genomes=("hg19", "mm10")))


def test_several_samples_in_a_folder_are_named_one_by_one(tmp_path, counts):
    other = counts.copy()
    other.data += 1
    folder = _folder(tmp_path / "geo", counts, prefix="GSM1_")
    _folder(tmp_path / "geo", other, prefix="GSM2_")
    with pytest.raises(InputError, match=r"2 samples.*GSM1_matrix\.mtx"):
        scdd.Atlas(folder)
    atlas = scdd.Atlas(folder / "GSM2_matrix.mtx.gz")
    np.testing.assert_array_equal(atlas.read(np.arange(30)).toarray(), other.toarray())


@pytest.mark.parametrize("part", ["data", "indices", "indptr", "shape", "barcodes", "features/name"])
def test_an_h5_with_a_missing_part(tmp_path, counts, part):
    path = _v3(tmp_path / "a.h5", counts)
    with h5py.File(path, "r+") as file:
        del file["matrix"][part]
    with pytest.raises(
        DataFileError, match=r"a\.h5(: matrix cannot be read| is not a complete).*copy .*again"
    ):
        scdd.Atlas(path)


@pytest.mark.parametrize("part", ["barcodes", "features/name", "features/feature_type", "shape"])
def test_an_h5_with_a_part_of_another_length(tmp_path, counts, part):
    path = _v3(tmp_path / "a.h5", counts)
    with h5py.File(path, "r+") as file:
        values = file["matrix"][part][...]
        del file["matrix"][part]
        file["matrix"][part] = values[:-1]
    with pytest.raises(DataFileError, match=r"a\.h5 is (corrupt|not a complete 10x file)"):
        scdd.Atlas(path)


def test_an_h5_with_parts_of_another_type_or_a_corrupt_matrix(tmp_path, counts):
    path = _v3(tmp_path / "a.h5", counts)
    with h5py.File(path, "r+") as file:
        file["matrix/indptr"][2] = 10**6
    with pytest.raises(DataFileError, match="corrupt"):
        scdd.Atlas(path)
    path = _v3(tmp_path / "b.h5", counts)
    with h5py.File(path, "r+") as file:
        del file["matrix/barcodes"]
        file["matrix/barcodes"] = np.arange(30)
    with pytest.raises(DataFileError, match="not a complete 10x file"):
        scdd.Atlas(path)


def test_an_h5_that_is_an_anndata_or_nothing_of_ours(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    shutil.copy(tmp_path / "a.h5ad", tmp_path / "a.h5")
    assert scdd.Atlas(tmp_path / "a.h5").shape == adata.shape
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["matrix"] = np.ones(3)
    with pytest.raises(DataFileError, match="AnnData"):
        scdd.Atlas(tmp_path / "b.h5")


@pytest.mark.parametrize("part", ["features.tsv.gz", "barcodes.tsv.gz"])
def test_a_folder_with_a_missing_part(tmp_path, counts, part):
    folder = _folder(tmp_path / "s", counts)
    (folder / part).unlink()
    with pytest.raises(DataFileError, match=part.split(".")[0]):
        scdd.Atlas(folder)


@pytest.mark.parametrize("part", ["features.tsv.gz", "barcodes.tsv.gz", "matrix.mtx.gz"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_folder_with_a_damaged_part(tmp_path, counts, part, damage):
    path = _folder(tmp_path / "s", counts) / part
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-20], "empty": b"", "text": b"not gzip"}[damage])
    with pytest.raises(DataFileError, match=rf"{part}.*again"):
        scdd.Atlas(path.parent)


@pytest.mark.parametrize("part", ["features.tsv", "barcodes.tsv", "matrix.mtx"])
def test_a_folder_with_a_shortened_part(tmp_path, counts, part):
    path = _folder(tmp_path / "s", counts, zipped=False) / part
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(DataFileError, match=r"matrix\.mtx is (12 x 30 for|truncated)"):
        scdd.Atlas(path.parent)


def test_a_turned_matrix_is_named(tmp_path, counts):
    folder = _folder(tmp_path / "s", counts, zipped=False)
    io.mmwrite(folder / "matrix.mtx", counts.tocoo(), field="integer")
    with pytest.raises(DataFileError, match="30 x 12 for 12 features and 30 barcodes; it is turned"):
        scdd.Atlas(folder)


def test_an_index_outside_the_matrix(tmp_path, counts):
    folder = _folder(tmp_path / "s", counts, zipped=False)
    text = (folder / "matrix.mtx").read_text().splitlines()
    text[-1] = "13 1 1"
    (folder / "matrix.mtx").write_text("\n".join(text) + "\n")
    with pytest.raises(DataFileError, match="damaged"):
        scdd.Atlas(folder)


def test_tenx_beside_other_sources(tmp_path, counts, adata):
    """Genes are aligned by name, whatever the file they come from."""
    path = _v3(tmp_path / "a.h5", counts, types=MIXED)
    joined = scdd.Atlas([path, adata])
    shared = [name for name, kind in zip(NAMES, MIXED, strict=True) if kind == "Gene Expression"]
    assert set(joined.var_names) == set(shared)
    np.testing.assert_array_equal(
        joined.read([0, 30]).toarray(),
        np.vstack(
            [
                counts[0].toarray()[:, [NAMES.index(name) for name in joined.var_names]],
                adata[0, joined.var_names].X.toarray(),
            ]
        ),
    )
