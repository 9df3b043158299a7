"""What is said of values that are not what they should be: which row, which cell, which gene."""

from __future__ import annotations

import warnings
from functools import partial

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import scdd
from scdd.data.expression import Faults, faults_of
from scdd.errors import InputError


def _with(adata: ad.AnnData, row: int, value: float) -> ad.AnnData:
    x = adata.X.tolil()
    x[row, 3] = value
    adata.X = sparse.csr_matrix(x)
    return adata


@pytest.mark.parametrize("expression", ["counts", "log1p", "fractional", "auto"])
@pytest.mark.parametrize(
    ("value", "said"),
    [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity"), (-2.0, "negative values")],
)
def test_opening_names_the_first_row_and_its_cell(adata, tmp_path, value, said, expression):
    _with(_with(adata, 230, value), 117, value).write_h5ad(tmp_path / "a.h5ad")
    for source in (adata, tmp_path / "a.h5ad"):
        with pytest.raises(InputError, match=rf"{said}.*first seen in row 117 \(cell 'cell_117'\)"):
            scdd.Atlas(source, expression=expression)


@pytest.mark.parametrize("top", [3.0, 900.0])
def test_opening_names_the_first_fraction_among_counts(adata, tmp_path, top):
    _with(_with(adata, 0, top), 117, 1.5).write_h5ad(tmp_path / "a.h5ad")
    for source in (adata, tmp_path / "a.h5ad"):
        with pytest.raises(InputError, match=r"first fraction in row 117 \(cell 'cell_117'\)"):
            scdd.Atlas(source)
    adata.X = adata.X * 0.5
    with pytest.raises(InputError) as error:
        scdd.Atlas(adata)
    assert "first fraction" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, -1.0, 0.5])
def test_reading_names_the_row_and_its_cell(make_atlas, tmp_path, value):
    """Rows that the look on opening does not see."""
    adata = _with(make_atlas(3_000, 20), 300, value)
    adata.write_h5ad(tmp_path / "a.h5ad")
    for source in (adata, tmp_path / "a.h5ad"):
        atlas = scdd.Atlas(source)
        with pytest.raises(InputError, match=r"X, row 300 \(cell 'cell_300'\), "):
            list(scdd.CellLoader(atlas, batch_size=64))
        with pytest.raises(InputError, match=r"X, row 300 \(cell 'cell_300'\), "):
            list(atlas.blocks())


def test_faults_are_the_first_rows():
    x = np.zeros((6, 4))
    x[1, 0], x[1, 1], x[2, 3], x[4, 0], x[5, 1] = 1, 0.5, -3, np.inf, np.nan
    assert faults_of(sparse.csr_matrix(x), np.arange(10, 70, 10)) == Faults(60, 50, 30, 20)
    assert faults_of(sparse.csr_matrix(np.eye(3)), np.arange(3)) == Faults()
    assert faults_of(sparse.csr_matrix(x[:2]), np.arange(2)) == Faults(fractional=1)


def _warned(act) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    ours = [w for w in caught if str(w.message).startswith(("AnnData: ", "a.h5ad: ", "obs[", "no cell"))]
    assert all(w.filename == __file__ for w in ours), "the user's line, not one of ours"
    return [str(w.message) for w in ours]


def _use(source, **options) -> None:
    atlas = scdd.Atlas(source)
    for _ in range(2):
        list(atlas.blocks())
        list(scdd.CellLoader(atlas, batch_size=64, **options))
    atlas.within_memory()
    list(atlas.subset(np.arange(50)).within_memory().blocks())


@pytest.mark.parametrize("dtype", [bool, np.float32, np.int64])
def test_a_mask_is_no_counts(adata, tmp_path, dtype):
    adata.layers["spliced"] = adata.X.copy()
    adata.X = (adata.X > 0).astype(dtype)
    adata.write_h5ad(tmp_path / "a.h5ad")
    for source in (adata, tmp_path / "a.h5ad"):
        (said,) = _warned(partial(_use, source))
        assert "X holds only 0 and 1, in " in said
        assert "pass layer= (--layer); there are layers/spliced" in said
        assert not _warned(partial(scdd.Atlas, source, layer="layers/spliced"))
    del adata.layers["spliced"]
    assert "read the file that holds the counts" in _warned(lambda: scdd.Atlas(adata))[0]


def test_few_or_shallow_counts_are_no_mask(adata):
    few = ad.AnnData(sparse.csr_matrix(np.eye(60, dtype=np.float32)), var=adata.var)
    shallow = adata.copy()
    shallow.X = (shallow.X > 0).astype(np.float32)
    shallow.X.data[7] = 2
    for source in (adata, few, shallow):
        assert not _warned(partial(_use, source))


@pytest.mark.parametrize("stored", ["memory", "file"])
@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.int32])
def test_counts_that_float32_rounds_are_named_once(make_atlas, tmp_path, dtype, stored):
    source = make_atlas(3_000, 20)
    source.X = source.X.astype(dtype)
    for row in (7, 300, 301):  # the look on opening sees the first and not the others
        changed = source.copy()
        changed.X[row, 3] = 2**24 + 1
        changed.write_h5ad(tmp_path / "a.h5ad")
        (said,) = _warned(partial(_use, changed if stored == "memory" else tmp_path / "a.h5ad"))
        assert f"X, row {row} (cell 'cell_{row}'), gene 'GENE3' holds 16,777,216: " in said
    source.X[7, 3] = 2**24 - 1
    assert not _warned(lambda: _use(source))


def test_a_rounded_count_in_memory_is_found_by_a_loader_alone(make_atlas):
    source = make_atlas(3_000, 20)
    source.X[300, 3] = 2**25
    assert len(_warned(lambda: scdd.CellLoader(source))) == 1


@pytest.mark.parametrize("categorical", [True, False])
@pytest.mark.parametrize("name", ["", "nan", "NaN", "None", " ", "N/A", "null"])
def test_labels_that_look_missing_are_said_once(adata, name, categorical):
    labels = adata.obs["cell_type"].astype(str)
    labels.iloc[:7] = name
    adata.obs["cell_type"] = labels.astype("category") if categorical else labels
    atlas = scdd.Atlas(adata)
    for act in (
        partial(_use, adata, labels=["cell_type"]),
        lambda: [atlas.labels("cell_type") for _ in "ab"],
    ):
        (said,) = _warned(act)
        assert f"obs['cell_type'] has labels that look like missing ones ({name!r}: 7 cells)" in said
    assert not _warned(lambda: scdd.CellLoader(adata, labels={"cell_type": [name, "type 0"]}))
    assert not _warned(lambda: atlas.labels("donor"))
    # The remedy that it names works.
    atlas.obs["cell_type"] = atlas.obs["cell_type"].where(~atlas.obs["cell_type"].isin([name]))
    left = atlas.drop_unlabelled("cell_type")
    assert left.n_obs == 233
    assert left.labels("cell_type").names == ["type 0", "type 1", "type 2"]


def test_missing_labels_are_as_they_were(adata):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.loc["cell_4", "cell_type"] = np.nan
    loader = scdd.CellLoader(adata, labels=["cell_type"])
    assert loader.codes["cell_type"][4] == -1
    assert not _warned(lambda: scdd.CellLoader(adata, labels=["cell_type"]))
    with pytest.raises(InputError, match="no label for 1 of 240 cells"):
        scdd.Atlas(adata).labels("cell_type")


def test_categories_that_no_cell_has_are_said(adata):
    (said,) = _warned(lambda: scdd.CellLoader(adata, labels={"cell_type": ["Type 0", "Type 1"]}))
    assert "'Type 0'; the first cell has 'type " in said
    assert not _warned(lambda: scdd.CellLoader(adata, labels={"cell_type": ["Type 0", "type 1"]}))
    adata.obs["cell_type"] = np.nan
    assert not _warned(lambda: scdd.CellLoader(adata, labels={"cell_type": ["type 0"]}))


def test_a_mask_of_genes_is_told_what_to_pass(adata):
    for mask in (np.ones(adata.n_vars, bool), [True] * adata.n_vars):
        with pytest.raises(InputError, match=r"genes= is a mask .*var_names\[mask\]"):
            scdd.CellLoader(adata, genes=mask)
