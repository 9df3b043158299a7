"""Means of classes and directions within them, against slow sums and known truth."""

import numpy as np
import pandas as pd
import torch

import scdd
from scdd.models.cell_code import CellCode
from scdd.models.class_profiles import ClassProfiles, spread_within


def fitted(adata, genes):
    atlas = scdd.Atlas(adata)
    preprocessor = scdd.Preprocessor.fit(atlas, genes=genes)
    label = atlas.labels("cell_type").codes
    return atlas, preprocessor, label, ClassProfiles.fit(atlas, preprocessor, label, 3)


def test_sums_are_those_of_the_cells(adata):
    genes = list(adata.var_names[5:25])
    _, preprocessor, label, found = fitted(adata, genes)
    x = adata.X.toarray().astype(float)
    for k in range(3):
        own = x[label == k]
        np.testing.assert_allclose(found.counts[k], own[:, 5:25].sum(0))
        np.testing.assert_allclose(found.totals[k], own.sum())
        logs = np.log1p(1e4 * own[:, 5:25] / own.sum(1, keepdims=True))
        np.testing.assert_allclose(found.logs[k], logs.sum(0), rtol=1e-6)
    order = np.arange(20)[::-1].copy()
    share = found.log_share(order).exp().numpy()
    whole = np.append(x[:, 5:25].sum(0)[::-1], np.delete(x, np.arange(5, 25), 1).sum()) / x.sum()
    np.testing.assert_allclose(share[-1], whole, rtol=1e-3)
    # many cells: hardly shrunk
    own = x[label == 0]
    big = own[:, 5:25].sum(0)[::-1] > 50
    np.testing.assert_allclose(share[0, :-1][big], (own[:, 5:25].sum(0)[::-1] / own.sum())[big], rtol=0.05)
    code = CellCode.of_genes(preprocessor.mean[order], preprocessor.std[order])
    anchors = found.anchors(code, order)
    assert (anchors[-1] == 0).all()
    v = preprocessor.transform(scdd.Atlas(adata))[:, order]
    mean = code.encode(torch.from_numpy(v[label == 1])).mean(0)
    torch.testing.assert_close(anchors[1], mean, atol=0.1, rtol=0)


def test_a_class_of_one_cell_is_drawn_to_all_cells(adata):
    adata.obs["cell_type"] = pd.Categorical(["lone", *adata.obs["cell_type"].astype(str)[1:]])
    atlas = scdd.Atlas(adata)
    preprocessor = scdd.Preprocessor.fit(atlas)
    labels = atlas.labels("cell_type")
    found = ClassProfiles.fit(atlas, preprocessor, labels.codes, 4)
    order = np.arange(preprocessor.n_genes)
    k = list(labels.names).index("lone")
    code = CellCode("plain", 0.0, 1.0)
    own, mean = found.logs[k], found.logs.sum(0) / found.cells.sum()
    np.testing.assert_allclose(found.anchors(code, order)[k].numpy(), (own + 2 * mean) / 3, rtol=1e-4)


def test_directions_within_classes_are_found():
    rng = np.random.default_rng(0)
    label = np.arange(600) % 2
    direction = np.zeros(10)
    direction[:5] = 1 / np.sqrt(5)
    anchors = torch.from_numpy(rng.normal(size=(3, 10))).float()
    along = rng.normal(size=(600, 1)) * np.where(label == 0, 3, 1)[:, None]
    cells = anchors[torch.from_numpy(label)].numpy() + along * direction
    coded = torch.from_numpy(cells + 0.1 * rng.normal(size=(600, 10))).float()
    basis, spread, rest = spread_within(coded, anchors, label, 2)
    assert abs(basis[:, 0].numpy() @ direction) > 0.99
    # a class that varies much, one that varies little, and all cells for none
    np.testing.assert_allclose(spread[:, 0], [9, 1, 5], rtol=0.4)
    assert spread[0, 0] > 6 * spread[1, 0]
    assert rest.max() < 0.05


def test_variances_are_those_of_cells_that_the_directions_were_not_chosen_for():
    """In noise of variance 1 every direction has variance 1, and the best of few cells far more for them."""
    rng = np.random.default_rng(0)
    coded, anchors = torch.from_numpy(rng.normal(size=(300, 400))).float(), torch.zeros(2, 400)
    basis, spread, _ = spread_within(coded, anchors, np.zeros(300, dtype=int), 8)
    assert (coded[:200] @ basis).square().mean(0).min() > 2.5
    np.testing.assert_allclose(spread, 1, atol=0.35)


def test_classes_without_other_cells_vary_as_all_do():
    rng = np.random.default_rng(0)
    label = np.zeros(90, dtype=int)
    label[:2] = 1  # among those that the directions are found from
    coded, anchors = torch.from_numpy(rng.normal(size=(90, 5))).float(), torch.zeros(3, 5)
    _, spread, _ = spread_within(coded, anchors, label, 3)
    torch.testing.assert_close(spread[1], spread[2])
    _, lone, _ = spread_within(coded[:1], anchors, label[:1], 3)  # one cell: itself
    assert torch.isfinite(lone).all()
