"""Bytes that a loader's parts take, worked out before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scdd.data.loading.batch import cells_a_call
from scdd.data.loading.plan import Costs, cell_bytes

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas
    from scdd.data.loading.gather import GeneTransform

# Threads hold an encoded and a decoded chunk of both arrays, and a converted copy.
_CHUNKS_A_THREAD = 5
# Of the memory limit, what parts of rows at the ends of chunks may take; and the bytes beside each such part.
_EDGE_SHARE, _EDGE_OVERHEAD = 32, 192
# Bytes that windows take from the system at a time; the last such piece of each thread stays partly empty.
_SMALLEST_SEGMENT, _LARGEST_SEGMENT = 1 << 12, 1 << 21


def segment_bytes(window_bytes: int, workers: int) -> int:
    """Bytes that a thread takes for a window at a time: at most an eighth of its share."""
    share = max(window_bytes // (8 * workers), 1)
    return min(max(1 << (share.bit_length() - 1), _SMALLEST_SEGMENT), _LARGEST_SEGMENT)


def edge_bytes(atlas: Atlas, memory_limit: int) -> int:
    """Bytes for parts of rows that lie in two chunks, until the other chunk is read: half a row for each."""
    needed = atlas.store.n_chunks * int(2 * atlas.mean_entries + _EDGE_OVERHEAD)
    return min(needed, memory_limit // _EDGE_SHARE)


def costs_of(
    atlas: Atlas,
    transform: GeneTransform,
    *,
    output: str,
    dtype: str,
    counts: bool,
    batch_size: int,
    max_genes: int,
    workers: int,
) -> Costs:
    """Bytes of a cell in the window, of a batch, and of the threads' own memory."""
    width = 4 if dtype == "float32" else 2
    entries = atlas.mean_entries * 7 / 6
    # A token is a gene, a value, a coordinate and a segment, and lies there twice where zeros are left out; a
    # sparse entry is a gene and a value.
    sparse = 8 * entries if output == "csr" else 24 * min(entries, max_genes)
    cell = transform.n_columns * width if output == "dense" else sparse
    cell += 4 * transform.n_columns if counts else 0
    # Small batches are made several at a time and share their memory.
    group = batch_size if output == "tokens" else max(batch_size, cells_a_call(cell))
    chunk = atlas.store.largest_chunk
    tables = 40 * atlas.store.n_chunks + 16 * len(atlas.rows)
    scratch = workers * _CHUNKS_A_THREAD * chunk + tables + atlas.store.in_flight
    return Costs(cell_bytes(atlas), int(cell), int(group * cell), scratch)
