"""What is said of values that are not what they should be: which row, which cell, which gene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import sparse

import scdd
from scdd.data.expression import Faults, faults_of
from scdd.errors import InputError

if TYPE_CHECKING:
    import anndata as ad


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
