"""Atlases over every kind of source read the same cells, and bad input is named."""

from __future__ import annotations

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scdd
from scdd.errors import DataFileError, InputError


def _written(adata, tmp_path, kind):
    adata = adata.copy()
    if kind == "dense":
        adata.X = adata.X.toarray()
    if kind == "csc":
        adata.X = sparse.csc_matrix(adata.X)
    path = tmp_path / f"{kind}.{'zarr' if kind == 'zarr' else 'h5ad'}"
    adata.write_zarr(path) if kind == "zarr" else adata.write_h5ad(path, compression="gzip")
    return path


@pytest.mark.parametrize("kind", ["csr", "csc", "dense", "zarr", "memory", "backed"])
def test_every_source_reads_the_same_rows(adata, tmp_path, kind):
    if kind == "memory":
        atlas = scdd.Atlas(adata)
    elif kind == "backed":
        atlas = scdd.Atlas(ad.read_h5ad(_written(adata, tmp_path, "csr"), backed="r"))
    else:
        atlas = scdd.Atlas(_written(adata, tmp_path, kind))
    rows = np.array([5, 3, 3, 200, 0, 4, 239])
    np.testing.assert_array_equal(atlas.read(rows).toarray(), adata.X[rows].toarray())
    np.testing.assert_array_equal(
        np.concatenate([block.toarray() for _, block in atlas.blocks(37)]), adata.X.toarray()
    )
    assert atlas.shape == adata.shape
    assert list(atlas.obs["cell_type"]) == list(adata.obs["cell_type"])


def test_a_list_of_sources_aligns_genes_by_name(adata, tmp_path):
    first, second = adata[:100, :40].copy(), adata[100:, 20:][:, ::-1].copy()
    path = tmp_path / "second.h5ad"
    second.write_h5ad(path)
    inner = scdd.Atlas([first, path])
    assert list(inner.var_names) == list(adata.var_names[20:40])
    np.testing.assert_array_equal(inner.read(np.arange(240)).toarray(), adata.X[:, 20:40].toarray())
    outer = scdd.Atlas([first, path], join="outer")
    whole = pd.DataFrame(outer.read(np.arange(240)).toarray(), columns=outer.var_names)[adata.var_names]
    expected = adata.X.toarray().copy()
    expected[:100, 40:] = 0
    expected[100:, :20] = 0
    np.testing.assert_array_equal(whole.to_numpy(), expected)
    assert outer.obs["source"].nunique() == 2


def test_a_folder_of_files_is_one_atlas(adata, tmp_path):
    adata[:50].copy().write_h5ad(tmp_path / "a.h5ad")
    adata[50:].copy().write_h5ad(tmp_path / "b.h5ad")
    np.testing.assert_array_equal(scdd.Atlas(tmp_path).read([49, 50]).toarray(), adata.X[49:51].toarray())


def test_counts_are_found_beside_scaled_data(adata):
    adata.raw = adata.copy()
    adata.X = np.random.default_rng(0).standard_normal(adata.shape).astype("f4")
    assert scdd.Atlas(adata).layer == "raw/X"
    adata.layers["counts"] = adata.raw.X
    assert scdd.Atlas(adata).layer == "layers/counts"


def test_log_data_is_refused_where_counts_are_wanted(adata):
    adata.X = adata.X.log1p()
    with pytest.raises(InputError, match=r"log1p.*--expression log1p"):
        scdd.Atlas(adata)
    assert scdd.Atlas(adata, expression="log1p").expression == "log1p"
    assert scdd.Atlas(adata, expression="auto").expression == "log1p"


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda x: -x, "negative"), (lambda x: x * 40.3, "fractional"), (lambda x: x * np.nan, "NaN")],
)
def test_values_of_the_wrong_kind_are_named(adata, change, message):
    adata.X.data = change(adata.X.data)
    with pytest.raises(InputError, match=message):
        scdd.Atlas(adata)


def test_a_bad_value_outside_the_sample_is_caught_when_read(adata, monkeypatch):
    monkeypatch.setattr("scdd.data.expression._SAMPLED_ROWS", 8)
    adata.X[100, 3] = 2.5
    atlas = scdd.Atlas(adata)
    with pytest.raises(InputError, match="not counts"):
        atlas.read(np.arange(90, 110))


def test_files_that_cannot_be_read(h5ad, tmp_path):
    with pytest.raises(DataFileError, match="does not exist"):
        scdd.Atlas(tmp_path / "none.h5ad")
    short = tmp_path / "short.h5ad"
    short.write_bytes(h5ad.read_bytes()[: h5ad.stat().st_size // 2])
    with pytest.raises(DataFileError, match="not a readable h5ad"):
        scdd.Atlas(short)
    text = tmp_path / "text.h5ad"
    text.write_text("gene,cell\n")
    with pytest.raises(DataFileError, match="not a readable h5ad"):
        scdd.Atlas(text)
    (tmp_path / "folder.zarr").mkdir()
    with pytest.raises(DataFileError, match="zarr"):
        scdd.Atlas(tmp_path / "folder.zarr")


@pytest.mark.parametrize("fault", ["column", "indptr", "length"])
def test_a_corrupt_matrix_is_an_error_not_wrong_cells(h5ad, fault):
    with h5py.File(h5ad, "r+") as file:
        if fault == "column":
            file["X/indices"][5] = 10_000
        elif fault == "indptr":
            file["X/indptr"][3] = 0
        else:
            del file["X/data"]
            file["X/data"] = np.ones(3, dtype="f4")
    with pytest.raises(DataFileError, match="corrupt"):
        scdd.Atlas(h5ad).read(np.arange(10))


def test_duplicated_genes_empty_atlases_and_disjoint_genes(adata):
    twice = adata.copy()
    twice.var_names = ["GENE0", *adata.var_names[1:-1], "GENE0"]
    with pytest.raises(InputError, match=r"duplicated gene names.*GENE0.*var_names_make_unique"):
        scdd.Atlas(twice)
    with pytest.raises(InputError, match="no cells"):
        scdd.Atlas(adata[:0].copy())
    with pytest.raises(InputError, match="no genes"):
        scdd.Atlas(adata[:, :0].copy())
    other = adata.copy()
    other.var_names = [f"ENSG{i}" for i in range(adata.n_vars)]
    with pytest.raises(InputError, match="zero genes in common"):
        scdd.Atlas([adata, other])


def test_labels(adata):
    atlas = scdd.Atlas(adata)
    codes, names = atlas.labels("cell_type")
    assert names == ["type 0", "type 1", "type 2"]
    assert [names[c] for c in codes[:4]] == ["type 0", "type 1", "type 2", "type 0"]
    with pytest.raises(InputError, match=r"no column 'type'.*cell_type"):
        atlas.labels("type")
    adata.obs.loc["cell_7", "cell_type"] = np.nan
    atlas = scdd.Atlas(adata)
    with pytest.raises(InputError, match=r"1 of 240 cells.*drop_unlabelled"):
        atlas.labels("cell_type")
    kept = atlas.drop_unlabelled("cell_type")
    assert kept.n_obs == 239
    assert "cell_7" not in kept.obs.index


def test_drop_rare(adata):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    adata.obs.iloc[0, 0] = "lonely"
    assert "lonely" not in scdd.Atlas(adata).drop_rare("cell_type", 2).labels("cell_type").names


def test_within_memory_reads_the_same_and_respects_its_limit(adata, h5ad):
    part = scdd.Atlas(h5ad).subset(np.arange(10, 200)[::-1])
    held = part.within_memory()
    assert held.in_memory is not None
    np.testing.assert_array_equal(held.read([0, 7]).toarray(), part.read([0, 7]).toarray())
    np.testing.assert_array_equal(held.read([0, 7]).toarray(), adata.X[[199, 192]].toarray())
    assert part.within_memory(limit=100) is part


def test_fingerprint_follows_the_data(adata):
    changed = adata.copy()
    changed.X[0, 0] += 1
    same, other = scdd.Atlas(adata.copy()), scdd.Atlas(changed)
    assert scdd.Atlas(adata).fingerprint() == same.fingerprint() != other.fingerprint()


def test_a_reordered_or_repeated_subset_is_not_taken_for_the_whole(adata):
    """`in_memory` once looked at the number of rows alone and handed out the wrong cells."""
    for rows in (np.arange(240)[::-1], np.zeros(240, dtype=int)):
        part = scdd.Atlas(adata).subset(rows)
        assert part.in_memory is None
        batch = next(iter(scdd.CellLoader(part, shuffle=False, batch_size=4, normalise=False)))
        np.testing.assert_array_equal(batch.x, adata.X[rows[:4]].toarray())


def test_auto_never_takes_a_layer_that_was_not_named(adata):
    """Spliced counts and 0/1 masks are whole numbers too, and were once taken for the counts."""
    adata.layers["spliced"] = adata.X.copy()
    adata.X = adata.X.log1p()
    with pytest.raises(InputError, match=r"--layer: layers/spliced"):
        scdd.Atlas(adata)
    assert scdd.Atlas(adata, layer="layers/spliced").expression == "counts"


def test_log_data_is_not_taken_for_fractional_counts(adata):
    logged = adata.copy()
    logged.X = logged.X.log1p()
    with pytest.raises(InputError, match=r"expression='log1p'"):
        scdd.Atlas(logged, expression="fractional")
    adata.X.data *= 1.37
    assert scdd.Atlas(adata, expression="fractional").expression == "fractional"


def test_the_loader_checks_what_lies_in_memory(monkeypatch, adata):
    monkeypatch.setattr("scdd.data.expression._SAMPLED_ROWS", 8)
    adata.X[100, 3] = np.nan
    with pytest.raises(InputError, match="NaN"):
        scdd.CellLoader(scdd.Atlas(adata))


def test_a_column_named_source_is_kept(adata):
    adata.obs["source"] = "clinic"
    joined = scdd.Atlas([adata, adata]).obs
    assert set(joined["source"]) == {"clinic"}
    assert joined["atlas_source"].nunique() == 2


def test_notes_name_a_scale_that_is_not_ten_thousand(adata):
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray() / adata.X.sum(1) * 3_000))
    notes = scdd.Atlas(adata, expression="log1p").notes()
    assert any("3,000 counts a cell" in note for note in notes)


@pytest.fixture
def three(adata, tmp_path):
    """Parts of one atlas with other genes, orders and categories: an h5ad, a zarr store and an AnnData."""
    parts = [adata[:70, :40], adata[70:150, 10:][:, ::-1], adata[150:, 5:50]]
    parts = [part.copy() for part in parts]
    for number, part in enumerate(parts):
        part.obs["batch"] = pd.Categorical([f"b{number}"] * part.n_obs)
        part.obs[f"only_{number}"] = float(number)
    parts[0].write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    parts[1].write_zarr(tmp_path / "b.zarr")
    return parts, [tmp_path / "a.h5ad", tmp_path / "b.zarr", parts[2]]


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_several_sources_are_what_anndata_concatenates(three, join):
    parts, sources = three
    atlas = scdd.Atlas(sources, join=join)
    expected = ad.concat(parts, join=join, fill_value=0)
    assert set(atlas.var_names) == set(expected.var_names)
    wanted = sparse.csr_matrix(expected[:, atlas.var_names].X)
    assert list(atlas.obs.index) == list(expected.obs.index)
    for rows in (np.arange(240), np.array([239, 0, 75, 75, 149, 150, 69, 70]), np.array([], dtype=int)):
        np.testing.assert_array_equal(atlas.read(rows).toarray(), wanted[rows].toarray())
    for column in ("cell_type", "donor", "batch"):
        assert atlas.obs[column].dtype == "category"
        assert list(atlas.obs[column]) == list(expected.obs[column])
    assert list(atlas.obs["batch"].cat.categories) == ["b0", "b1", "b2"]
    assert atlas.obs["only_1"].notna().sum() == 80
    assert list(atlas.obs["source"].value_counts(sort=False)) == [70, 80, 90]


@pytest.mark.filterwarnings("ignore:batches are mixed badly")
@pytest.mark.parametrize("join", ["inner", "outer"])
def test_a_loader_over_several_sources_delivers_what_anndata_concatenates(three, join):
    parts, sources = three
    atlas = scdd.Atlas(sources, join=join)
    wanted = sparse.csr_matrix(ad.concat(parts, join=join, fill_value=0)[:, atlas.var_names].X)
    met = []
    for batch in scdd.CellLoader(atlas, batch_size=32, window=96, normalise=False, labels="batch"):
        np.testing.assert_array_equal(batch.x, wanted[batch.row_ids].toarray())
        np.testing.assert_array_equal(batch.totals, batch.x.astype(np.float64).sum(1))  # of the atlas's genes
        np.testing.assert_array_equal(
            batch.codes["batch"], np.searchsorted([70, 150], batch.row_ids, "right")
        )
        met.append(batch.row_ids)
    np.testing.assert_array_equal(np.sort(np.concatenate(met)), np.arange(240))


def test_genes_may_be_given_and_those_missing_are_zero(adata, three):
    _, sources = three
    genes = ["GENE45", "GENE3", "GENE20", "GENE59", "nowhere"]
    atlas = scdd.Atlas(sources, genes=genes)
    assert list(atlas.var_names) == genes
    expected = np.zeros((240, 5), np.float32)
    columns = {"GENE45": 0, "GENE3": 1, "GENE20": 2, "GENE59": 3}
    known = [
        set(map(str, adata.var_names[:40])),
        set(map(str, adata.var_names[10:])),
        set(map(str, adata.var_names[5:50])),
    ]
    for number, rows in enumerate((slice(0, 70), slice(70, 150), slice(150, 240))):
        for gene, column in columns.items():
            if gene in known[number]:
                expected[rows, column] = adata.X[rows, int(gene[4:])].toarray().ravel()
    np.testing.assert_array_equal(atlas.read(np.arange(240)).toarray(), expected)
    for batch in scdd.CellLoader(atlas, batch_size=64, normalise=False):
        np.testing.assert_array_equal(batch.x, expected[batch.row_ids])
    notes = " ".join(atlas.notes())
    assert "a.h5ad lacks 3 genes, e.g. GENE45: they are zero in its cells" in notes
    assert "b.zarr lacks 2 genes, e.g. GENE3" in notes
    single = scdd.Atlas(sources[0], genes=["GENE7", "GENE2"])
    np.testing.assert_array_equal(single.read([3, 1]).toarray(), adata.X[[3, 1]][:, [7, 2]].toarray())
    for given, message in [
        ([], "empty"),
        (["GENE1", "GENE1"], "a gene twice"),
        (["x"], "no source has one of them"),
    ]:
        with pytest.raises(InputError, match=message):
            scdd.Atlas(sources, genes=given)


def test_notes_of_joined_sources(three):
    _, sources = three
    notes = " ".join(scdd.Atlas(sources).notes())
    assert "3 files share 30 genes; 30 others are left out, also of the totals of cells" in notes
    notes = " ".join(scdd.Atlas(sources, join="outer").notes())
    assert "a.h5ad lacks 20 genes, e.g. GENE40" in notes


def test_raw_counts_bring_the_genes_of_raw(adata, tmp_path):
    adata.raw = adata.copy()
    adata = adata[:, 20:30].copy()
    adata.X = np.random.default_rng(0).standard_normal(adata.shape).astype("f4")
    adata.write_h5ad(tmp_path / "a.h5ad")
    atlas = scdd.Atlas(tmp_path / "a.h5ad")
    assert atlas.layer == "raw/X"
    assert list(atlas.var_names) == list(adata.raw.var_names)
    np.testing.assert_array_equal(atlas.read([7, 3]).toarray(), adata.raw.X[[7, 3]].toarray())


@pytest.mark.parametrize("kind", ["csr", "csc", "dense", "zarr", "backed"])
def test_the_loader_reads_every_source(adata, tmp_path, kind):
    path = _written(adata, tmp_path, "csr" if kind == "backed" else kind)
    atlas = scdd.Atlas(ad.read_h5ad(path, backed="r") if kind == "backed" else path)
    for output in ("dense", "csr"):
        loader = scdd.CellLoader(atlas, batch_size=50, normalise=False, output=output)
        met = []
        for batch in loader:
            x = batch.x if output == "dense" else batch.x.toarray()
            np.testing.assert_array_equal(x, adata.X[batch.row_ids].toarray())
            met.append(batch.row_ids)
        np.testing.assert_array_equal(np.sort(np.concatenate(met)), np.arange(240))
