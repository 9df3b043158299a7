"""CellLoader: what it delivers, in which order, and how it resumes and stops."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scdd.data.loader import CellLoader
from scdd.data.preprocess import Preprocessor
from scdd.data.shuffle import EpochOrder
from scdd.errors import InputError

N_CELLS, N_GENES = 1_003, 40


class FakeAtlas:
    """What the loader needs of an atlas; `memory=False` reads as a file would, and keeps what was asked."""

    def __init__(self, matrix, *, expression="counts", memory=False):
        self.matrix, self.expression, self.memory = matrix, expression, memory
        self.n_obs, self.n_vars = matrix.shape
        self.var_names = pd.Index([f"g{i}" for i in range(self.n_vars)])
        names = np.array(["T", "B", "NK", None], dtype=object)[np.arange(self.n_obs) % 4]
        self.obs = pd.DataFrame(
            {"cell_type": pd.Categorical(names), "donor": [f"d{i % 3}" for i in range(self.n_obs)]}
        )
        self.asked, self.readers, self.reading = [], set(), threading.Event()

    @property
    def in_memory(self):
        return self.matrix if self.memory else None

    def read(self, rows):
        self.asked.append(rows)
        self.readers.add(threading.current_thread().name)
        self.reading.set()
        return self.matrix[rows].astype(np.float32)


def make_atlas(n=N_CELLS, *, seed=0, **options):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.5, (n, N_GENES)).astype(np.float32)
    counts[::17] = 0  # empty cells
    return FakeAtlas(sparse.csr_matrix(counts), **options)


@pytest.fixture(params=[True, False], ids=["memory", "file"])
def atlas(request):
    return make_atlas(memory=request.param)


def order_of(loader):
    return np.concatenate([batch.row_ids for batch in loader])


def expected_x(atlas, rows, columns=slice(None)):
    counts = atlas.matrix[rows].toarray().astype(np.float64)
    totals = counts.sum(1)
    scale = np.divide(1e4, totals, out=np.zeros_like(totals), where=totals > 0)
    return np.log1p(counts * scale[:, None])[:, columns], counts[:, columns], totals


@pytest.mark.parametrize("output", ["dense", "csr"])
def test_batches_hold_what_the_atlas_holds(atlas, output):
    genes = ["g7", "g0", "g31"]
    loader = CellLoader(
        atlas,
        batch_size=100,
        genes=genes,
        output=output,
        counts=True,
        labels=["cell_type", "donor"],
        window=300,
    )
    for batch in loader:
        x = batch.x if output == "dense" else batch.x.toarray()
        exact, counts, totals = expected_x(atlas, batch.row_ids, [7, 0, 31])
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, exact, rtol=1e-6)
        np.testing.assert_array_equal(batch.counts, counts)
        np.testing.assert_array_equal(batch.totals, totals)
        assert batch.row_ids.dtype == batch.codes["donor"].dtype == np.int64
        donors = np.array(loader.categories["donor"])[batch.codes["donor"]]
        np.testing.assert_array_equal(donors, atlas.obs["donor"].to_numpy()[batch.row_ids])
        missing = atlas.obs["cell_type"].isna().to_numpy()[batch.row_ids]
        np.testing.assert_array_equal(batch.codes["cell_type"] == -1, missing)
        if output == "csr":
            assert batch.x.has_canonical_format
            assert batch.x.indices.dtype == np.int32
    assert loader.categories["cell_type"] == ["B", "NK", "T"]


def test_csr_adds_duplicates_before_log1p():
    matrix = sparse.csr_matrix(
        (np.array([1, 2, 1], np.float32), np.array([2, 2, 0], np.int32), np.array([0, 3])), shape=(1, N_GENES)
    )
    atlas = FakeAtlas(matrix, memory=True)
    dense, csr = (next(iter(CellLoader(atlas, output=output))).x for output in ("dense", "csr"))
    np.testing.assert_allclose(csr.toarray(), dense, rtol=1e-6)
    np.testing.assert_allclose(dense[0, [0, 2]], np.log1p([2_500, 7_500]), rtol=1e-6)


def test_unnormalised_and_log1p_data_pass_through():
    counts = next(iter(CellLoader(make_atlas(), normalise=False)))
    logged = next(iter(CellLoader(make_atlas(expression="log1p"))))
    for batch in (counts, logged):
        np.testing.assert_array_equal(batch.x, make_atlas().matrix[batch.row_ids].toarray())
    assert counts.counts is None


def test_preprocessor_chooses_and_standardises(atlas):
    genes = pd.Index(["g3", "g1", "absent"])
    mean, std = np.array([1, 2, 3], np.float32), np.array([2, 4, 0.5], np.float32)
    preprocessor = Preprocessor(genes, "counts", 1e4, mean, std)
    plain = next(iter(CellLoader(atlas, preprocessor=preprocessor)))
    scaled = next(iter(CellLoader(atlas, preprocessor=preprocessor, standardise=True)))
    exact = np.zeros((len(plain.x), 3))
    exact[:, :2] = expected_x(atlas, plain.row_ids, [3, 1])[0]
    np.testing.assert_allclose(plain.x, exact, rtol=1e-6)
    np.testing.assert_allclose(scaled.x, (exact - mean) / std, rtol=1e-5, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    n_rows=st.integers(0, 400),
    batch_size=st.integers(1, 50),
    block_size=st.integers(1, 40),
    window=st.integers(1, 120),
    shuffle=st.booleans(),
    seed=st.integers(0, 1_000),
)
def test_an_order_is_a_permutation_and_can_be_entered_at_any_window(
    n_rows, batch_size, block_size, window, shuffle, seed
):
    order = EpochOrder(n_rows, batch_size, block_size, window, seed, 0, shuffle)
    windows = list(order.windows())
    assert len(windows) == order.n_windows
    positions = np.concatenate([*windows, np.zeros(0, np.int64)])
    np.testing.assert_array_equal(np.sort(positions), np.arange(n_rows))
    if not shuffle:
        np.testing.assert_array_equal(positions, np.arange(n_rows))
    for part in windows[:-1]:
        assert len(part) == order.batches_per_window * batch_size
        # Blocks are whole but for the two that a window may cut and the last one of all.
        assert len(np.unique(part // block_size)) <= -(-len(part) // block_size) + 2
    for first in {0, len(windows) // 2, max(0, len(windows) - 1)}:
        for again, part in zip(order.windows(first), windows[first:], strict=True):
            np.testing.assert_array_equal(again, part)


def test_blocks_land_anywhere_and_windows_mix_them():
    order = EpochOrder(32_000, 100, 32, 3_200, 0, 0, True)
    first = next(iter(order.windows()))
    assert first.max() - first.min() > 25_000  # blocks from all over
    assert (np.abs(np.diff(first)) == 1).mean() < 0.05  # and no longer in runs
    assert len(np.unique(first // 32)) == 100  # yet whole blocks


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 64, 1_003, 5_000])
def test_each_epoch_meets_each_row_once(atlas, shuffle, batch_size):
    rows = np.arange(5, 905, 3) if batch_size == 64 else np.arange(N_CELLS)
    loader = CellLoader(atlas, batch_size=batch_size, rows=rows, shuffle=shuffle, window=200)
    for _ in range(2):
        batches = [batch.row_ids for batch in loader]
        assert len(batches) == len(loader)
        assert all(len(batch) == batch_size for batch in batches[:-1])
        np.testing.assert_array_equal(np.sort(np.concatenate(batches)), rows)


def test_without_shuffle_rows_come_as_given(atlas):
    rows = np.random.default_rng(0).integers(0, N_CELLS, 300)  # any order, some twice
    loader = CellLoader(atlas, batch_size=64, rows=rows, shuffle=False, window=128)
    batches = list(loader)
    np.testing.assert_array_equal(np.concatenate([batch.row_ids for batch in batches]), rows)
    x = np.concatenate([batch.x for batch in batches])
    np.testing.assert_allclose(x, expected_x(atlas, rows)[0], rtol=1e-6)


def test_rows_may_be_a_mask(atlas):
    mask = np.arange(N_CELLS) % 5 == 0
    np.testing.assert_array_equal(np.sort(order_of(CellLoader(atlas, rows=mask))), np.flatnonzero(mask))


def test_drop_last(atlas):
    loader = CellLoader(atlas, batch_size=100, drop_last=True, window=250)
    sizes = [len(batch.row_ids) for batch in loader]
    assert sizes == [100] * 10
    assert len(loader) == 10


def test_order_depends_on_seed_and_epoch_alone(atlas):
    def make(**options):
        return CellLoader(atlas, **{"batch_size": 64, "window": 256, **options})

    first = order_of(make())
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(order_of(make(threads=threads)), first)
    assert (order_of(make(seed=1)) != first).any()
    loader = make()
    zero, one = order_of(loader), order_of(loader)
    np.testing.assert_array_equal(zero, first)
    assert (one != zero).any()
    assert loader.epoch == 2
    loader.set_epoch(1)
    np.testing.assert_array_equal(order_of(loader), one)


def test_memory_is_shuffled_fully_and_files_by_block():
    for memory, block in ((True, 1), (False, 32)):
        atlas = make_atlas(4_000, memory=memory)
        first = order_of(CellLoader(atlas, batch_size=100, window=400))[:400]
        expected = 400 / 32 if block == 32 else len(np.unique(np.arange(4_000) // 32)) * 0.9
        distinct = len(np.unique(first // 32))
        assert distinct <= expected + 2 if block == 32 else distinct > expected


def test_files_are_read_in_ascending_runs():
    atlas = make_atlas(4_000)
    list(CellLoader(atlas, batch_size=100, window=800))
    assert len(atlas.asked) == 5
    for rows in atlas.asked:
        assert (np.diff(rows) > 0).all()
        assert (np.diff(rows) == 1).mean() > 0.9
    assert all(name.startswith("scdd-loader") for name in atlas.readers)


def test_shuffled_rows_may_be_given_in_any_order():
    rows = np.random.default_rng(0).permutation(4_000)
    atlas = make_atlas(4_000)
    order = order_of(CellLoader(atlas, rows=rows, batch_size=100, window=800))
    np.testing.assert_array_equal(order, order_of(CellLoader(atlas, batch_size=100, window=800)))


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 7, 15, 16])
def test_resume_is_exact(atlas, stop):
    def make():
        return CellLoader(atlas, batch_size=64, window=200, counts=True)

    whole = make()
    batches = [*whole, *whole]
    interrupted = make()
    for _ in itertools.islice(interrupted, stop):
        pass
    state = json.loads(json.dumps(interrupted.state_dict()))
    resumed = make()
    resumed.load_state_dict(state)
    resumed.set_epoch(resumed.epoch)  # as a training loop would; must not lose the place
    assert resumed.state_dict() == (state if stop < 16 else {**state, "epoch": 1, "batch": 0})
    rest = [*resumed, *resumed][: len(batches) - stop]
    for batch, reference in zip(rest, batches[stop:], strict=False):
        np.testing.assert_array_equal(batch.row_ids, reference.row_ids)
        np.testing.assert_array_equal(batch.x, reference.x)
        np.testing.assert_array_equal(batch.counts, reference.counts)
    assert len(rest) >= 32 - stop - 16 * (stop == 16)


def test_a_new_iteration_starts_over(atlas):
    loader = CellLoader(atlas, batch_size=64, window=200)
    first = next(iter(loader)).row_ids
    np.testing.assert_array_equal(next(iter(loader)).row_ids, first)
    loader.set_epoch(1)
    assert (next(iter(loader)).row_ids != first).any()


def test_a_state_of_another_order_is_refused(atlas):
    state = CellLoader(atlas, batch_size=64).state_dict()
    for options in (
        {"batch_size": 65},
        {"seed": 1},
        {"rows": np.arange(9)},
        {"shuffle": False},
        {"drop_last": True},
    ):
        with pytest.raises(InputError, match=r"the saved loader had .*same settings"):
            CellLoader(atlas, **{"batch_size": 64, **options}).load_state_dict(state)


def test_batches_own_their_arrays(atlas):
    batches = list(CellLoader(atlas, batch_size=64, window=128, counts=True, labels="donor"))
    # A view would keep a whole window alive.
    assert all(
        array.flags.owndata
        for b in batches
        for array in (b.x, b.row_ids, b.counts, b.totals, b.codes["donor"])
    )
    copies = [(batch.x.copy(), batch.row_ids.copy(), batch.counts.copy()) for batch in batches]
    for batch in batches[::2]:
        batch.x[:] = -1
        batch.row_ids[:] = -1
        batch.counts[:] = -1
        batch.codes["donor"][:] = -1
        batch.totals[:] = -1
    for batch, (x, row_ids, counts) in list(zip(batches, copies, strict=True))[1::2]:
        np.testing.assert_array_equal(batch.x, x)
        np.testing.assert_array_equal(batch.row_ids, row_ids)
        np.testing.assert_array_equal(batch.counts, counts)
    again = CellLoader(atlas, batch_size=64, window=128, labels="donor")
    assert all((batch.codes["donor"] >= 0).all() for batch in again)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("scdd-loader")]


def test_the_next_window_is_read_ahead():
    atlas = make_atlas()
    batches = iter(CellLoader(atlas, batch_size=50, window=100))
    next(batches)
    deadline = time.monotonic() + 5
    while len(atlas.asked) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(atlas.asked) == 2  # one ahead, and no more
    batches.close()


@pytest.mark.parametrize("leave", [StopIteration, KeyboardInterrupt, ValueError])
def test_leaving_early_joins_the_thread(atlas, leave):
    loader = CellLoader(atlas, batch_size=50, window=100)
    if leave is StopIteration:
        for _ in loader:
            break
    else:
        with pytest.raises(leave):
            for _ in loader:
                raise leave
    assert loader_threads() == []


def test_ctrl_c_while_waiting_for_a_read_ends_the_program():
    program = """
import signal, threading, time, os
import numpy as np, pandas as pd
from scipy import sparse
from scdd.data.loader import CellLoader
class Slow:
    expression, in_memory, n_obs, n_vars = "counts", None, 100, 2
    var_names, obs = pd.Index(["a", "b"]), pd.DataFrame(index=range(100))
    def read(self, rows):
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        time.sleep(1)
        return sparse.csr_matrix((len(rows), 2), dtype=np.float32)
try:
    for _ in CellLoader(Slow()): pass
except KeyboardInterrupt:
    print([t.name for t in threading.enumerate() if t.name.startswith("scdd-loader")])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_an_error_while_reading_ahead_reaches_the_loop(monkeypatch):
    atlas = make_atlas()
    read = atlas.read

    def failing(rows):
        if atlas.asked:
            raise OSError("the disk is gone")
        return read(rows)

    monkeypatch.setattr(atlas, "read", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        list(CellLoader(atlas, batch_size=50, window=100))
    assert loader_threads() == []


def test_labels_with_given_categories(atlas):
    loader = CellLoader(atlas, labels={"donor": ["d2", "d0"]})
    batch = next(iter(loader))
    expected = np.array([1, -1, 0])[batch.row_ids % 3]
    np.testing.assert_array_equal(batch.codes["donor"], expected)
    assert loader.categories == {"donor": ["d2", "d0"]}


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float16, np.uint16, np.float64])
def test_values_of_any_dtype_in_memory(dtype):
    atlas = make_atlas(memory=True)
    atlas.matrix.data = atlas.matrix.data.clip(max=1).astype(dtype)
    expected = atlas.matrix.astype(np.float32).toarray()
    batch = next(iter(CellLoader(atlas, normalise=False)))
    np.testing.assert_array_equal(batch.x, expected[batch.row_ids])


def test_no_cells_no_batches(atlas):
    loader = CellLoader(atlas, rows=np.array([], dtype=int))
    assert list(loader) == []
    assert len(loader) == 0


PREPROCESSOR = Preprocessor(pd.Index(["g1"]), "counts")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"block_size": 0}, "block_size=0"),
        ({"window": -1}, "window=-1"),
        ({"threads": 0}, "threads=0"),
        ({"seed": -1}, "seed=-1"),
        ({"output": "coo"}, "output='coo'; choose"),
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
    ],
)
def test_arguments_that_cannot_be_used(atlas, options, message):
    with pytest.raises(InputError, match=message):
        CellLoader(atlas, **options)


def test_log1p_data_has_no_counts():
    with pytest.raises(InputError, match="counts=True"):
        CellLoader(make_atlas(expression="log1p"), counts=True)
    with pytest.raises(InputError, match="epoch=-1"):
        CellLoader(make_atlas()).set_epoch(-1)


def test_importing_the_loader_imports_no_torch():
    program = "import sys, scdd.data.loader; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
