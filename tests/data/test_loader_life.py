"""A loader's life beyond one epoch: who moves it, wide atlases, many files, few descriptors, workers."""

from __future__ import annotations

import itertools
import os
import pickle
import resource
import signal
import threading

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse
from torch.utils.data import DataLoader

import scdd
from scdd.data.atlas import Atlas
from scdd.data.loader import CellLoader
from scdd.data.loading.buffers import BufferPool
from scdd.errors import DataFileError, InputError


def write_cells(path, n=300, genes=40, *, seed=0, prefix="g", **options):
    counts = np.random.default_rng(seed).poisson(0.5, (n, genes)).astype(np.float32)
    obs = pd.DataFrame(index=[f"{path.stem}_{i}" for i in range(n)])
    var = pd.DataFrame(index=[f"{prefix}{i}" for i in range(genes)])
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)
    (adata.write_zarr if path.suffix == ".zarr" else adata.write_h5ad)(path, **options)
    return path


@pytest.fixture
def path(tmp_path):
    return write_cells(tmp_path / "cells.h5ad", compression="gzip")


def test_a_path_is_an_atlas_too(path):
    assert sum(len(batch.row_ids) for batch in CellLoader(path)) == 300


@pytest.mark.parametrize("preload", [0, 2])
def test_taking_exactly_all_batches_ends_the_epoch(path, preload):
    loader = CellLoader(Atlas(path), batch_size=64, preload=preload)
    first, second = (
        np.concatenate([batch.row_ids for batch in itertools.islice(loader, len(loader))]) for _ in range(2)
    )
    assert loader.epoch == 2
    assert (first != second).any()
    np.testing.assert_array_equal(np.sort(first), np.sort(second))


def test_an_old_iterator_no_longer_moves_the_loader(path):
    loader = CellLoader(Atlas(path), batch_size=64)
    old = iter(loader)
    next(old)
    loader.set_epoch(7)
    next(old)
    assert loader.state_dict()["batch"] == 0
    list(old)
    assert loader.epoch == 7
    state = loader.state_dict() | {"epoch": 3, "batch": 2}
    loader.load_state_dict(state)
    iter(loader)  # somebody peeks, and takes nothing
    assert len(list(loader)) == len(loader) - 2
    assert loader.epoch == 4


def test_default_settings_take_an_atlas_of_all_genes(tmp_path):
    wide = write_cells(tmp_path / "wide.h5ad", n=40, genes=36_601)
    loader = CellLoader(Atlas(wide))
    assert sum(len(batch.row_ids) for batch in loader) == 40
    assert loader.plan().memory_bytes < 1 << 30


def test_many_small_files_share_segments(tmp_path):
    paths = [write_cells(tmp_path / f"part{i}.h5ad", n=60, seed=i) for i in range(12)]
    loader = CellLoader(Atlas(paths), batch_size=64, workers=8)
    plan = loader.plan()
    window = loader.atlas.store.window(np.arange(720), memory=loader._window_memory(), threads=8)
    assert window.nbytes <= plan.window_bytes + plan.scratch_bytes


def test_stores_of_many_files_need_few_descriptors(tmp_path):

    path = write_cells(tmp_path / "many.zarr", n=3_000)
    matrix = zarr.open_group(path, mode="r+")["X"]
    for name in ("data", "indices"):
        values = matrix[name][...]
        del matrix[name]
        matrix.create_array(name, data=values, chunks=(200,))
    zarr.consolidate_metadata(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (120, hard))
    try:
        atlas = Atlas(path)
        layouts = atlas.store.sources[0].matrix.layouts
        assert layouts is not None
        assert len(layouts[0].paths) > 120
        assert sum(len(batch.row_ids) for batch in CellLoader(atlas)) == 3_000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("array", ["data", "indices"])
def test_a_lost_zarr_chunk_is_refused(tmp_path, array):
    path = write_cells(tmp_path / "lost.zarr", n=500, genes=60)
    chunks = [file for file in (path / "X" / array).rglob("*") if file.is_file() and file.name[0] not in ".z"]
    chunks[0].unlink()
    with pytest.raises(DataFileError, match="incomplete: chunk"):
        Atlas(path)


def test_files_without_a_common_gene_are_refused_whatever_the_join(tmp_path):
    paths = [write_cells(tmp_path / f"{p}.h5ad", prefix=p) for p in ("SYMBOL", "ENSG")]
    for join in ("inner", "outer"):
        with pytest.raises(InputError, match="zero genes in common"):
            Atlas(paths, join=join)


def test_a_buffer_that_is_held_is_never_handed_out_again():
    pool, held, errors = BufferPool(kept=4), [], []

    def work(number):
        own = []
        for k in range(400):
            array = pool.take((64,), np.int64)
            array[:] = number * 1_000 + k
            own.append((array, number * 1_000 + k))
            own = own[-3:]
            errors.extend(value for kept, value in own if (kept != value).any())
        held.append(own)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    free = BufferPool()
    first = free.take((8,), np.float32)
    address = first.ctypes.data
    del first
    assert free.take((8,), np.float32).ctypes.data == address, "a free buffer is used again"
    assert pickle.loads(pickle.dumps(free)).take((2,), np.float32).shape == (2,)


def test_a_forked_process_does_not_wait_for_threads_of_its_parent():
    pool = BufferPool()
    held = pool.take((8,), np.float32)
    with pool._lock:  # as another thread may, just now
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            array = pool.take((8,), np.float32)
            os._exit(array.ctypes.data == held.ctypes.data)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_the_dataset_of_pytorch_meets_every_cell_in_every_epoch(path, workers):
    dataset = scdd.CellDataset(Atlas(path), batch_size=32, seed=1)
    feed = DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    orders = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        orders.append(np.concatenate([np.asarray(batch.row_ids) for batch in feed]))
    assert (orders[0] != orders[1]).any()
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(300))


@pytest.mark.parametrize("batch_size", [2.5, "8", True])
def test_sizes_are_whole_numbers(path, batch_size):
    with pytest.raises(InputError, match=r"batch_size=.* must be a whole number"):
        CellLoader(Atlas(path), batch_size=batch_size)


@pytest.mark.parametrize(
    "options", [{"memory_limit": "1GB"}, {"seed": "x"}, {"seed": 1.5}, {"seed": -1}, {"genes": "GENE1"}]
)
def test_arguments_of_another_kind_are_named(path, options):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"{name}={value!r} "):
        CellLoader(Atlas(path), **options)


@pytest.mark.parametrize("state", [None, {}, {"epoch": 1}, [1]])
def test_a_state_that_is_none_is_refused(path, state):
    with pytest.raises(InputError, match="is no state of a loader"):
        CellLoader(Atlas(path)).load_state_dict(state)


def test_a_state_saved_with_a_cache_says_so(path, tmp_path):
    state = CellLoader(Atlas(path), cache=tmp_path / "a.packed").state_dict()
    with pytest.raises(InputError, match="cache="):
        CellLoader(Atlas(path)).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"batch_size": 8}, {"batch_size": 8, "drop_last": True}])
@pytest.mark.parametrize("transform", [None, lambda batch: batch.x])
def test_a_data_loader_that_would_batch_the_batches_is_told_so(path, options, workers, transform):
    dataset = scdd.CellDataset(Atlas(path), batch_size=32, transform=transform)
    loader = DataLoader(dataset, num_workers=workers, **options)
    with pytest.raises(InputError, match=r"pass DataLoader\(dataset, batch_size=None\)"):
        next(iter(loader))


def test_data_loaders_that_deliver_batches_as_they_are(path):
    dataset = scdd.CellDataset(Atlas(path), batch_size=32)
    plain = [len(batch.x) for batch in dataset]
    assert [len(batch.x) for batch in DataLoader(dataset, batch_size=None)] == plain
    assert [len(batch.x) for batch in DataLoader(dataset, collate_fn=lambda batches: batches[0])] == plain
