"""What a loader says of its memory and its mixing, and whether that is so."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scdd import _csr
from scdd.data.atlas import Atlas
from scdd.data.formats.stored import ChunkRows
from scdd.data.joined import JoinedRows
from scdd.data.loader import CellLoader
from scdd.data.loading.blocks import Blocks, mean_block
from scdd.data.loading.plan import choose_sizes
from scdd.data.loading.shuffle import EpochOrder, variance_inflation
from scdd.errors import InputError

# The order of an epoch


def random_blocks(rng, n_rows, longest):
    """Blocks of uneven length, as the chunks of a file make them."""
    edges = np.cumsum([0, *rng.integers(1, longest + 1, n_rows)])
    edges = np.append(edges[edges < n_rows], n_rows).astype(np.int64)
    shared = rng.random(len(edges) - 1) < rng.random()
    return Blocks(edges, np.append(shared[:-1], False) if len(shared) else shared)


def later_block(blocks, order):
    """Block int64 [n_rows] that each position is read with: of two that share it, the later one."""
    own = np.searchsorted(blocks.edges, np.arange(blocks.edges[-1]), side="right") - 1
    if not order.shuffle:
        return own
    turn = np.argsort(np.random.default_rng([order.seed, order.epoch, 0]).permutation(len(blocks.shared)))
    for number in np.flatnonzero(blocks.shared):
        alone = blocks.edges[number + 1] - blocks.edges[number] == 1
        if turn[number + 1] > turn[number] and not alone:
            own[blocks.edges[number + 1] - 1] = number + 1
    return own


@settings(max_examples=200, deadline=None)
@given(
    n_rows=st.integers(0, 400),
    batch_size=st.integers(1, 50),
    block_size=st.integers(1, 40),
    window=st.integers(1, 120),
    shuffle=st.booleans(),
    uneven=st.booleans(),
    seed=st.integers(0, 1_000),
)
def test_an_order_is_a_permutation_and_can_be_entered_at_any_window(
    n_rows, batch_size, block_size, window, shuffle, uneven, seed
):
    blocks = random_blocks(np.random.default_rng(seed), n_rows, block_size) if uneven and n_rows else None
    order = EpochOrder(n_rows, batch_size, block_size, window, seed, 0, shuffle, blocks)
    windows = list(order.windows())
    assert len(windows) == order.n_windows
    positions = np.concatenate([*windows, np.zeros(0, np.int64)])
    np.testing.assert_array_equal(np.sort(positions), np.arange(n_rows))
    if not shuffle:
        np.testing.assert_array_equal(positions, np.arange(n_rows))
    block = np.arange(n_rows) // block_size
    if blocks is not None:
        block = later_block(blocks, order)
    sizes = np.bincount(block, minlength=1)
    for part in windows[:-1]:
        assert len(part) == order.batches_per_window * batch_size
        # Blocks are whole but for the two that a window may cut.
        own = np.bincount(block[part], minlength=len(sizes))
        assert ((own > 0) & (own < sizes)).sum() <= 2
    for first in {0, len(windows) // 2, max(0, len(windows) - 1)}:
        for again, part in zip(order.windows(first), windows[first:], strict=True):
            np.testing.assert_array_equal(again, part)


@settings(max_examples=200, deadline=None)
@given(
    n_rows=st.integers(1, 300),
    world_size=st.integers(1, 9),
    batch_size=st.integers(1, 40),
    window=st.integers(1, 100),
    shuffle=st.booleans(),
    even=st.sampled_from(["pad", "drop"]),
    seed=st.integers(0, 1_000),
)
def test_ranks_partition_the_epoch(n_rows, world_size, batch_size, window, shuffle, even, seed):
    blocks = random_blocks(np.random.default_rng(seed), n_rows, 25)
    orders = [
        EpochOrder(n_rows, batch_size, 1, window, seed, 3, shuffle, blocks, rank, world_size, even)
        for rank in range(world_size)
    ]
    parts = [np.concatenate([*order.windows(), np.zeros(0, np.int64)]) for order in orders]
    assert {len(part) for part in parts} == {orders[0].n_own}
    times = np.bincount(np.concatenate(parts), minlength=n_rows)
    if even == "drop":
        assert times.max() <= 1
        assert n_rows - times.sum() == n_rows % world_size
    else:
        assert times.min() >= 1
        assert times.sum() - n_rows == -n_rows % world_size
    for order in orders:
        whole = list(order.windows())
        for first in range(order.n_windows):
            np.testing.assert_array_equal(next(iter(order.windows(first))), whole[first])


def test_blocks_land_anywhere_and_windows_mix_them():
    order = EpochOrder(32_000, 100, 32, 3_200, 0, 0, True)
    first = next(iter(order.windows()))
    assert first.max() - first.min() > 25_000  # blocks from all over
    assert (np.abs(np.diff(first)) == 1).mean() < 0.05  # and no longer in runs
    assert len(np.unique(first // 32)) == 100  # yet whole blocks


# Variance of a batch's label shares


def measured_inflation(n_rows, batch_size, edges, window, *, classes, epochs):
    """Mean squared deviation of the label shares of full batches, over that of independent draws.

    The atlas is sorted by its label, of ``classes`` equally large classes.
    """
    label = np.arange(n_rows) * classes // n_rows
    deviations = []
    for epoch in range(epochs):
        order = EpochOrder(n_rows, batch_size, 1, window, 7, epoch, True, Blocks.apart(edges))
        for part in order.windows():
            full = part[: len(part) // batch_size * batch_size].reshape(-1, batch_size)
            shares = (label[full][:, :, None] == np.arange(classes)).mean(1)
            deviations.append(((shares - 1 / classes) ** 2).mean(1))
    expected = (1 / classes) * (1 - 1 / classes) / batch_size
    return float(np.concatenate(deviations).mean() / expected)


@pytest.mark.parametrize(
    ("block", "batch_size", "window"),
    [(1, 64, 640), (16, 64, 960), (16, 256, 4_096), (50, 100, 1_000), (128, 64, 1_024), (32, 500, 500)],
)
def test_the_variance_inflation_is_the_one_measured(block, batch_size, window):
    n_rows = 120_000
    edges = np.append(np.arange(0, n_rows, block), n_rows)
    order = EpochOrder(n_rows, batch_size, 1, window, 0, 0, True, Blocks.apart(edges))
    used = order.batches_per_window * batch_size
    found = measured_inflation(n_rows, batch_size, edges, window, classes=6, epochs=3)
    assert found == pytest.approx(variance_inflation(mean_block(edges), batch_size, used), rel=0.2)


def test_uneven_blocks_count_by_the_block_that_a_cell_lies_in():
    n_rows = 120_000
    edges = random_blocks(np.random.default_rng(0), n_rows, 100).edges
    assert mean_block(edges) == pytest.approx(67, abs=2)  # and not 50
    found = measured_inflation(n_rows, 100, edges, 2_000, classes=6, epochs=3)
    assert found == pytest.approx(variance_inflation(mean_block(edges), 100, 2_000), rel=0.2)


class FakeStore:
    """Rows that any block can be made of, as in a file without chunks."""

    decodes_whole_chunks = False

    def blocks(self, rows, cells, *, parts=False):
        return Blocks.apart(np.append(np.arange(0, len(rows), cells), len(rows)).astype(np.int64))


@pytest.mark.parametrize("batch_size", [128, 512])
def test_defaults_mix_well(batch_size):
    n_rows = 60_000
    sizes = choose_sizes(
        SimpleNamespace(store=FakeStore()),
        np.arange(n_rows),
        batch_size=batch_size,
        block_size=None,
        window=None,
        most=10**6,
    )
    assert sizes.window % batch_size == 0
    planned = variance_inflation(mean_block(sizes.edges), batch_size, sizes.window)
    assert planned <= 1.25
    found = measured_inflation(n_rows, batch_size, sizes.edges, sizes.window, classes=20, epochs=8)
    assert found <= 1.25 * 1.05  # of a sample


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_sources=st.integers(1, 3),
    cells=st.integers(1, 40),
    parts=st.booleans(),
    passes=st.integers(1, 3),
)
def test_blocks_begin_where_chunks_do_and_hold_no_cell_twice(seed, n_sources, cells, parts, passes):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 120, n_sources)
    pointers = [np.cumsum(np.r_[0, rng.integers(0, 9, n) * (rng.random(n) < 0.8)]) for n in sizes]
    lengths = [None if rng.random() < 0.3 else int(rng.integers(1, 200)) for _ in sizes]
    chunks = [
        None if length is None else ChunkRows.of(indptr, length)
        for indptr, length in zip(pointers, lengths, strict=True)
    ]
    names = pd.Index(["g0"])
    sources = [
        SimpleNamespace(
            obs=range(n), var_names=names, matrix=SimpleNamespace(chunk_rows=begins), rounded=False
        )
        for n, begins in zip(sizes, chunks, strict=True)
    ]
    store = JoinedRows(sources, names)
    n_rows = int(sizes.sum())
    runs = [
        np.sort(rng.choice(n_rows, int(rng.integers(0, n_rows + 1)), replace=False)) for _ in range(passes)
    ]
    rows = np.concatenate(runs).astype(np.int64)
    edges, shared = store.blocks(rows, cells, parts=parts)
    assert edges.dtype == np.int64
    assert edges[0] == 0
    assert edges[-1] == len(rows)
    assert (np.diff(edges) > 0).all()
    blocks = np.split(rows, edges[1:-1]) if len(rows) else []
    assert all((np.diff(block) > 0).all() for block in blocks)
    assert len(shared) == len(edges) - 1
    starts = np.cumsum([0, *sizes])
    for number, (before, block) in enumerate(itertools.pairwise(blocks)):
        last, first = (int(np.searchsorted(starts, row, side="right")) - 1 for row in (before[-1], block[0]))
        if last != first or block[0] <= before[-1] or lengths[first] is None:
            assert not shared[number]
            continue
        indptr, length = pointers[first], lengths[first]
        begin, end = indptr[block[0] - starts[first]], indptr[before[-1] + 1 - starts[first]]
        chunk = int(indptr[before[-1] - starts[first]]) // length
        if not parts:  # no chunk is cut: one begins after the last cell of the block before does
            assert begin // length > chunk
        if shared[number]:
            assert (end - 1) // length == begin // length > chunk
    if not any(lengths):
        assert all(len(block) <= cells for block in blocks)


def test_a_block_of_a_given_size_is_an_equal_part_of_a_chunk():
    indptr = np.arange(0, 10_001, 10)  # 1,000 cells
    names = pd.Index(["g0"])
    matrix = SimpleNamespace(chunk_rows=ChunkRows.of(indptr, 645))  # 64.5 cells
    source = SimpleNamespace(obs=range(1_000), var_names=names, matrix=matrix, rounded=False)
    store = JoinedRows([source], names)
    rows = np.arange(1_000)
    by_chunk = np.append(np.ceil(np.arange(0, 10_000, 645) / 10), 1_000)
    edges, shared = store.blocks(rows, 64, parts=True)
    np.testing.assert_array_equal(edges, by_chunk)
    np.testing.assert_array_equal(shared, np.append(by_chunk[1:-1] * 10 > 645 * np.arange(1, 16), False))
    halves, shared = store.blocks(rows, 32, parts=True)
    assert set(by_chunk) <= set(halves)
    assert set(np.diff(halves)) <= {32, 33, 16, 17}  # the last chunk holds 32
    assert shared.sum() == (by_chunk[1:-1] * 10 > 645 * np.arange(1, 16)).sum()  # halves share no cell
    several, _ = store.blocks(rows, 256, parts=True)
    assert set(several) <= set(by_chunk)
    assert len(several) == 5


# The plan of a loader


def make_adata(n, entries, n_genes, *, seed=0):
    """``entries`` counts a cell, exactly, of a handful of small values."""
    rng = np.random.default_rng(seed)
    step = n_genes // entries
    indices = np.arange(entries) * step + rng.integers(0, step, (n, entries))
    data = rng.integers(1, 4, (n, entries)).astype(np.float32)
    matrix = sparse.csr_matrix(
        (data.ravel(), indices.ravel().astype(np.int32), np.arange(0, n * entries + 1, entries)),
        shape=(n, n_genes),
    )
    obs = pd.DataFrame({"label": pd.Categorical(np.arange(n) // (n // 5))}, index=[f"c{i}" for i in range(n)])
    return ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """6,000 cells of 200 counts, in shuffled gzip chunks of 15 cells."""
    path = tmp_path_factory.mktemp("plan") / "a.h5ad"
    adata = make_adata(6_000, 200, 1_000)
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for name in ("data", "indices"):
            values = file["X"][name][...]
            del file["X"][name]
            file["X"].create_dataset(name, data=values, chunks=(3_000,), compression="gzip", shuffle=True)
    return Atlas(path)


def quiet_loader(atlas, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CellLoader(atlas, **options)


@pytest.mark.parametrize("batch_size", [1, 100, 512, 2_500])
@pytest.mark.parametrize("preload", [0, 1, 3, None])
@pytest.mark.parametrize("memory_limit", [2_000_000, 12_000_000, 80_000_000, 1 << 30])
def test_the_memory_of_a_plan_adds_up_and_stays_within_the_limit(atlas, batch_size, preload, memory_limit):
    for options in ({"genes": ["g1"]}, {"output": "csr"}, {"counts": True}, {"shuffle": False}):
        try:
            loader = quiet_loader(
                atlas, batch_size=batch_size, preload=preload, memory_limit=memory_limit, workers=2, **options
            )
        except InputError as error:
            assert "memory_limit" in str(error)  # noqa: PT017
            assert memory_limit < 100_000_000
            continue
        plan = loader.plan()
        assert plan.memory_bytes <= memory_limit
        assert plan.window_bytes == plan.window * plan.cell_bytes
        batches = loader.preload + 3
        assert plan.memory_bytes == 2 * plan.window_bytes + batches * plan.batch_bytes + plan.scratch_bytes
        assert plan.batch_size == batch_size
        assert plan.n_windows == -(-6_000 // plan.window)
        assert preload is None or loader.preload == preload
        if "shuffle" not in options:
            expected = (
                variance_inflation(plan.block_size, batch_size, plan.window) if plan.n_windows > 1 else 1.0
            )
            assert plan.variance_inflation == pytest.approx(expected)


@pytest.mark.parametrize("counts", ["byte", "two bytes"])
def test_a_window_is_no_larger_than_planned(tmp_path, counts):
    adata = make_adata(6_000, 200, 1_000)
    if counts == "two bytes":
        adata.X.data *= 20_000
    adata.write_h5ad(tmp_path / "a.h5ad")
    atlas = Atlas(tmp_path / "a.h5ad")
    plan = quiet_loader(atlas, batch_size=100, window=5_000).plan()
    assert plan.window == 5_000
    memory = _csr.WindowMemory()
    for start in (0, 1_000):
        window = atlas.store.window(np.arange(start, start + 5_000), memory=memory, threads=1)
        assert window.nbytes <= plan.window_bytes + (
            1 << 20
        )  # the last segment of each thread may be half full
        if counts == "two bytes":
            assert window.nbytes >= 0.8 * plan.window_bytes


def test_a_plan_in_memory_needs_no_windows(atlas):
    plan = CellLoader(atlas.within_memory(), batch_size=64).plan()
    assert plan.source == "in memory"
    assert plan.variance_inflation == 1.0
    assert plan.memory_bytes == 3 * plan.batch_bytes + plan.scratch_bytes


def test_bad_mixing_is_said_and_good_mixing_is_not(atlas):
    with pytest.warns(UserWarning, match=r"batches are mixed badly.*up to 22\.1 times.*memory_limit="):
        CellLoader(atlas, block_size=64, batch_size=200, window=600)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CellLoader(atlas)
        CellLoader(atlas, block_size=4, batch_size=50, window=400)
        CellLoader(atlas, batch_size=1, window=200)  # a batch of one cell cannot be mixed badly


def test_a_plan_says_itself_in_a_line(atlas):
    said = str(CellLoader(atlas).plan())
    assert "\n" not in said
    assert "variance inflation 1.00" in said


RESIDENT = """
import re, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import scdd
from scdd.data.loader import CellLoader
# Of this program alone; getrusage begins with the peak of the one that started it.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
atlas = scdd.Atlas(sys.argv[1])
limit, base = int(sys.argv[2]), peak()
loader = CellLoader(atlas, batch_size=512, genes=list(atlas.var_names[:500]), memory_limit=limit, workers=2)
cells = sum(len(batch.row_ids) for batch in loader)
print(cells, loader.plan().memory_bytes, base, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak where Linux tells it")
def test_resident_memory_stays_within_the_limit(tmp_path):
    """23,000 cells of 1,000 entries are 184 MB as CSR; nothing but the plan's share of it is ever held."""
    n, entries, path, limit = 23_000, 1_000, tmp_path / "large.h5ad", 64 << 20
    adata = make_adata(n, entries, 20_000)
    matrix, adata.X = adata.X, None
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        group = file.create_group("X") if "X" not in file else file["X"]
        group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": matrix.shape}
        )
        group.create_dataset("indptr", data=matrix.indptr)
        for name in ("data", "indices"):
            values = getattr(matrix, name)
            group.create_dataset(name, data=values, chunks=(20_000,), compression="lzf", shuffle=True)
    assert matrix.data.nbytes + matrix.indices.nbytes > 2.5 * limit
    del adata, matrix
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(path), str(limit)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    cells, planned, base, peak = map(int, done.stdout.split())
    assert cells == n
    assert 0.5 * limit < planned <= limit  # or the test would show nothing
    assert peak - base <= limit, (planned, base, peak)
