"""Atlases behind URLs: the same cells as from the local file, few requests, and faults that say where."""

from __future__ import annotations

import gc
import http.server
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import anndata as ad
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from typer.testing import CliRunner

import scdd
from scdd import _csr
from scdd.cli.verbs import app
from scdd.data.formats import mirror as mirrors
from scdd.data.formats import ranges, remote, remote_file, remote_rows
from scdd.data.formats.address import shown
from scdd.data.formats.layout import ArrayLayout
from scdd.data.formats.readers import LibraryReader
from scdd.data.packed.fingerprint import is_fresh
from scdd.data.packed.writing import pack
from scdd.errors import DataFileError, InputError

fsspec = pytest.importorskip("fsspec")
memory = pytest.importorskip("fsspec.implementations.memory")

pytestmark = [
    pytest.mark.filterwarnings("ignore:batches are mixed badly"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata"),
]

CELLS, GENES = 600, 40
LAYOUTS = ["raw.h5ad", "gzip.h5ad", "lzf.h5ad", "contiguous.h5ad", "v2.zarr", "v3.zarr", "sharded.zarr"]
LOADER = {"batch_size": 32, "window": 128, "seed": 3}


class Bucket(memory.MemoryFileSystem):
    """An object store in memory that counts requests and misbehaves as it is told."""

    protocol = "bucket"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    requests: ClassVar = []
    failures = 0
    short = False
    error = ConnectionError("the line is dead")

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("bucket://", "memory://"))

    def cat_file(self, path, start=None, end=None, **options):
        path = self._strip_protocol(path)
        self.requests.append((path, start, end))
        if type(self).failures:
            type(self).failures -= 1
            raise self.error
        found = super().cat_file(path, start, end, **options)
        return found[:-1] if type(self).short else found

    @classmethod
    def put_local(cls, path, url):
        """One local file or folder."""
        fs = cls(skip_instance_cache=True)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                inner = f"/{file.relative_to(path)}" if path.is_dir() else ""
                fs.pipe_file(url + inner, file.read_bytes())


@pytest.fixture
def bucket(monkeypatch):
    """The class itself, empty and well-behaved; requests are repeated without waiting."""
    Bucket.store, Bucket.pseudo_dirs, Bucket.requests = {}, [""], []
    Bucket.failures, Bucket.short = 0, False
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.0)
    monkeypatch.setenv("SCDD_CACHE", "")
    return Bucket


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(5)
    dense = rng.poisson(0.7, (CELLS, GENES)) * (rng.random((CELLS, 1)) > 0.1)
    return sparse.csr_matrix(dense, dtype=np.float32)


@pytest.fixture(scope="module")
def folder(counts, tmp_path_factory):
    """One atlas in all layouts, in small chunks."""
    where = tmp_path_factory.mktemp("layouts")
    made = ad.AnnData(counts)
    made.obs["kind"] = [f"kind {n % 3}" for n in range(CELLS)]
    made.obs_names, made.var_names = [f"c{n}" for n in range(CELLS)], [f"g{n}" for n in range(GENES)]
    for name in LAYOUTS:
        write(made, where / name)
    return where


def write(made, path):
    kind, suffix = path.stem, path.suffix
    if suffix == ".zarr":
        ad.settings.zarr_write_format = 2 if kind == "v2" else 3
        try:
            made.write_zarr(path)
        finally:
            ad.settings.reset("zarr_write_format")
        return rechunk_zarr(path, made.X, shards=kind == "sharded")
    made.write_h5ad(path)
    options = {"raw": {}, "gzip": {"compression": "gzip"}, "lzf": {"compression": "lzf"}}.get(kind)
    with h5py.File(path, "r+") as file:
        for name, chunk in (("data", 300), ("indices", 170)):
            del file["X"][name]
            limit = {} if options is None else {"chunks": (chunk,), **options}
            file["X"].create_dataset(name, data=getattr(made.X, name), **limit)
    return path


def rechunk_zarr(path, csr, *, shards):
    import zarr

    group = zarr.open_group(path, mode="r+")
    for name, chunk in (("data", 300), ("indices", 170)):
        del group["X"][name]
        values = getattr(csr, name)
        more = {"shards": (8 * chunk,)} if shards else {}
        array = group["X"].create_array(name, shape=values.shape, dtype=values.dtype, chunks=(chunk,), **more)
        array[...] = values
    zarr.consolidate_metadata(path)
    return path


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Static files with `Range` and `ETag`, and nothing else."""

    def do_HEAD(self):
        self.reply(body=False)

    def do_GET(self):
        self.reply(body=True)

    def reply(self, *, body):
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        path = Path(self.translate_path(self.path.partition("?")[0]))
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        etag, size, asked = f'"{hash(content)}"', len(content), self.headers.get("Range")
        if asked and self.server.serves_ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            content = content[-int(last) :] if not first else content[int(first) : int(last or size) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        else:
            self.send_response(200)
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *ignored):
        pass


class Server(http.server.ThreadingHTTPServer):
    """Takes as many connections at once as a client makes."""

    request_queue_size = 512


@pytest.fixture
def web(folder):
    """A web server over the layouts; no listings."""
    pytest.importorskip("aiohttp")
    server = Server(("127.0.0.1", 0), lambda *given: Ranges(*given, directory=str(folder)))
    server.asked, server.serves_ranges = [], True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(params=["bucket", "file", "local", "memory", "http"])
def url_of(request, folder, bucket, monkeypatch):
    """``url_of(name)`` of a layout, by every protocol."""
    if request.param == "http":
        port = request.getfixturevalue("web").server_address[1]
        return lambda name: (
            f"http://127.0.0.1:{port}/{name}{'' if name.endswith('.zarr') else '?signature=secret'}"
        )
    if request.param in ("file", "local"):
        return lambda name: f"{request.param}://{folder / name}"

    def put(name):
        target = Bucket if request.param == "bucket" else memory.MemoryFileSystem
        Bucket.put_local.__func__(target, folder / name, f"{request.param}://store/{name}")
        return f"{request.param}://store/{name}"

    return put


def batches(loader):
    return [(batch.x, batch.row_ids) for batch in loader]


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def put(name, folder, url=None):
    url = url or f"bucket://store/{name}"
    Bucket.put_local(folder / name, url)
    return url


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_cells_as_from_the_local_file(url_of, folder, counts, name):
    local, distant = scdd.Atlas(folder / name), scdd.Atlas(url_of(name))
    assert distant.notes() == local.notes()
    assert distant.name == local.name == name
    assert distant.obs.equals(local.obs)
    rows = np.random.default_rng(0).integers(0, CELLS, 200)
    for some in (rows, rows[:1], rows[:0], np.arange(CELLS)):
        assert (distant.read(some) != counts[some]).nnz == 0
    assert_same(batches(scdd.CellLoader(distant, **LOADER)), batches(scdd.CellLoader(local, **LOADER)))


@pytest.mark.parametrize("name", ["gzip.h5ad", "sharded.zarr"])
def test_resumed_and_on_two_ranks(bucket, folder, name):
    url = put(name, folder)
    wanted = batches(scdd.CellLoader(folder / name, **LOADER))
    first = scdd.CellLoader(url, **LOADER)
    for count, _ in enumerate(first, 1):
        if count == 5:
            break
    later = scdd.CellLoader(folder / name, **LOADER)
    later.load_state_dict(first.state_dict())  # a run may move from one place to the other
    assert_same(batches(later), wanted[5:])
    again = scdd.CellLoader(url, **LOADER)
    again.load_state_dict(first.state_dict())
    assert_same(batches(again), wanted[5:])
    for rank in range(2):
        share = {"rank": rank, "world_size": 2}
        own = scdd.CellLoader(url, **LOADER, **share), scdd.CellLoader(folder / name, **LOADER, **share)
        assert_same(*map(batches, own))


def test_what_distils_and_streams_reads_it_too(bucket, folder):
    url = put("gzip.h5ad", folder)
    statistics = [scdd.cell_statistics(scdd.Atlas(source)) for source in (url, folder / "gzip.h5ad")]
    for one, other in zip(*statistics, strict=True):
        np.testing.assert_array_equal(one, other)
    options = {"label_key": "kind", "cells_per_class": 2, "method": "random", "progress": False}
    made, wanted = (scdd.distill(scdd.Atlas(source), **options) for source in (url, folder / "gzip.h5ad"))
    np.testing.assert_array_equal(made.X, wanted.X)
    held = scdd.Atlas(url).within_memory()
    assert held.in_memory is not None


@pytest.mark.parametrize("kind", ["dense", "csc", "filter"])
def test_what_has_no_direct_path_goes_by_h5py(bucket, tmp_path, counts, kind):
    path = tmp_path / "a.h5ad"
    made = ad.AnnData({"dense": counts.toarray(), "csc": counts.tocsc(), "filter": counts}[kind])
    made.write_h5ad(path)
    if kind == "filter":
        with h5py.File(path, "r+") as file:
            del file["X/data"]
            file["X"].create_dataset("data", data=counts.data.astype("i4"), scaleoffset=0, chunks=(500,))
    bucket.put_local(path, "bucket://store/a.h5ad")
    atlas = scdd.Atlas("bucket://store/a.h5ad")
    assert (atlas.read(np.arange(CELLS)) != counts).nnz == 0
    if kind == "filter":
        assert any("slowly" in note and "scaleoffset" in note for note in atlas.notes())
        stored = atlas.store.sources[0].matrix
        assert isinstance(stored._reader, LibraryReader)
        again = pickle.loads(pickle.dumps(stored))
        assert (again.read(0, 50) != counts[:50]).nnz == 0


def test_a_10x_file(bucket, tmp_path, counts):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group.create_dataset(name, data=getattr(counts, name), chunks=True, compression="gzip")
        group["shape"] = np.array([GENES, CELLS])
        group["barcodes"] = np.array([f"c{n}" for n in range(CELLS)], "S")
        features = group.create_group("features")
        features["id"] = features["name"] = np.array([f"g{n}" for n in range(GENES)], "S")
    bucket.put_local(tmp_path / "a.h5", "bucket://store/a.h5")
    atlas = scdd.Atlas("bucket://store/a.h5")
    assert atlas.notes() == scdd.Atlas(tmp_path / "a.h5").notes()
    assert (atlas.read(np.arange(CELLS)) != counts).nnz == 0


def test_neighbouring_chunks_come_by_one_request(bucket, folder):
    atlas = scdd.Atlas(put("gzip.h5ad", folder))
    assert len(bucket.requests) < 25  # opening, the first look at the values included
    bucket.requests.clear()
    atlas.read(np.arange(CELLS))
    size = bucket.store["/store/gzip.h5ad"].size
    assert len(bucket.requests) == 1  # some 90 chunks of data and indices in a few hundred kilobytes
    assert sum(end - start for _, start, end in bucket.requests) < size


def test_each_object_is_asked_for_once(bucket, folder):
    atlas = scdd.Atlas(put("v3.zarr", folder))
    bucket.requests.clear()
    atlas.read(np.arange(CELLS))
    layouts = atlas.store.sources[0].matrix.layouts
    assert len(bucket.requests) == sum(len(each.paths) for each in layouts)
    assert len(set(bucket.requests)) == len(bucket.requests)


def test_a_chunk_index_is_fetched_by_levels(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_file, "_BLOCK", 2_048)  # or a file as small as this lies in a few of them
    monkeypatch.setattr(remote_file, "_MOST_AHEAD", 1)
    rng = np.random.default_rng(0)
    csr = sparse.random(
        6_000, 500, 0.3, "csr", dtype=np.float32, rng=rng, data_rvs=lambda n: rng.integers(1, 9, n)
    )
    ad.AnnData(csr).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        for name in ("data", "indices"):
            del file["X"][name]
            file["X"].create_dataset(name, data=getattr(csr, name), chunks=(220,), compression="lzf")
    bucket.put_local(tmp_path / "a.h5ad", "bucket://store/a.h5ad")
    asked, plain = [], bucket.cat_ranges
    monkeypatch.setattr(
        bucket, "cat_ranges", lambda self, *given, **more: asked.append(1) or plain(self, *given, **more)
    )
    atlas = scdd.Atlas("bucket://store/a.h5ad")
    assert atlas.store.n_chunks > 8_000
    assert len(asked) < 70  # HDF5 alone asks for each of some 200 leaves
    assert (atlas.read(np.arange(0, 6_000, 7)) != csr[np.arange(0, 6_000, 7)]).nnz == 0


def used(where):
    """Bytes that the files of all mirrors in a folder take on disk."""
    return sum(path.stat().st_blocks * 512 for path in Path(where).rglob("scdd-remote-*/*"))


@pytest.mark.parametrize("name", ["gzip.h5ad", "raw.h5ad", "v3.zarr", "sharded.zarr"])
@pytest.mark.parametrize("holes", [True, False])
def test_disk_use_is_bounded_and_given_back(bucket, folder, counts, tmp_path, monkeypatch, name, holes):
    monkeypatch.setattr(mirrors.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(remote_rows, "PART", 4_096)
    monkeypatch.setattr(ranges, "GAP", 0)
    if not holes:
        monkeypatch.setattr(mirrors, "_hole_puncher", lambda: None)
    atlas = scdd.Atlas(put(name, folder))
    matrix = atlas.store.sources[0].matrix
    seen, keep = [], mirrors.Mirror.keep

    def watched(self, spans):
        keep(self, spans)
        seen.append((used(tmp_path), sum(stop - start for _, start, stop in spans), len(spans)))

    monkeypatch.setattr(mirrors.Mirror, "keep", watched)
    window = _csr.Window(CELLS, GENES, _csr.WindowMemory())
    rows = np.arange(CELLS, dtype=np.int64)
    for _ in range(2):
        matrix.fill(window, rows, rows, threads=2)
    assert len(seen) > 8
    if holes:
        # A block of the file system more at both ends of each piece.
        assert all(taken <= kept + 2 * 4_096 * pieces for taken, kept, pieces in seen)
    else:
        whole = sum(int(each.sizes.sum()) for each in matrix.layouts)
        assert max(taken for taken, _, _ in seen) <= 2 * whole + 4_096 * 700
    assert used(tmp_path) == 0
    out = np.empty((CELLS, GENES), np.float32)
    window.gather_dense(rows, np.arange(GENES, dtype=np.int32), out)
    np.testing.assert_array_equal(out, counts.toarray())
    assert list(tmp_path.iterdir())
    del atlas, matrix
    gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["gzip.h5ad", "sharded.zarr"])
def test_a_line_that_fails_for_a_while(bucket, folder, counts, name):
    url = put(name, folder)
    bucket.failures = 3
    atlas = scdd.Atlas(url)
    for failures in (1, 3):
        bucket.failures = failures
        assert (atlas.read(np.arange(100)) != counts[:100]).nnz == 0


def test_a_line_that_stays_dead(bucket, folder):
    url = put("gzip.h5ad", folder)
    atlas = scdd.Atlas(url)
    bucket.failures = 1_000
    with pytest.raises(
        DataFileError, match=r"bucket://store/gzip.h5ad cannot be read at bytes \d+:\d+ .*dead"
    ) as e:
        atlas.read(np.arange(10))
    assert e.value.__cause__ is bucket.error
    with pytest.raises(DataFileError, match=r"bucket://store/gzip.h5ad cannot be read .*check the network"):
        scdd.Atlas(url)
    bucket.failures = 1_000
    with pytest.raises(DataFileError, match=r"bucket://store/v3.zarr"):
        scdd.Atlas(put("v3.zarr", folder))
    bucket.failures = 0
    atlas.read(np.arange(10))  # when the line is back, so is the atlas


def test_an_answer_that_is_too_short(bucket, folder):
    atlas = scdd.Atlas(put("gzip.h5ad", folder))
    bucket.short = True
    with pytest.raises(
        DataFileError, match=r"store/gzip.h5ad cannot be read at bytes \d+:\d+ \(\d+ bytes came for"
    ):
        atlas.read(np.arange(10))


def test_a_server_without_ranges(web, folder, bucket):
    web.serves_ranges = False
    port = web.server_address[1]
    with pytest.raises(DataFileError, match=r"does not serve ranges\); copy the file to a local disk"):
        scdd.Atlas(f"http://127.0.0.1:{port}/gzip.h5ad")
    # Each time it sends the whole file.
    assert len(set(web.asked)) == len(web.asked)


def test_a_large_file_does_not_come_whole(web, folder, bucket, monkeypatch):
    monkeypatch.setattr(remote, "_LARGE", 1_000)
    url = f"http://127.0.0.1:{web.server_address[1]}/gzip.h5ad"
    atlas = scdd.Atlas(url)
    assert web.asked[:2] == [("HEAD", "/gzip.h5ad", None), ("GET", "/gzip.h5ad", "bytes=1-1025")]
    assert len(atlas) == CELLS
    web.serves_ranges, web.asked = False, []
    with pytest.raises(DataFileError, match=r"gzip.h5ad cannot be read \(its server does not serve ranges"):
        scdd.Atlas(url)
    assert len(web.asked) == 2, "nothing more was fetched"


@pytest.mark.parametrize("name", ["gzip.h5ad", "v2.zarr", "sharded.zarr"])
def test_an_object_replaced_while_in_use(bucket, folder, name):
    url = put(name, folder)
    loader = scdd.CellLoader(url, preload=0, **LOADER)
    rest = iter(loader)
    next(rest)
    time.sleep(0.01)
    for path, held in list(bucket.store.items()):
        bucket(skip_instance_cache=True).pipe_file(path, held.getvalue())  # the same bytes: they cannot know
    with pytest.raises(
        DataFileError, match=r"bucket://store/.* was changed, replaced or removed while in use"
    ):
        list(rest)
    for path in list(bucket.store):
        del bucket.store[path]
    with pytest.raises(DataFileError, match="was changed, replaced or removed"):
        loader.atlas.read(np.arange(CELLS))


def test_a_table_is_never_of_one_object_and_its_chunks_of_another(bucket, folder, tmp_path):
    url = put("gzip.h5ad", folder)
    store = scdd.data.source.store_of(url)
    time.sleep(0.01)
    put("gzip.h5ad", folder, url)
    with pytest.raises(DataFileError, match="changed"):
        store.layers["X"]().read(0, 10)


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        (
            "bucket://store/none.h5ad",
            DataFileError,
            r"bucket://store/none.h5ad cannot be read \(it does not exist",
        ),
        ("bucket://store/none.zarr", DataFileError, r"bucket://store/none.zarr does not exist or is no zarr"),
        ("bucket://store/none", DataFileError, "bucket://store/none cannot be read"),
        ("bucket://store/a.packed", InputError, "local disks only"),
        ("nothing://store/a.h5ad", InputError, r"nothing://store/a.h5ad cannot be opened .*driver"),
        ("https://host/a.zarr?signed=1", InputError, "https://host/a.zarr is a folder .*query"),
        ("bucket://store/text.h5ad", DataFileError, "bucket://store/text.h5ad is not a readable h5ad"),
    ],
)
def test_what_cannot_be_opened(bucket, url, error, said):
    bucket(skip_instance_cache=True).pipe_file("bucket://store/text.h5ad", b"no cells here" * 100)
    with pytest.raises(error, match=said):
        scdd.Atlas(url)


def test_a_damaged_chunk_is_named_by_its_url(bucket, folder, tmp_path):
    content = bytearray((folder / "gzip.h5ad").read_bytes())
    with h5py.File(folder / "gzip.h5ad") as file:
        place = file["X/data"].id.get_chunk_info(5)
    content[place.byte_offset : place.byte_offset + place.size] = b"\xff" * place.size
    bucket(skip_instance_cache=True).pipe_file("bucket://store/bad.h5ad", bytes(content))
    with pytest.raises(DataFileError, match=r"chunk 5 .*of bucket://store/bad.h5ad.*again") as error:
        scdd.Atlas("bucket://store/bad.h5ad").read(np.arange(CELLS))
    assert "scdd-remote" not in str(error.value)


def test_without_fsspec(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "fsspec"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError, match=r"s3://bucket/a.h5ad is read through fsspec; pip install 'scdd\[remote\]'"
    ):
        scdd.Atlas("s3://bucket/a.h5ad")


def test_local_paths_do_not_import_fsspec(folder):
    code = (
        "import sys, scdd; sys.modules['fsspec'] = None\n"
        f"scdd.Atlas({str(folder / 'gzip.h5ad')!r}).read([0])\n"
        "assert not [name for name in sys.modules if name.startswith('scdd.data.formats.remote')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_the_process_ends_well_with_files_open(folder):
    # HDF5 closes what is open after Python has gone; it must not ask Python for anything then.
    code = (
        "import scdd, h5py\n"
        f"atlas = scdd.Atlas('file://{folder / 'gzip.h5ad'}')\n"
        "rest = iter(scdd.CellLoader(atlas, batch_size=32, window=64)); next(rest)\n"
        f"other = h5py.File({str(folder / 'raw.h5ad')!r})\n"
        "from scdd.data.formats import remote, remote_file\n"
        f"root = remote_file.open_remote_h5(remote.RemoteFiles('file://{folder / 'lzf.h5ad'}'))\n"
        "import ctypes; ctypes.pythonapi.Py_IncRef(ctypes.py_object(root.id))\n"  # never freed
        "remote.FIRST_WAIT = 0\n"
        "remote.RemoteFiles._ask = lambda self, ranges: [ConnectionError('dead')] * len(ranges)\n"
        "try: scdd.Atlas('file://' + other.filename)\n"
        "except scdd.errors.DataFileError: print('dead')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("name", ["gzip.h5ad", "sharded.zarr"])
def test_pickled_and_forked(folder, counts, tmp_path, monkeypatch, name):
    monkeypatch.setattr(mirrors.tempfile, "tempdir", str(tmp_path))
    atlas = scdd.Atlas(f"file://{folder / name}")
    again = pickle.loads(pickle.dumps(atlas.store.sources[0].matrix))
    assert (again.read(0, 90) != counts[:90]).nnz == 0
    mine = {path.name for path in tmp_path.iterdir()}
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put(atlas.read(np.arange(50)).toarray()))
    child.start()
    np.testing.assert_array_equal(answers.get(), counts[:50].toarray())
    child.join()
    assert child.exitcode == 0
    assert mine <= {path.name for path in tmp_path.iterdir()}  # those of the parent are still there
    assert (atlas.read(np.arange(50)) != counts[:50]).nnz == 0


def test_several_threads_read_at_once(bucket, folder, counts):
    atlas = scdd.Atlas(put("gzip.h5ad", folder))
    wrong = []

    def work(seed):
        rows = np.random.default_rng(seed).integers(0, CELLS, 40)
        for _ in range(10):
            if (atlas.read(rows) != counts[rows]).nnz:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_cancelling_stops_before_the_next_request(bucket, folder, monkeypatch):
    monkeypatch.setattr(remote_rows, "PART", 4_096)
    matrix = scdd.Atlas(put("gzip.h5ad", folder)).store.sources[0].matrix
    cancel = _csr.Cancel()
    cancel.request()
    bucket.requests.clear()
    rows = np.arange(CELLS, dtype=np.int64)
    with pytest.raises(_csr.Cancelled):
        matrix.fill(_csr.Window(CELLS, GENES, _csr.WindowMemory()), rows, rows, cancel=cancel)
    assert not bucket.requests


def test_leaving_an_epoch_ends_its_threads(bucket, folder):
    before = threading.active_count()
    for _ in scdd.CellLoader(put("gzip.h5ad", folder), **LOADER):
        break
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scdd")]
    assert threading.active_count() <= before + 2


def test_packed_once_and_found_fresh_without_reading(bucket, folder, counts, tmp_path):
    url = put("gzip.h5ad", folder)
    packed = pack(scdd.Atlas(url), tmp_path / "a.packed")
    assert (packed.read(0, CELLS) != counts).nnz == 0
    atlas = scdd.Atlas(url)
    bucket.requests.clear()
    assert is_fresh(tmp_path / "a.packed", atlas)
    assert not bucket.requests
    time.sleep(0.01)
    put("gzip.h5ad", folder)
    assert not is_fresh(tmp_path / "a.packed", scdd.Atlas(url))


def test_on_the_command_line(bucket, folder):
    told = CliRunner().invoke(app, ["info", put("gzip.h5ad", folder), "--label", "kind"])
    assert told.exit_code == 0, told.output
    assert f"bucket://store/gzip.h5ad: {CELLS} cells" in told.output
    assert "read directly, by C++ threads" in told.output
    assert "kind 1: 200" in told.output
    refused = CliRunner().invoke(app, ["pack", "bucket://store/gzip.h5ad"])
    assert "--out" in str(refused.exception)


def test_memory_in_flight_is_part_of_the_plan(bucket, folder):
    loaders = [
        scdd.CellLoader(source, **LOADER) for source in (put("gzip.h5ad", folder), folder / "gzip.h5ad")
    ]
    matrix = loaders[0].atlas.store.sources[0].matrix
    assert 0 < matrix.in_flight <= sum(int(each.sizes.sum()) for each in matrix.layouts)
    assert loaders[0].plan().scratch_bytes - loaders[1].plan().scratch_bytes == matrix.in_flight


def test_secrets_are_not_shown():
    assert shown("https://me:word@host/a.h5ad?X-Amz-Signature=abc#x") == "https://host/a.h5ad"
    assert shown("s3://bucket/a@b.h5ad") == "s3://bucket/a@b.h5ad"
    assert shown("/local/what?.h5ad") == "/local/what?.h5ad"


def layout(length, chunk, *, steps, rng, paths=("p",), missing=0.0):
    n = -(-length // chunk) if length else 0
    sizes = rng.integers(1, 9, n) if steps else np.full(n, 4 * chunk)
    offsets = np.cumsum(sizes) - sizes + rng.integers(0, 9, n).cumsum()
    offsets = np.where(rng.random(n) < missing, -1, offsets)
    files = rng.integers(0, len(paths), n).astype(np.int32)
    known = tuple(None for _ in paths)
    step = (("deflate", 0, 0),) if steps else ()
    table = files, offsets, sizes, np.zeros(n, np.uint32)
    return ArrayLayout("a", paths, known, *table, chunk, length, np.dtype("f4"), step, 0.0)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.booleans(), st.booleans(), st.sampled_from([1, 20, 500]))
def test_the_bytes_of_rows(seed, n_rows, first_encoded, second_encoded, most):
    rng = np.random.default_rng(seed)
    indptr = np.concatenate([[0], np.cumsum(rng.integers(0, 9, n_rows))]).astype(np.int64)
    length = int(indptr[-1])
    both = [
        layout(length, int(rng.integers(1, 30)), steps=encoded, rng=rng, paths=paths, missing=0.1)
        for encoded, paths in ((first_encoded, ("p", "q")), (second_encoded, ("q", "r")))
    ]
    files = {"p": 0, "q": 1, "r": 2}
    found = ranges.RowBytes(*both, indptr, files)
    rows = np.sort(rng.choice(n_rows, int(rng.integers(0, n_rows + 1)), replace=False))
    spans = found.spans(rows)
    assert spans == sorted(spans)
    have = {(number, byte) for number, start, stop in spans for byte in range(start, stop)}
    closed = ranges.coalesced(spans)
    assert have <= {(n, byte) for n, start, stop in closed for byte in range(start, stop)}
    for row in rows:
        for each in both:
            for element in range(indptr[row], indptr[row + 1]):
                chunk, inside = divmod(element, each.chunk_length)
                if each.offsets[chunk] < 0:
                    continue
                place, number = int(each.offsets[chunk]), files[each.paths[each.file_of_chunk[chunk]]]
                wanted = range(each.sizes[chunk]) if each.steps else range(4 * inside, 4 * inside + 4)
                assert {(number, place + byte) for byte in wanted} <= have
    parts = found.parts(rows, most)
    np.testing.assert_array_equal(np.concatenate([rows[part] for part in parts] + [rows[:0]]), rows)
    assert all(part.start < part.stop for part in parts)


def test_long_spans_are_cut_and_gaps_closed(monkeypatch):
    monkeypatch.setattr(ranges, "GAP", 10)
    monkeypatch.setattr(ranges, "LONGEST", 100)
    spans = [(0, 0, 30), (0, 40, 60), (0, 71, 80), (0, 75, 78), (1, 80, 300)]
    assert ranges.coalesced(spans) == [(0, 0, 60), (0, 71, 80), (1, 80, 180), (1, 180, 280), (1, 280, 300)]


@pytest.mark.parametrize("many", [False, True])
def test_a_mirror(tmp_path, monkeypatch, many):
    monkeypatch.setattr(mirrors.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(mirrors, "_STANDING", 2 if many else 5)
    own = mirrors.Mirror([1 << 20] * 3)
    content = np.random.default_rng(0).integers(0, 256, 1 << 19, dtype=np.uint8).tobytes()
    for number in range(2):
        own.write(number, 1_000, content)
    own.keep([(0, 5_000, 6_000), (0, 300_000, 310_000)])
    whole = Path(own.paths[0]).read_bytes()
    assert len(whole) == 1 << 20
    assert whole[5_000:6_000] == content[4_000:5_000]
    assert whole[300_000:310_000] == content[299_000:309_000]
    assert used(tmp_path) <= 11_000 + 4 * 4_096
    own.clear()
    assert used(tmp_path) == 0
    assert Path(own.paths[1]).exists() != many
    own.write(1, 0, b"again")
    assert Path(own.paths[1]).read_bytes()[:5] == b"again"
    own.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(mirrors.tempfile, "tempdir", str(tmp_path))
    own = mirrors.Mirror([100])

    def full(*ignored):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DataFileError, match=r"No space left.*TMPDIR"):
        own.write(0, 0, b"bytes")


def test_no_folder_for_the_bytes_that_come(tmp_path, monkeypatch):
    monkeypatch.setattr(mirrors.tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(DataFileError, match=r"gone \(No such file or directory\).*TMPDIR"):
        mirrors.Mirror([100])

    def full(*ignored):
        raise OSError(27, "File too large")

    monkeypatch.setattr(mirrors.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(mirrors.Mirror, "_empty", full)
    with pytest.raises(DataFileError, match=r"File too large.*TMPDIR"):
        mirrors.Mirror([100])
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_not_there_is_not_a_file_that_is_missing(monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_address[1]
    with pytest.raises(DataFileError, match=r"cannot be read \(ClientConnectorError") as error:
        scdd.Atlas(f"http://127.0.0.1:{port}/a.h5ad")
    assert "does not exist" not in str(error.value)
