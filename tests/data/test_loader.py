"""CellLoader: what it delivers, in which order, and how it resumes and stops."""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, NamedTuple

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scdd.data import joined
from scdd.data.atlas import Atlas
from scdd.data.loader import CellLoader
from scdd.data.packed.writing import pack
from scdd.data.preprocess import Preprocessor
from scdd.errors import DataFileError, InputError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:batches are mixed badly")

N_CELLS, N_GENES = 1_003, 40
KINDS = ["memory", "file", "joined", "packed"]


class Cells(NamedTuple):
    """An atlas and what it holds."""

    atlas: Atlas
    matrix: sparse.csr_matrix
    obs: pd.DataFrame


def make_adata(n: int = N_CELLS, *, seed: int = 0, expression: str = "counts") -> ad.AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.5, (n, N_GENES)).astype(np.float32)
    counts[::17] = 0  # empty cells
    names = np.array(["T", "B", "NK", None], dtype=object)[np.arange(n) % 4]
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(names), "donor": [f"d{i % 3}" for i in range(n)]},
        index=[f"c{i}" for i in range(n)],
    )
    values = sparse.csr_matrix(counts if expression == "counts" else np.log1p(counts))
    return ad.AnnData(values, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


def write(adata: ad.AnnData, path: Path, *, shuffle: bool = False) -> Path:
    """In gzip chunks of some 10 to 15 cells, of different length in data and indices."""
    adata.write_h5ad(path, compression="gzip")
    with h5py.File(path, "r+") as file:
        for name, length in (("data", 150), ("indices", 210)):
            values = file["X"][name][...]
            del file["X"][name]
            chunks = (min(length, max(len(values), 1)),)
            file["X"].create_dataset(name, data=values, chunks=chunks, compression="gzip", shuffle=shuffle)
    return path


def make_cells(kind: str, folder: Path, n: int = N_CELLS, **options) -> Cells:
    adata = make_adata(n, **options)
    expression = options.get("expression", "counts")
    if kind == "memory":
        source = adata
    elif kind == "joined":
        # Genes of the second part are in another order, so that they must be put right on the way.
        part = write(adata[: n // 3].copy(), folder / "a.h5ad")
        source = [part, adata[n // 3 :, ::-1].copy()]
    else:
        source = write(adata, folder / "a.h5ad")
    atlas = Atlas(source, expression=expression)
    if kind == "packed":
        pack(atlas, folder / "a.packed")
        atlas = Atlas(folder / "a.packed", expression=expression)
    return Cells(atlas, sparse.csr_matrix(adata.X), adata.obs)


@pytest.fixture(scope="module", params=KINDS)
def cells(request, tmp_path_factory):
    return make_cells(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def file_cells(tmp_path_factory):
    return make_cells("file", tmp_path_factory.mktemp("file"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """4,000 cells in a file."""
    return make_cells("file", tmp_path_factory.mktemp("many"), 4_000)


def order_of(loader):
    return np.concatenate([batch.row_ids for batch in loader])


def expected_x(cells, rows, columns=slice(None)):
    counts = cells.matrix[rows].toarray().astype(np.float64)
    totals = counts.sum(1)
    scale = np.divide(1e4, totals, out=np.zeros_like(totals), where=totals > 0)
    return np.log1p(counts * scale[:, None])[:, columns], counts[:, columns], totals


@pytest.mark.parametrize("batch_size", [1, 100, 3_000])
@pytest.mark.parametrize("output", ["dense", "csr"])
def test_batches_hold_what_the_atlas_holds(cells, output, batch_size):
    genes = ["g7", "g0", "g31"]
    loader = CellLoader(
        cells.atlas,
        batch_size=batch_size,
        genes=genes,
        output=output,
        counts=True,
        labels=["cell_type", "donor"],
        window=300,
        memory_limit=1 << 30,
    )
    for batch in loader:
        x = batch.x if output == "dense" else batch.x.toarray()
        exact, counts, totals = expected_x(cells, batch.row_ids, [7, 0, 31])
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, exact, rtol=1e-6)
        np.testing.assert_array_equal(batch.counts, counts)
        np.testing.assert_array_equal(batch.totals, totals)
        factors = np.divide(1e4, totals, out=np.zeros_like(totals), where=totals > 0)
        np.testing.assert_allclose(batch.size_factors, factors)
        assert batch.row_ids.dtype == batch.codes["donor"].dtype == np.int64
        donors = np.array(loader.categories["donor"])[batch.codes["donor"]]
        np.testing.assert_array_equal(donors, cells.obs["donor"].to_numpy()[batch.row_ids])
        missing = cells.obs["cell_type"].isna().to_numpy()[batch.row_ids]
        np.testing.assert_array_equal(batch.codes["cell_type"] == -1, missing)
        if output == "csr":
            assert batch.x.has_canonical_format
            assert batch.indices.dtype == batch.indptr.dtype == np.int32
            assert batch.indptr[0] == 0
            assert (np.diff(batch.indptr) == (exact > 0).sum(1)).all()
    assert loader.categories["cell_type"] == ["B", "NK", "T"]


def test_all_genes_as_csr_are_what_the_atlas_holds(cells):
    for batch in CellLoader(cells.atlas, batch_size=77, window=300, output="csr", normalise=False):
        assert batch.x.shape == (len(batch.row_ids), N_GENES)
        columns = pd.Index([f"g{i}" for i in range(N_GENES)]).get_indexer(cells.atlas.var_names)
        np.testing.assert_array_equal(batch.x.toarray(), cells.matrix[batch.row_ids].toarray()[:, columns])


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_csr_adds_duplicates_before_log1p(tmp_path, kind):
    adata = make_adata(1)
    adata.write_h5ad(tmp_path / "a.h5ad")
    parts = {
        "data": np.array([1, 2, 1], "f4"),
        "indices": np.array([2, 2, 0], "i4"),
        "indptr": np.array([0, 3]),
    }
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        for name, values in parts.items():
            del file["X"][name]
            file["X"].create_dataset(name, data=values, chunks=(2,))
    if kind == "memory":
        adata.X = sparse.csr_matrix(tuple(parts.values()), shape=(1, N_GENES))
    atlas = Atlas(adata if kind == "memory" else tmp_path / "a.h5ad")
    dense, csr = (next(iter(CellLoader(atlas, output=output))).x for output in ("dense", "csr"))
    np.testing.assert_array_equal(csr.toarray(), dense)
    np.testing.assert_array_equal(csr.indices, [0, 2])
    np.testing.assert_allclose(dense[0, [0, 2]], np.log1p([2_500, 7_500]), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_unnormalised_and_log1p_data_pass_through(tmp_path, kind):
    counts = make_cells(kind, tmp_path)
    (tmp_path / "log").mkdir()
    logged = make_cells(kind, tmp_path / "log", expression="log1p")
    assert logged.atlas.expression == "log1p"
    genes = [f"g{i}" for i in range(N_GENES)]
    for made, options in ((counts, {"normalise": False}), (logged, {})):
        for batch in CellLoader(made.atlas, genes=genes, **options):
            np.testing.assert_array_equal(batch.x, made.matrix[batch.row_ids].toarray())
            assert batch.counts is None


@pytest.mark.parametrize("kind", ["dense", "two in memory", "csr"])
def test_long_windows_of_log1p_data_are_filled_to_the_end(tmp_path, kind):
    """Values that are no counts are no fault there, and once ended the filling after 4,096 cells."""
    n = 9_000
    adata = make_adata(n, expression="log1p")
    expected = adata.X.toarray()
    source = tmp_path / "a.h5ad"
    if kind == "two in memory":
        source = [adata[:1_000].copy(), adata[1_000:].copy()]
    else:
        if kind == "dense":
            adata.X = adata.X.toarray()
        adata.write_h5ad(source, compression="gzip" if kind == "dense" else None)
    atlas = Atlas(source, expression="log1p")
    for batch in CellLoader(atlas, batch_size=500, window=n):
        np.testing.assert_array_equal(batch.x, expected[batch.row_ids])


def test_preprocessor_chooses_and_standardises(cells):
    genes = pd.Index(["g3", "g1", "absent"])
    mean, std = np.array([1, 2, 3], np.float32), np.array([2, 4, 0.5], np.float32)
    preprocessor = Preprocessor(genes, "counts", 1e4, mean, std)
    plain = next(iter(CellLoader(cells.atlas, preprocessor=preprocessor)))
    scaled = next(iter(CellLoader(cells.atlas, preprocessor=preprocessor, standardise=True)))
    exact = np.zeros((len(plain.x), 3))
    exact[:, :2] = expected_x(cells, plain.row_ids, [3, 1])[0]
    np.testing.assert_allclose(plain.x, exact, rtol=1e-6)
    np.testing.assert_allclose(scaled.x, (exact - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_batches_are_the_cast_of_the_floats(cells, dtype):
    torch = pytest.importorskip("torch")
    genes = ["g7", "g0", "g31"]
    options = {"batch_size": 100, "genes": genes, "window": 300}
    exact = list(CellLoader(cells.atlas, **options))
    halves = list(CellLoader(cells.atlas, dtype=dtype, **options))
    for batch, reference in zip(halves, exact, strict=True):
        np.testing.assert_array_equal(batch.row_ids, reference.row_ids)
        np.testing.assert_array_equal(batch.totals, reference.totals)
        if dtype == "float16":
            assert batch.x.dtype == np.float16
            np.testing.assert_array_equal(batch.x, reference.x.astype(np.float16))
        else:
            assert batch.x.dtype == torch.bfloat16
            assert torch.equal(batch.x, torch.from_numpy(reference.x).to(torch.bfloat16))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 64, 1_003, 5_000])
def test_each_epoch_meets_each_row_once(cells, shuffle, batch_size):
    rows = np.arange(5, 905, 3) if batch_size == 64 else np.arange(N_CELLS)
    loader = CellLoader(cells.atlas, batch_size=batch_size, rows=rows, shuffle=shuffle, window=200)
    for _ in range(2):
        batches = [batch.row_ids for batch in loader]
        assert len(batches) == len(loader)
        assert all(len(batch) == batch_size for batch in batches[:-1])
        np.testing.assert_array_equal(np.sort(np.concatenate(batches)), rows)


def test_without_shuffle_rows_come_as_given(cells):
    rows = np.random.default_rng(0).integers(0, N_CELLS, 300)  # any order, some twice
    genes = [f"g{i}" for i in range(N_GENES)]
    loader = CellLoader(cells.atlas, batch_size=64, rows=rows, genes=genes, shuffle=False, window=128)
    batches = list(loader)
    np.testing.assert_array_equal(np.concatenate([batch.row_ids for batch in batches]), rows)
    x = np.concatenate([batch.x for batch in batches])
    np.testing.assert_allclose(x, expected_x(cells, rows)[0], rtol=1e-6)


def test_rows_given_twice_are_delivered_twice(cells):
    rows = np.random.default_rng(0).integers(0, N_CELLS, 300)
    batches = list(CellLoader(cells.atlas, batch_size=64, rows=rows, genes=["g3"], window=128))
    order = np.concatenate([batch.row_ids for batch in batches])
    np.testing.assert_array_equal(np.sort(order), np.sort(rows))
    x = np.concatenate([batch.x for batch in batches])
    np.testing.assert_allclose(x, expected_x(cells, order, [3])[0], rtol=1e-6)


def test_a_subset_in_any_order_delivers_its_own_cells(cells):
    chosen = np.random.default_rng(1).permutation(N_CELLS)[:400]
    part = cells.atlas.subset(chosen)
    for shuffle in (True, False):
        batches = list(CellLoader(part, batch_size=64, genes=["g3", "g4"], shuffle=shuffle, labels="donor"))
        order = np.concatenate([batch.row_ids for batch in batches])
        np.testing.assert_array_equal(np.sort(order), np.arange(400))
        x = np.concatenate([batch.x for batch in batches])
        np.testing.assert_allclose(x, expected_x(cells, chosen[order], [3, 4])[0], rtol=1e-6)
        codes = np.concatenate([batch.codes["donor"] for batch in batches])
        np.testing.assert_array_equal(codes, chosen[order] % 3)


def test_rows_may_be_a_mask(cells):
    mask = np.arange(N_CELLS) % 5 == 0
    np.testing.assert_array_equal(np.sort(order_of(CellLoader(cells.atlas, rows=mask))), np.flatnonzero(mask))


def test_drop_last(cells):
    loader = CellLoader(cells.atlas, batch_size=100, drop_last=True, window=250)
    sizes = [len(batch.row_ids) for batch in loader]
    assert sizes == [100] * 10
    assert len(loader) == 10


def test_order_depends_on_seed_and_epoch_alone(cells):
    def make(**options):
        return CellLoader(cells.atlas, **{"batch_size": 64, "window": 256, **options})

    first = order_of(make())
    for options in ({"workers": 1}, {"workers": 2}, {"workers": 5}, {"preload": 0}, {"preload": 9}):
        np.testing.assert_array_equal(order_of(make(**options)), first)
    for options in ({"output": "csr"}, {"dtype": "float16"}, {"genes": ["g3"]}, {"counts": True}):
        np.testing.assert_array_equal(order_of(make(**options)), first)
    assert (order_of(make(seed=1)) != first).any()
    loader = make()
    zero, one = order_of(loader), order_of(loader)
    np.testing.assert_array_equal(zero, first)
    assert (one != zero).any()
    assert loader.epoch == 2
    loader.set_epoch(1)
    np.testing.assert_array_equal(order_of(loader), one)


def test_chosen_sizes_do_not_depend_on_workers_where_memory_is_short(many):
    """The same seed must give the same order on a machine with more cores."""
    made = [
        CellLoader(many.atlas, batch_size=64, genes=["g1"], memory_limit=700_000, workers=workers)
        for workers in (1, 2, 5)
    ]
    assert made[0].plan().window < 4_000  # memory is short indeed
    assert len({(loader.plan().window, loader.plan().n_blocks) for loader in made}) == 1
    orders = [order_of(loader) for loader in made]
    np.testing.assert_array_equal(orders[1], orders[0])
    np.testing.assert_array_equal(orders[2], orders[0])


def test_values_do_not_depend_on_workers(cells):
    reference = list(CellLoader(cells.atlas, batch_size=64, window=256, workers=1, counts=True))
    for workers in (2, 5):
        batches = list(CellLoader(cells.atlas, batch_size=64, window=256, workers=workers, counts=True))
        for batch, expected in zip(batches, reference, strict=True):
            np.testing.assert_array_equal(batch.x, expected.x)
            np.testing.assert_array_equal(batch.counts, expected.counts)
            np.testing.assert_array_equal(batch.totals, expected.totals)


@pytest.mark.parametrize("kind", ["memory", "packed", "file"])
def test_what_is_cheap_to_reach_is_shuffled_fully_and_files_by_block(tmp_path, kind):
    cells = make_cells(kind, tmp_path, 4_000)
    # Blocks begin where chunks do: one of about 32 cells has cells of two runs of 32.
    first = order_of(CellLoader(cells.atlas, batch_size=100, window=400, block_size=32))[:400]
    distinct = len(np.unique(first // 32))
    if kind == "file":
        assert distinct <= 2 * (400 / 32 + 2)
    else:
        assert distinct > 0.9 * 125
        # The whole epoch is one draw: the first window holds cells from all over, in no runs.
        assert (np.abs(np.diff(first)) == 1).mean() < 0.05


class Seen(NamedTuple):
    rows: list[np.ndarray]
    threads: set[str]


@pytest.fixture
def seen(monkeypatch):
    """The store rows of every window that is read, and the threads that read them."""
    seen, window = Seen([], set()), joined.JoinedRows.window

    def watched(self, rows, **options):
        seen.rows.append(rows)
        seen.threads.add(threading.current_thread().name)
        return window(self, rows, **options)

    monkeypatch.setattr(joined.JoinedRows, "window", watched)
    return seen


def test_files_are_read_in_ascending_runs(many, seen):
    list(CellLoader(many.atlas, batch_size=100, window=800))
    assert len(seen.rows) == 5
    for rows in seen.rows:
        assert (np.diff(rows) > 0).all()
        assert (np.diff(rows) == 1).mean() > 0.9
    assert all(name.startswith("scdd-loader") for name in seen.threads)


def test_shuffled_rows_may_be_given_in_any_order(many):
    rows = np.random.default_rng(0).permutation(4_000)
    order = order_of(CellLoader(many.atlas, rows=rows, batch_size=100, window=800))
    np.testing.assert_array_equal(order, order_of(CellLoader(many.atlas, batch_size=100, window=800)))


@pytest.mark.parametrize("sampler", [None, "balanced", "by-class"])
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 7, 11, "end"])
def test_resume_is_exact(cells, stop, sampler):
    def make(workers=2):
        options = {"sampler": sampler, "labels": "cell_type" if sampler else ()}
        return CellLoader(
            cells.atlas,
            batch_size=64,
            window=200,
            counts=True,
            workers=workers,
            genes=["g1", "g5"],
            **options,
        )

    whole = make()
    length = len(whole)
    batches = [*whole, *whole]
    assert len(batches) == 2 * length
    stop = length if stop == "end" else stop
    interrupted = make()
    taken = list(itertools.islice(interrupted, stop))
    assert len(taken) == stop
    state = json.loads(json.dumps(interrupted.state_dict()))
    resumed = make(workers=1)
    resumed.load_state_dict(state)
    resumed.set_epoch(resumed.epoch)  # as a training loop would; must not lose the place
    assert resumed.state_dict() == (state if stop < length else {**state, "epoch": 1, "batch": 0})
    rest = [*resumed, *resumed][: len(batches) - stop]
    assert len(rest) == 2 * length - stop
    for batch, reference in zip(rest, batches[stop:], strict=True):
        np.testing.assert_array_equal(batch.row_ids, reference.row_ids)
        np.testing.assert_array_equal(batch.x, reference.x)
        np.testing.assert_array_equal(batch.counts, reference.counts)


def test_a_new_iteration_starts_over(cells):
    loader = CellLoader(cells.atlas, batch_size=64, window=200)
    first = next(iter(loader)).row_ids
    np.testing.assert_array_equal(next(iter(loader)).row_ids, first)
    loader.set_epoch(1)
    assert (next(iter(loader)).row_ids != first).any()


def test_a_state_of_another_order_is_refused(cells):
    first = {"batch_size": 64, "labels": "cell_type"}
    state = CellLoader(cells.atlas, **first).state_dict()
    for options in (
        {"batch_size": 65},
        {"seed": 1},
        {"rows": np.arange(9)},
        {"shuffle": False},
        {"drop_last": True},
        {"sampler": "balanced"},
        {"sampler": "by-class"},
        {"rank": 0, "world_size": 2},
        {"window": 64},
    ):
        with pytest.raises(InputError, match=r"the saved loader had .*same settings"):
            CellLoader(cells.atlas, **first | options).load_state_dict(state)
    other = cells.atlas.subset(np.arange(N_CELLS)[::-1])
    with pytest.raises(InputError, match=r"the saved loader had .*same settings"):
        CellLoader(other, **first, shuffle=False).load_state_dict(
            CellLoader(cells.atlas, **first, shuffle=False).state_dict()
        )


def test_the_state_of_one_rank_is_that_of_all(cells):
    """Checkpoints are written by one rank and read by all."""
    first, second = (CellLoader(cells.atlas, batch_size=64, rank=rank, world_size=2) for rank in (0, 1))
    list(itertools.islice(first, 3))
    second.load_state_dict(first.state_dict())
    reference = list(CellLoader(cells.atlas, batch_size=64, rank=1, world_size=2))
    for batch, expected in zip(second, reference[3:], strict=True):
        np.testing.assert_array_equal(batch.row_ids, expected.row_ids)


@pytest.mark.parametrize("output", ["dense", "csr"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batches_stay_as_they_are_while_somebody_holds_them(cells, output, dtype):
    if output == "csr" and dtype != "float32":
        pytest.skip("sparse batches are float32")
    options = {"output": output, "dtype": dtype, "batch_size": 64, "window": 128}
    loader = CellLoader(cells.atlas, **options, counts=True, labels="donor")

    def parts(batch):
        x = [batch.data, batch.indices, batch.indptr] if output == "csr" else [batch.x]
        x = [
            part.view(np.uint16) if isinstance(part, np.ndarray) and part.dtype == "f2" else part
            for part in x
        ]
        if dtype == "bfloat16":
            import torch

            x = [batch.x.view(torch.int16).numpy()]
        return [*x, batch.row_ids, batch.counts, batch.totals, batch.codes["donor"]]

    held, copies = [], []
    for _ in range(3):  # several epochs: buffers are used again
        for number, batch in enumerate(loader):
            if number % 3 == 0:
                held.append(parts(batch))  # and nothing else of the batch
                copies.append([part.copy() for part in held[-1]])
    for arrays, expected in zip(held, copies, strict=True):
        for array, value in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(array, value)


def test_batches_do_not_share_what_they_hold(cells):
    batches = list(CellLoader(cells.atlas, batch_size=64, window=128, counts=True, labels="donor"))
    copies = [(b.x.copy(), b.row_ids.copy(), b.counts.copy(), b.totals.copy()) for b in batches]
    for batch in batches[::2]:
        for array in (batch.x, batch.row_ids, batch.counts, batch.totals, batch.codes["donor"]):
            array[:] = -1
    for batch, values in list(zip(batches, copies, strict=True))[1::2]:
        for array, value in zip((batch.x, batch.row_ids, batch.counts, batch.totals), values, strict=True):
            np.testing.assert_array_equal(array, value)
    again = CellLoader(cells.atlas, batch_size=64, window=128, labels="donor")
    assert all((batch.codes["donor"] >= 0).all() for batch in again)


def test_memory_of_batches_that_nobody_holds_is_used_again(cells):
    loader = CellLoader(cells.atlas, batch_size=64, window=128, preload=0)
    places = [batch.x.__array_interface__["data"][0] for _ in range(4) for batch in loader]
    assert len(set(places)) < len(places) / 2


def test_transform_is_applied_to_every_batch_on_the_thread_that_made_it(cells):
    names = set()

    def double(batch):
        names.add(threading.current_thread().name)
        return batch.row_ids, 2 * batch.x

    plain = list(CellLoader(cells.atlas, batch_size=64, window=200))
    made = list(CellLoader(cells.atlas, batch_size=64, window=200, transform=double, preload=2))
    for (row_ids, x), batch in zip(made, plain, strict=True):
        np.testing.assert_array_equal(row_ids, batch.row_ids)
        np.testing.assert_array_equal(x, 2 * batch.x)
    assert all(name.startswith("scdd-loader") for name in names)
    names.clear()
    list(CellLoader(cells.atlas, batch_size=64, window=200, transform=double, preload=0))
    assert names == {threading.current_thread().name}


def test_an_error_in_transform_reaches_the_loop(cells):
    def fail(batch):
        if (batch.row_ids == 500).any():
            raise ZeroDivisionError("cell 500")
        return batch

    for preload in (0, 3):
        with pytest.raises(ZeroDivisionError, match="cell 500"):
            list(CellLoader(cells.atlas, batch_size=64, window=128, transform=fail, preload=preload))
    assert loader_threads() == []


@pytest.mark.parametrize("preload", [1, 4])
def test_preload_batches_are_ready_and_no_more(cells, preload):
    made = []
    loader = CellLoader(
        cells.atlas,
        batch_size=10,
        window=100,
        preload=preload,
        transform=lambda batch: made.append(1) or batch,
    )
    batches = iter(loader)
    next(batches)
    assert wait_until(lambda: len(made) == preload + 1)
    time.sleep(0.05)
    assert len(made) == preload + 1  # one in use, `preload` ready
    batches.close()


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("scdd-loader")]


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


@pytest.mark.parametrize("preload", [0, 1])
def test_the_next_window_is_read_ahead_and_no_more(many, seen, preload):
    """The plan counts two windows: the one in use, and one that is being read."""
    batches = iter(CellLoader(many.atlas, batch_size=50, window=400, preload=preload))
    next(batches)
    assert wait_until(lambda: len(seen.rows) >= 2)
    time.sleep(0.1)
    assert len(seen.rows) == 2
    batches.close()


@pytest.mark.parametrize("preload", [0, 3])
@pytest.mark.parametrize("leave", [StopIteration, KeyboardInterrupt, ValueError])
def test_leaving_early_joins_the_threads(cells, leave, preload):
    loader = CellLoader(cells.atlas, batch_size=50, window=100, preload=preload)
    if leave is StopIteration:
        for _ in loader:
            break
    else:
        with pytest.raises(leave):
            for _ in loader:
                raise leave
    gc.collect()
    assert loader_threads() == []


INTERRUPTED = """
import os, signal, sys, threading, time
from scdd import Atlas
from scdd.data import joined
from scdd.data.loader import CellLoader
def slow(self, rows, **options):
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    time.sleep(1)
    raise RuntimeError("nobody waits for this")
joined.JoinedRows.window = slow
try:
    for _ in CellLoader(Atlas(sys.argv[1]), preload=int(sys.argv[2])): pass
except KeyboardInterrupt:
    print([t.name for t in threading.enumerate() if t.name.startswith("scdd-loader")])
"""


@pytest.mark.parametrize("preload", [0, 3])
def test_ctrl_c_while_waiting_for_a_read_ends_the_program(many, preload):
    command = [sys.executable, "-c", INTERRUPTED, str(path_of(many)), str(preload)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def path_of(cells):
    return cells.atlas.store.sources[0].path


LEFT_OPEN = """
import sys, time
from scdd import Atlas
from scdd.data import joined
from scdd.data.loader import CellLoader
window = joined.JoinedRows.window
def slow(self, rows, **options):
    time.sleep(0.3)
    return window(self, rows, **options)
joined.JoinedRows.window = slow
kept = [iter(CellLoader(Atlas(sys.argv[1]), batch_size=50, window=50)) for _ in range(6)]
for batches in kept:
    next(batches)
time.sleep(0.05)
print("done", flush=True)
"""


def test_a_program_that_leaves_loaders_open_ends(many):
    """Threads that wait for each other were once joined in the wrong order: no end in one case of three."""
    command = [sys.executable, "-W", "ignore", "-c", LEFT_OPEN, str(path_of(many))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=True)
    assert done.stdout.strip() == "done"


def test_an_error_while_reading_ahead_reaches_the_loop(many, monkeypatch):
    window, asked = joined.JoinedRows.window, []

    def failing(self, rows, **options):
        asked.append(rows)
        if len(asked) > 1:
            raise OSError("the disk is gone")
        return window(self, rows, **options)

    monkeypatch.setattr(joined.JoinedRows, "window", failing)
    for preload in (0, 3):
        asked.clear()
        delivered = []
        with pytest.raises(OSError, match="the disk is gone"):
            delivered.extend(CellLoader(many.atlas, batch_size=50, window=100, preload=preload))
        assert loader_threads() == []
    # What was read before the error is delivered: it is sound.
    batches = iter(CellLoader(many.atlas, batch_size=50, window=100))
    asked.clear()
    assert [len(next(batches).row_ids) for _ in range(2)] == [50, 50]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(tmp_path):
    cells = make_cells("file", tmp_path, 4_000)
    batches = iter(CellLoader(cells.atlas, batch_size=50, window=100))
    next(batches)
    write(make_adata(4_000, seed=1), tmp_path / "other.h5ad")
    os.replace(tmp_path / "other.h5ad", tmp_path / "a.h5ad")  # noqa: PTH105
    with pytest.raises(DataFileError, match=r"a\.h5ad.* changed or replaced"):
        list(batches)


def test_labels_with_given_categories(cells):
    loader = CellLoader(cells.atlas, labels={"donor": ["d2", "d0"]})
    batch = next(iter(loader))
    expected = np.array([1, -1, 0])[batch.row_ids % 3]
    np.testing.assert_array_equal(batch.codes["donor"], expected)
    assert loader.categories == {"donor": ["d2", "d0"]}


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.float64, np.uint64])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_values_of_any_dtype(tmp_path, dtype, kind):
    adata = make_adata()
    adata.X = sparse.csr_matrix(adata.X.toarray().clip(max=1).astype(dtype))
    expected = adata.X.toarray().astype(np.float32)
    source = adata if kind == "memory" else write(adata, tmp_path / "a.h5ad")
    batch = next(iter(CellLoader(Atlas(source), normalise=False)))
    np.testing.assert_array_equal(batch.x, expected[batch.row_ids])


def test_no_cells_no_batches(cells):
    for options in ({}, {"shuffle": False}, {"world_size": 2, "rank": 1}, {"drop_last": True}):
        loader = CellLoader(cells.atlas, rows=np.array([], dtype=int), **options)
        assert list(loader) == []
        assert len(loader) == 0


PREPROCESSOR = Preprocessor(pd.Index(["g1"]), "counts")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"block_size": 0}, "block_size=0"),
        ({"window": -1}, "window=-1"),
        ({"workers": 0}, "workers=0"),
        ({"preload": -1}, "preload=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"output": "coo"}, "output='coo'; choose"),
        ({"dtype": "float64"}, "dtype='float64'; choose float32, float16, bfloat16"),
        ({"output": "csr", "dtype": "float16"}, "dtype='float16' is for dense batches"),
        ({"genes": ["g1", "nope"]}, "1 genes that the atlas lacks, e.g. 'nope'"),
        ({"genes": ["g1", "g1"]}, "names a gene twice"),
        ({"genes": []}, "empty"),
        ({"genes": ["g1"], "preprocessor": PREPROCESSOR}, "pass one of them"),
        ({"preprocessor": Preprocessor(pd.Index(["x"]), "counts")}, "none of the preprocessor's 1 genes"),
        ({"preprocessor": Preprocessor(pd.Index(["g1"]), "log1p")}, "holds counts, the preprocessor"),
        ({"standardise": True}, "standardise=True needs"),
        ({"standardise": True, "preprocessor": PREPROCESSOR}, "fitted preprocessor"),
        ({"standardise": True, "output": "csr"}, "leaves no zeros"),
        ({"labels": ["tissue"]}, "'tissue', which obs lacks; its columns are: cell_type, donor"),
        ({"rows": [0, N_CELLS]}, f"names row {N_CELLS}; they are 0..{N_CELLS - 1}"),
        ({"rows": [-1, 3]}, "names row -1"),
        ({"rows": [0.5]}, "rows= is float64"),
        ({"rows": np.ones(3, bool)}, "a mask of 3 cells"),
        ({"sampler": "fair"}, "sampler='fair'; choose"),
        ({"sampler": "balanced"}, "needs labels="),
        ({"sampler": "by-class", "labels": "donor", "rank": 0, "world_size": 2}, "one rank all batches"),
        ({"rank": 1}, "pass both or neither"),
        ({"rank": 2, "world_size": 2}, "rank=2 must lie in"),
        ({"rank": -1, "world_size": 2}, "rank=-1 must lie in"),
    ],
)
def test_arguments_that_cannot_be_used(cells, options, message):
    with pytest.raises(InputError, match=message):
        CellLoader(cells.atlas, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_limit": 1_000}, "memory_limit=1000 is too small"),
        ({"memory_limit": -5}, "memory_limit=-5 must be at least 1"),
        ({"memory_limit": 1_500_000, "window": 10**6}, "window=1000000 does not fit into memory_limit"),
    ],
)
def test_memory_limits_that_cannot_be_kept(file_cells, options, message):
    with pytest.raises(InputError, match=message):
        CellLoader(file_cells.atlas, genes=["g1"], batch_size=64, **options)


def test_log1p_data_has_no_counts(tmp_path):
    logged = make_cells("memory", tmp_path, expression="log1p")
    with pytest.raises(InputError, match="counts=True"):
        CellLoader(logged.atlas, counts=True)
    with pytest.raises(InputError, match="epoch=-1"):
        CellLoader(logged.atlas).set_epoch(-1)


def test_importing_the_loader_imports_no_torch():
    program = "import sys, scdd.data.loader; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


# Ranks


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_cells(cells, world_size, drop_last, shuffle):
    options = {"batch_size": 64, "window": 128, "drop_last": drop_last, "shuffle": shuffle}
    loaders = [
        CellLoader(cells.atlas, rank=rank, world_size=world_size, **options) for rank in range(world_size)
    ]
    for _ in range(2):
        batches = [list(loader) for loader in loaders]
        assert len({len(own) for own in batches} | {len(loader) for loader in loaders}) == 1
        sizes = [[len(batch.row_ids) for batch in own] for own in batches]
        assert all(own == sizes[0] for own in sizes)
        rows = np.concatenate([batch.row_ids for own in batches for batch in own])
        if drop_last:
            assert set(sizes[0]) <= {64}
            assert len(np.unique(rows)) == len(rows) == world_size * (N_CELLS // world_size // 64) * 64
        else:
            times = np.bincount(rows, minlength=N_CELLS)
            assert times.min() == 1
            assert times.sum() - N_CELLS == -N_CELLS % world_size
        assert [loader.epoch for loader in loaders] == [loaders[0].epoch] * world_size
    for own in batches:
        for batch in own[:2]:
            np.testing.assert_array_equal(batch.totals, expected_x(cells, batch.row_ids)[2])


def test_more_ranks_than_cells(cells):
    rows = np.array([5, 9])
    found = [order_of(CellLoader(cells.atlas, rows=rows, rank=rank, world_size=5)) for rank in range(5)]
    assert all(len(own) == 1 for own in found)
    assert set(np.concatenate(found)) == {5, 9}
    loaders = [
        CellLoader(cells.atlas, rows=rows, rank=rank, world_size=5, drop_last=True) for rank in range(5)
    ]
    assert [list(loader) for loader in loaders] == [[]] * 5


def test_ranks_are_those_of_torch_distributed(cells, monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
        found = order_of(CellLoader(cells.atlas, batch_size=64))
    finally:
        torch.distributed.destroy_process_group()
    np.testing.assert_array_equal(
        found, order_of(CellLoader(cells.atlas, batch_size=64, rank=1, world_size=2))
    )


# Samplers


def test_balanced_delivers_as_many_cells_of_every_class(cells):
    rows = np.flatnonzero(np.arange(N_CELLS) % 4 != 1)
    rows = np.concatenate([rows, [1, 5, 9]])  # three cells of class "B"
    options = {"rows": rows, "labels": "cell_type", "sampler": "balanced", "batch_size": 64, "genes": ["g2"]}
    loader = CellLoader(cells.atlas, **options)
    epochs = []
    for _ in range(2):
        batches = list(loader)
        codes = np.concatenate([batch.codes["cell_type"] for batch in batches])
        assert (codes >= 0).all()  # cells without a label are left out
        np.testing.assert_array_equal(np.bincount(codes), [len(rows) // 3] * 3)
        epochs.append(np.concatenate([batch.row_ids for batch in batches]))
        x = np.concatenate([batch.x for batch in batches])
        np.testing.assert_allclose(x, expected_x(cells, epochs[-1], [2])[0], rtol=1e-6)
        times = np.bincount(epochs[-1], minlength=N_CELLS)[rows]
        of_b = np.isin(rows, [1, 5, 9])
        assert times[of_b].max() - times[of_b].min() <= 1  # small classes repeat evenly
        assert times[~of_b].max() <= 2
        assert len(loader) == len(batches)
        # Classes are mixed in every batch.
        shares = np.array([np.bincount(batch.codes["cell_type"], minlength=3) for batch in batches[:-1]]) / 64
        if cells.atlas.store.random_access is not None:
            assert shares.min() > 0.1
    assert (epochs[0] != epochs[1]).any()
    again = CellLoader(cells.atlas, **options)
    np.testing.assert_array_equal(order_of(again), epochs[0])
    np.testing.assert_array_equal(order_of(again), epochs[1])
    assert (order_of(CellLoader(cells.atlas, **options, seed=1)) != epochs[0]).any()


def test_balanced_mixes_a_rare_class_of_a_file_into_every_batch(many):
    """Copies of one cell lie side by side in a file's order; they must not be read as one block for that."""
    labels = pd.Categorical(np.repeat(["a", "b", "rare"], [2_000, 1_990, 10]))  # as a sorted file has them
    atlas = many.atlas.subset(np.arange(4_000))
    atlas.obs = pd.DataFrame({"label": labels}, index=atlas.obs.index)
    loader = CellLoader(atlas, batch_size=100, window=1_600, labels="label", sampler="balanced")
    shares = np.array([np.bincount(batch.codes["label"], minlength=3) / 100 for batch in loader][:-1])
    np.testing.assert_allclose(shares.mean(0), 1 / 3, atol=0.02)
    assert shares.min() > 0.05
    assert loader.plan().variance_inflation < 3


def test_balanced_reads_a_rare_class_in_long_runs(many, monkeypatch):
    """In passes over the class, not cell by cell: copies of a cell would cut the run that it lies in."""
    atlas = many.atlas.subset(np.arange(4_000))
    labels = pd.Categorical(np.repeat(["a", "rare"], [3_744, 256]))  # 2,000 cells of each
    atlas.obs = pd.DataFrame({"label": labels}, index=atlas.obs.index)
    options = {"batch_size": 100, "block_size": 64, "labels": "label", "sampler": "balanced"}
    epoch = CellLoader(atlas, window=4_000, **options)._epoch
    last = np.maximum.reduceat(epoch.rows, epoch.order.blocks.edges[:-1])
    passes, blocks = 8, 256 // 64
    assert (last >= 3_744).sum() <= passes * (blocks + 1)
    read, window = [], type(atlas.store).window
    monkeypatch.setattr(
        type(atlas.store), "window", lambda self, rows, **how: read.append(rows) or window(self, rows, **how)
    )
    assert len(list(CellLoader(atlas, window=500, **options))) == 40
    rare = [rows[rows >= 3_744] for rows in read]
    n_runs = sum(len(rows[:1]) + int((np.diff(rows) > 1).sum()) for rows in rare)
    assert n_runs <= passes * (blocks + 1) + len(read)


def test_by_class_delivers_every_labelled_cell_in_batches_of_one_class(cells):
    options = {"labels": ["cell_type", "donor"], "sampler": "by-class", "batch_size": 50, "window": 200}
    loader = CellLoader(cells.atlas, **options)
    labelled = np.flatnonzero(cells.obs["cell_type"].notna().to_numpy())
    orders = []
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == 3 * 6  # of 251 cells each
        for batch in batches:
            assert len(set(batch.codes["cell_type"])) == 1
            np.testing.assert_array_equal(batch.totals, expected_x(cells, batch.row_ids)[2])
        orders.append(np.concatenate([batch.row_ids for batch in batches]))
        np.testing.assert_array_equal(np.sort(orders[-1]), labelled)
        classes = [int(batch.codes["cell_type"][0]) for batch in batches]
        assert classes != sorted(classes)
    assert (orders[0] != orders[1]).any()
    np.testing.assert_array_equal(order_of(CellLoader(cells.atlas, **options, workers=5)), orders[0])
    dropped = list(CellLoader(cells.atlas, **options, drop_last=True))
    assert [len(batch.row_ids) for batch in dropped] == [50] * 15


@pytest.mark.parametrize("sampler", ["balanced", "by-class"])
def test_samplers_without_shuffle_have_an_order_too(cells, sampler):
    options = {"labels": "cell_type", "sampler": sampler, "shuffle": False, "batch_size": 50}
    first, second = (order_of(CellLoader(cells.atlas, **options)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_balanced_ranks_share_the_cells_drawn(cells):
    options = {"labels": "cell_type", "sampler": "balanced", "batch_size": 50}
    whole = order_of(CellLoader(cells.atlas, **options))
    parts = [order_of(CellLoader(cells.atlas, rank=rank, world_size=3, **options)) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    times = np.bincount(np.concatenate(parts), minlength=N_CELLS)
    difference = times - np.bincount(whole, minlength=N_CELLS)
    assert difference.min() >= 0
    assert difference.sum() == -len(whole) % 3


@pytest.mark.parametrize("sampler", ["balanced", "by-class"])
def test_cells_that_a_sampler_leaves_out_are_counted(cells, sampler, recwarn):
    missing = int((CellLoader(cells.atlas, labels="cell_type").codes["cell_type"] < 0).sum())
    assert 0 < missing < N_CELLS
    recwarn.clear()
    loader = CellLoader(cells.atlas, labels="cell_type", sampler=sampler)
    message = f"sampler='{sampler}' leaves out {missing:,} of {N_CELLS:,} cells: they have no label"
    assert [str(warning.message).startswith(message) for warning in recwarn] == [True]
    labelled = np.flatnonzero(loader.codes["cell_type"] >= 0)
    recwarn.clear()
    CellLoader(cells.atlas, labels="cell_type", sampler=sampler, rows=labelled)
    assert not recwarn


def test_samplers_need_a_label(cells):
    none = cells.atlas.subset(np.arange(3, N_CELLS, 4))  # all of them without
    with pytest.raises(InputError, match="no cell has a label"):
        CellLoader(none, labels="cell_type", sampler="balanced")
    assert list(CellLoader(none, labels="cell_type", sampler="by-class")) == []


# Other processes


def same_batches(found, expected):
    for batch, reference in zip(found, expected, strict=True):
        np.testing.assert_array_equal(batch.row_ids, reference.row_ids)
        np.testing.assert_array_equal(batch.x, reference.x)
        np.testing.assert_array_equal(batch.totals, reference.totals)


def make_loader(cells, **options):
    return CellLoader(cells.atlas, **{"batch_size": 64, "window": 200, "genes": ["g3", "g9"], **options})


def test_a_pickled_loader_goes_on_where_it_was(cells):
    loader = make_loader(cells)
    expected = list(make_loader(cells))
    for batch in itertools.islice(loader, 3):
        del batch
    copy = pickle.loads(pickle.dumps(loader))
    copy.load_state_dict(loader.state_dict())
    same_batches(copy, expected[3:])
    same_batches(copy, itertools.islice(itertools.chain(*[loader] * 2), len(expected), None))


def test_a_spawned_process_gives_the_same_batches(cells):
    expected = list(make_loader(cells))
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        same_batches(pool.apply_async(list, (make_loader(cells),)).get(timeout=60), expected)


def in_fork(work, timeout=30):
    """What ``work()`` returns in a forked process."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        with os.fdopen(write, "wb") as file:
            try:
                pickle.dump(work(), file)
            except BaseException as error:
                pickle.dump(error, file)
        os._exit(0)
    os.close(write)
    watch = threading.Timer(timeout, os.kill, (child, 9))
    watch.start()
    with os.fdopen(read, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    watch.cancel()
    assert answer, "the child did not end"
    result = pickle.loads(answer)
    if isinstance(result, BaseException):
        raise result
    return result


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("moment", ["before", "after", "within"])
def test_a_forked_process_gives_the_same_batches(cells, moment):
    expected = list(make_loader(cells))
    loader = make_loader(cells)
    if moment == "after":
        list(itertools.islice(loader, 3))
    if moment == "within":
        running = iter(loader)
        next(running)
        same_batches(in_fork(lambda: list(loader)), expected)
        same_batches(running, expected[1:])  # and the parent's own are not disturbed
        return
    same_batches(in_fork(lambda: list(loader)), expected)
    same_batches(loader, expected)


# Caches


@pytest.mark.parametrize("output", ["dense", "csr"])
@pytest.mark.parametrize("kind", ["file", "joined"])
def test_a_cache_gives_the_same_cells(tmp_path, kind, output):
    cells = make_cells(kind, tmp_path)
    part = cells.atlas.subset(np.random.default_rng(0).permutation(N_CELLS)[:700])
    genes = ["g9", "g3", "g30"]
    options = {"batch_size": 64, "output": output, "genes": genes, "counts": True}
    loader = CellLoader(part, cache=tmp_path / "c.packed", **options)
    assert loader.plan().source == "packed cache"
    assert (tmp_path / "c.packed").is_dir()
    plain = {}
    for batch in CellLoader(part, **options):
        x = batch.x if output == "dense" else batch.x.toarray()
        plain |= {int(row): x[place] for place, row in enumerate(batch.row_ids)}
    met = 0
    for batch in loader:
        x = batch.x if output == "dense" else batch.x.toarray()
        met += len(batch.row_ids)
        np.testing.assert_array_equal(x, [plain[int(row)] for row in batch.row_ids])
        np.testing.assert_array_equal(
            batch.counts, part.read(batch.row_ids)[:, part.var_names.get_indexer(genes)].toarray()
        )
    assert met == len(plain) == 700
    # And again, from what is there now.
    before = sorted((file.name, file.stat().st_mtime_ns) for file in (tmp_path / "c.packed").iterdir())
    same = CellLoader(part, cache=tmp_path / "c.packed", **options)
    np.testing.assert_array_equal(
        order_of(same), order_of(CellLoader(part, cache=tmp_path / "c.packed", **options))
    )
    assert before == sorted(
        (file.name, file.stat().st_mtime_ns) for file in (tmp_path / "c.packed").iterdir()
    )


def test_the_cache_beside_a_file_is_used_if_it_is_fresh(tmp_path, caplog):
    cells = make_cells("file", tmp_path)
    assert CellLoader(cells.atlas, cache="auto").plan().source != "packed cache"
    pack(cells.atlas, tmp_path / "a.packed")
    loader = CellLoader(cells.atlas, cache="auto", batch_size=64)
    assert loader.plan().source == "packed cache"
    for batch in loader:
        np.testing.assert_array_equal(batch.totals, expected_x(cells, batch.row_ids)[2])
    # Other cells in a file of that name: what was packed is stale.
    write(make_adata(seed=1), tmp_path / "a.h5ad")
    changed = Cells(Atlas(tmp_path / "a.h5ad"), sparse.csr_matrix(make_adata(seed=1).X), cells.obs)
    with caplog.at_level("WARNING", logger="scdd"):
        loader = CellLoader(changed.atlas, cache="auto", batch_size=64)
    assert "a.packed" in caplog.text
    assert loader.plan().source != "packed cache"
    for batch in loader:
        np.testing.assert_array_equal(batch.totals, expected_x(changed, batch.row_ids)[2])
    # A path is made anew.
    loader = CellLoader(changed.atlas, cache=tmp_path / "a.packed", batch_size=64)
    assert loader.plan().source == "packed cache"
    for batch in loader:
        np.testing.assert_array_equal(batch.totals, expected_x(changed, batch.row_ids)[2])


def test_no_warning_without_cause(cells):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CellLoader(cells.atlas)
        CellLoader(cells.atlas, shuffle=False)  # nobody asked for mixing
        CellLoader(cells.atlas, shuffle=False, sampler="by-class", labels="donor")
