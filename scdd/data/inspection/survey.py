"""How cells of a file can be read: how it lies, how fast that is here and now, and what would be better."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scdd import _csr
from scdd.data.expression import Expression, Values, look, values_of
from scdd.data.formats.address import shown
from scdd.data.formats.matrix import MemoryMatrix
from scdd.data.formats.transcoded import TranscodedRows
from scdd.data.inspection.reading_speed import Speed, is_parallel, reading_speed
from scdd.data.inspection.stored_form import Form, form_of
from scdd.data.joined import JoinedRows
from scdd.data.loading.blocks import mean_block
from scdd.data.loading.plan import cell_bytes, choose_sizes, inflation, largest_window
from scdd.data.packed.store import PackedStore
from scdd.data.source import Source
from scdd.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from scipy import sparse

    from scdd.data.formats.matrix import RowMatrix
    from scdd.data.source import Store

# Seconds of measurement, and share of them in which threads worked, from which on a limit can be named.
_ENOUGH, _BUSY = 0.01, 0.6
# What a loader has if nobody says otherwise.
_BATCH, _MEMORY = 512, 1 << 30
_ENTRIES = 1 << 20


class Survey(NamedTuple):
    """What is worth knowing of a matrix, and the kind of its values."""

    values: Values
    lines: list[str]


class Looked(NamedTuple):
    """One matrix, with those attributes of an atlas that a plan is made from."""

    store: JoinedRows
    expression: Expression

    @property
    def n_vars(self) -> int:
        """Genes."""
        return len(self.store.var_names)

    @property
    def mean_entries(self) -> float:
        """Stored entries of an average cell."""
        return self.store.mean_entries


def survey(path: Path | str, store: Store, name: str) -> Survey:
    """Look at values, form and speed of one of the matrices of a file; takes about half a second.

    ``path`` is a `str` where it is a URL.

    Raises
    ------
    DataFileError
        The matrix is damaged, or its values cannot be read.
    """
    start = time.perf_counter()
    matrix = store.layers[name]()
    opening = time.perf_counter() - start
    base = getattr(matrix, "base", matrix)  # of a choice of its columns
    form = form_of(path, name, base.place.rpartition(": ")[2])
    if isinstance(base, TranscodedRows):
        return _by_columns(base, form)
    lines = [] if form is None else form.lines()
    values = look(matrix)
    if not matrix.shape[0]:
        return Survey(values, lines)
    if isinstance(base, MemoryMatrix):
        return Survey(values, [*lines, *_in_memory(base, form, opening)])
    if isinstance(base, PackedStore):
        return Survey(values, [*_packed(base), *_said(reading_speed(base, None)[0], base, form)])
    why = getattr(base, "why_indirect", None)
    lines.append(_reader(form, why))
    try:
        looked = Looked(_alone(store, name, matrix), _kind(values))
        blocks, mixing = _mixing(looked)
    except InputError as error:
        blocks, mixing = None, str(error)
    speed, sample = reading_speed(matrix, blocks)
    lines += [*_said(speed, matrix, form), mixing, *_advice(path, why, matrix, sample)]
    return Survey(values, lines)


def _alone(store: Store, name: str, matrix: RowMatrix) -> JoinedRows:
    genes = store.var_names["raw/X" if name == "raw/X" else "X"]
    return JoinedRows([Source(store.name, store.obs, genes, matrix, name, "counts")], genes)


def _kind(values: Values) -> Expression:
    return "counts" if values.fits("counts") else "fractional"


def _reader(form: Form | None, why: str | None) -> str:
    if why is not None:
        return f"read slowly, one thread at a time: {why}"
    if form is not None and form.order == "dense":
        return "read by h5py or zarr, one thread at a time: dense, and made sparse on the way"
    return "read directly, by C++ threads"


def _mixing(looked: Any) -> tuple[np.ndarray, str]:
    """Blocks that a loader would read, int64 [n + 1], and how well its batches would mix."""
    n = len(looked.store)
    batch = min(_BATCH, n)
    cell = cell_bytes(looked)
    most = largest_window(cell, batch_size=batch, memory_limit=_MEMORY)
    rows = np.arange(n, dtype=np.int64)
    options = {"batch_size": batch, "block_size": None, "window": None, "most": most}
    sizes = choose_sizes(looked, rows, **options)  # type: ignore[arg-type]
    assert sizes.edges is not None
    window = min(sizes.window, n)
    factor = inflation(sizes.edges, batch_size=batch, window=window, n_rows=n)
    said = (
        f"batches of {batch} mix with a variance inflation of {factor:.2f}: blocks of "
        f"{mean_block(sizes.edges):,.0f} cells, two windows of {window:,} cells in "
        f"{2 * window * cell / 2**20:,.0f} MiB"
    )
    return sizes.edges, said


def _said(speed: Speed, matrix: RowMatrix, form: Form | None) -> list[str]:
    return [str(speed), *([_limit(speed, matrix, form)] if speed.seconds >= _ENOUGH else [])]


def _limit(speed: Speed, matrix: RowMatrix, form: Form | None) -> str:
    if speed.busy < _BUSY:
        fetched = getattr(getattr(matrix, "base", matrix), "in_flight", 0)
        waited_for = "the network" if fetched else "the disk"
        return (
            f"limited by waiting for {waited_for}, or for cores that others use: "
            f"threads worked {speed.busy:.0%} of the time (without waiting: {speed.unhindered:,.0f} cells/s)"
        )
    if isinstance(matrix, PackedStore):
        return "limited by unpacking"
    if form is not None and form.codecs:
        return f"limited by decoding {form.codecs}" + ("" if is_parallel(matrix) else " on one thread")
    return "limited by copying: nothing is compressed"


def _packed_bytes(block: sparse.csr_matrix) -> float:
    """Bytes a cell takes when it is packed."""
    arrays = (np.ascontiguousarray(block.data), np.ascontiguousarray(block.indices))
    records, _ = _csr.pack_rows(*arrays, block.indptr.astype(np.int64), block.shape[1])
    return len(records) / max(block.shape[0], 1) + 8


def _advice(path: Path | str, why: str | None, matrix: RowMatrix, sample: sparse.csr_matrix) -> list[str]:
    size = _packed_bytes(sample) * matrix.shape[0] / 1e6
    said = [f"`scdd pack {shown(str(path))}` gives a truly random order, for about {size:,.1f} MB of disk"]
    again = "also read by all threads: the same file written with gzip, zstd, lz4, lzf or nothing"
    return said if why is None else [*said, again]


def _in_memory(matrix: MemoryMatrix, form: Form | None, opening: float) -> list[str]:
    how = "text" if form is None else "rows cannot be read from columns" if form.order == "CSC" else ""
    return [
        f"read whole into memory on opening ({opening:.1f} s just now, {matrix.nbytes / 1e6:,.1f} MB)"
        f"{f': {how}' if how else ''}",
        "any order costs the same there; `scdd pack` spares the opening",
    ]


def _packed(packed: PackedStore) -> list[str]:
    size = sum(sums.size for sums in packed.header.files.values())
    return [
        f"packed, {size / max(packed.shape[0], 1):,.0f} bytes a cell on disk; every cell on its own",
        "read directly, by C++ threads, in a truly random order",
    ]


def _by_columns(matrix: TranscodedRows, form: Form | None) -> Survey:
    """A large CSC is not converted to be looked at: some of its entries are read as they lie."""
    group = matrix._group
    data, indices = group["data"], group["indices"]
    n, size = int(data.shape[0]), min(_ENTRIES // 8, int(data.shape[0]))
    start = time.perf_counter()
    places = sorted({int(place) for place in np.linspace(0, n - size, 8)})
    values = [np.asarray(data[place : place + size], dtype=np.float32) for place in places]
    for place in places:
        indices[place : place + size]
    seconds = (time.perf_counter() - start) * n / max(size * len(places), 1)
    sample = np.concatenate(values)
    return Survey(
        values_of(sample),
        [
            *([] if form is None else form.lines()),
            "rows cannot be read from columns: scdd converts it once each time that it is opened, in a "
            f"temporary folder of about {2 * n / 1e6:,.0f} MB; reading alone takes some {seconds:,.0f} s "
            f"(measured on {len(sample):,} entries just now)",
            "`scdd pack` converts it once and for all, and gives a truly random order",
        ],
    )
