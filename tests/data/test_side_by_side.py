"""Groups of batches that are made on several threads: the same batches in the same order, no thread left."""

from __future__ import annotations

import subprocess
import sys
import threading

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import scdd
from scdd.data.loading.lanes import Lanes
from scdd.data.packed.header import ROWS
from scdd.data.packed.writing import pack
from scdd.errors import DataFileError

N, GENES = 1_200, 30


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory):
    rng = np.random.default_rng(3)
    counts = sparse.random(N, GENES, 0.4, "csr", np.float32, rng, data_rvs=lambda n: 1 + rng.poisson(2.0, n))
    path = tmp_path_factory.mktemp("side") / "cells.h5ad"
    ad.AnnData(counts.astype(np.float32)).write_h5ad(path)
    pack(scdd.Atlas(path), path.with_suffix(".packed"))
    return path


def loader(h5ad, **options):
    options = {"batch_size": 50, "window": 400, "workers": 3, "preload": 2, "output": "csr"} | options
    return scdd.CellLoader(scdd.Atlas(h5ad), cache=h5ad.with_suffix(".packed"), **options)


def content(batches):
    return [
        (
            b.row_ids.tobytes(),
            b.totals.tobytes(),
            b.x.toarray().tobytes() if sparse.issparse(b.x) else b.x.tobytes(),
        )
        for b in batches
    ]


def makers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("scdd-")]


@pytest.mark.parametrize("output", ["csr", "dense"])
@pytest.mark.parametrize("batch_size", [7, 50, 500, 1_100])
def test_the_same_as_one_after_another(h5ad, output, batch_size):
    options = {"output": output, "batch_size": batch_size}
    one_by_one = content(loader(h5ad, workers=1, preload=0, **options))
    for workers in (2, 3, 8):
        assert content(loader(h5ad, workers=workers, **options)) == one_by_one
    assert len(one_by_one) == -(-N // batch_size)


def test_it_is_this_way_that_is_tested(h5ad):
    iterator = iter(loader(h5ad))
    next(iterator)
    assert sum(thread.name.startswith("scdd-batches") for thread in makers()) > 1
    iterator.close()


def test_resumed_in_the_middle_of_a_group(h5ad):
    first = loader(h5ad)
    expected = content(first)
    iterator, again = iter(first), loader(h5ad)
    first.set_epoch(0)
    iterator = iter(first)
    for _ in range(11):
        next(iterator)
    again.load_state_dict(first.state_dict())
    iterator.close()
    assert content(again) == expected[11:]


def test_leaving_early_leaves_no_thread(h5ad):
    for taken in (1, 5, 9):
        iterator = iter(loader(h5ad))
        for _ in range(taken):
            next(iterator)
        iterator.close()
        assert not makers()


def test_batches_that_are_kept_are_not_written_again(h5ad):
    kept = list(loader(h5ad))
    assert content(kept) == content(loader(h5ad, workers=1, preload=0))


def test_damage_comes_in_its_place(h5ad, tmp_path):
    """Batches before it are delivered; the error is raised once and no thread stays."""
    atlas, damaged = scdd.Atlas(h5ad), tmp_path / "damaged.packed"
    pack(atlas, damaged)
    cells = scdd.CellLoader(
        atlas, cache=damaged, batch_size=50, shuffle=False, output="csr", workers=2, preload=1
    )
    offsets = np.load(damaged / "offsets.npy")
    with (damaged / ROWS).open("r+b") as file:
        file.seek(int(offsets[625]))
        file.write(b"\x07")
    delivered = []
    with pytest.raises((DataFileError, ValueError), match="packed row 625 is damaged"):
        delivered.extend(cells)
    assert len(delivered) <= 625 // 50
    assert not makers()


def test_a_thread_iterates_on_when_the_main_thread_has_ended(h5ad):
    program = f"""
import threading
import scdd

loader = scdd.CellLoader({str(h5ad)!r}, cache={str(h5ad.with_suffix(".packed"))!r}, batch_size=10, window=400,
                         output="csr", workers=3, preload=2)

def read():
    n = 0
    for batch in loader:
        n += len(batch.row_ids)
        threading.main_thread().join()  # after which no executor of the standard library takes work
    print(n)

threading.Thread(target=read).start()
"""
    call = [sys.executable, "-c", program]
    done = subprocess.run(call, check=False, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(N), done.stderr


def test_no_more_threads_than_the_system_grants(monkeypatch):
    start, started = threading.Thread.start, []

    def refuse(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    lanes = Lanes(3, name="scdd-batches")
    squares = [lanes.submit(pow, k, 2) for k in range(5)]
    broken = lanes.submit(pow, 0, -1)
    assert [square.result() for square in squares] == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        broken.result()
    lanes.close()
    assert len(started) == 1
    assert not started[0].is_alive()
