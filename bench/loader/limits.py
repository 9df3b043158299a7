"""What the machine allows on the same file in the same run: each a contender that does one part of the work alone.

The limit of a loader is the slowest of reading, decoding each byte once on all cores, and writing the batch.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from cases import N_CHOSEN, Case, Stream, files_of
from chunks import Chunks, Files, Matrix, matrix_of, python_decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

# As `_csr.decode_chunk` is told: (kind, parameter, bit of the HDF5 filter mask), last filter applied first.
STEPS = {
    "gzip": [("deflate", 0, 0)],
    "shuffle_gzip": [("deflate", 0, 1), ("shuffle", 4, 0)],
    "zstd": [("zstd", 0, 0)],
    "blosc": [("blosc", 0, -1)],
}
PIECE = 1 << 20  # bytes of a read, and of a copy
READERS = 8  # reads in flight
GROUP = 4  # tasks a thread takes at a time, so that handing them out costs nothing


def spread(work: Callable[[Any], float], tasks: Sequence[Any], threads: int) -> Iterator[float]:
    """Do all tasks in threads, some at a time, with twice as many waiting as threads: none ever idles."""
    groups = (tasks[k : k + GROUP] for k in range(0, len(tasks), GROUP))
    waiting: deque[Future[float]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for group in groups:
            waiting.append(pool.submit(lambda some: sum(map(work, some)), group))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def read(path: Path, _: Case) -> Stream:
    """Read all bytes of the matrix, eight reads at a time: the disk if cold, the page cache if warm."""
    files = files_of(path if path.is_file() else path / "dataset_0" / "X")
    n_cells = len(matrix_of(path).indptr) - 1
    per_cell = sum(file.stat().st_size for file in files) / n_cells
    handles = [os.open(file, os.O_RDONLY) for file in files]
    pieces = [(h, k) for h in handles for k in range(0, os.fstat(h).st_size, PIECE)]

    buffers = threading.local()

    def one(piece: tuple[int, int]) -> float:
        if not hasattr(buffers, "own"):  # written again and again: new memory would cost page faults
            buffers.own = bytearray(PIECE)
        return os.preadv(piece[0], [buffers.own], piece[1]) / per_cell

    return Stream(lambda: spread(one, pieces, READERS), 1, 1)


def fast_decoder(chunks: Chunks) -> tuple[Callable[[bytes], Any], str]:
    """The decoder of scdd, which inflates with libdeflate; Python's where it is not built."""
    try:
        from scdd import _csr

        decode = _csr.decode_chunk
    except (ImportError, AttributeError):
        return python_decoder(chunks), "zlib" if "gzip" in chunks.codec else "numcodecs"
    kinds = [(kind, width_of(chunks, kind), bit) for kind, _, bit in STEPS[chunks.codec]]
    size = chunks.chunk_bytes
    return lambda encoded: decode(encoded, kinds, 0, size, size), "scdd._csr.decode_chunk"


def width_of(chunks: Chunks, kind: str) -> int:
    """The parameter of a step: bytes an element for the shuffle."""
    return chunks.dtype.itemsize if kind == "shuffle" else 0


def decode(path: Path, _: Case) -> Stream:
    """Decode each chunk of data and indices once, on all cores; nothing is gathered or kept."""
    matrix = matrix_of(path)
    tasks, notes = [], set()
    for chunks, share in cost_shares(matrix):
        files = Files(chunks)
        work, note = fast_decoder(chunks)
        notes.add(note)
        cells = share * chunks.length / matrix.per_cell
        tasks.append([(files, work, k, cells) for k in range(len(chunks.bytes))])

    def one(task: tuple[Files, Callable[[bytes], Any], int, float]) -> float:
        files, work, k, cells = task
        work(files.read(k))
        return cells

    both = [task for pair in zip(*tasks, strict=False) for task in pair]
    return Stream(lambda: spread(one, both, os.cpu_count() or 1), 1, 1, note=", ".join(sorted(notes)))


def cost_shares(matrix: Matrix) -> list[tuple[Chunks, float]]:
    """Data and indices; a cell is done when both are, so that each counts for half of it."""
    return [(matrix.data, 0.5), (matrix.indices, 0.5)]


def copy(path: Path, case: Case) -> Stream:
    """Write what a batch holds, from memory to memory, on all cores; `run.measure` asks for non-temporal stores."""
    matrix = matrix_of(path)
    per_cell = 8 * matrix.per_cell + 8 if case.output == "csr" else 4.0 * N_CHOSEN
    threads = os.cpu_count() or 1
    size = 32 << 20  # beyond the second-level cache of a core, as the windows of a loader are
    arrays = [(np.ones(size, np.uint8), np.ones(size, np.uint8)) for _ in range(threads)]

    def one(k: int) -> float:
        source, target = arrays[k % threads]
        np.copyto(target, source)
        return size / per_cell

    repeats = max(1, int((len(matrix.indptr) - 1) * per_cell / size))
    return Stream(
        lambda: spread(one, range(repeats), threads), 1, 1, note=os.environ.get("GLIBC_TUNABLES", "")
    )


LIMITS = {"limit-read": read, "limit-decode": decode, "limit-copy": copy}
