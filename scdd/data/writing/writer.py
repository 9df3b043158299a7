"""AnnData files larger than memory: blocks of cells in, a compressed ``.h5ad`` or sharded ``.zarr`` out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdd.data.threads import thread_count
from scdd.data.writing.arrays import Layout
from scdd.data.writing.files import annotate, open_file
from scdd.data.writing.frames import GrowingFrame
from scdd.data.writing.matrix import GrowingCsr
from scdd.errors import DataFileError, InputError
from scdd.output import atomic_path, check_writable
from scdd.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from scipy import sparse

_MAX_GENES = np.iinfo(np.int32).max


def write_csr(
    path: str | Path,
    blocks: Iterable[sparse.csr_matrix | tuple[sparse.csr_matrix, pd.DataFrame]],
    *,
    obs: pd.DataFrame | None,
    var: pd.DataFrame,
    uns: Mapping[str, Any] | None = None,
    dtype: Any = None,
    compression: str | None = "auto",
    level: int = 4,
    shuffle: bool = True,
    chunk_elements: int = 1 << 15,
    shard_elements: int = 1 << 25,
    threads: int | None = None,
    progress: bool = True,
) -> Path:
    """Write ``X`` block by block to a file that AnnData reads; whole or not at all.

    Memory is bounded by one block and, for each of data and indices, two chunks a thread (``.h5ad``) or
    two shards (``.zarr``). Threads compress while the next blocks are made; their number and the sizes
    of the blocks change no chunk.

    Parameters
    ----------
    path
        ``.h5ad``, replaced if it is there, or a new ``.zarr`` folder (format 3).
    blocks
        CSR matrices [n, len(var)]; unsorted and repeated columns are stored as they are. With
        ``obs=None``, pairs of such a matrix and its rows of ``obs``.
    obs
        All cells, as many rows as the blocks have; or None.
    var
        Genes.
    uns
        Unstructured annotation.
    dtype
        Of the stored values; by default that of the first block. Casting may round fractions, it never
        changes a whole number and never overflows.
    compression
        ``.h5ad``: ``"gzip"``, ``"zstd"`` (other readers need hdf5plugin), ``"lzf"`` (one thread) or None;
        ``.zarr``: ``"zstd"``, ``"lz4"``, ``"gzip"`` or None. ``"auto"``: gzip and zstd.
    level
        Of the compression.
    shuffle
        Group the bytes of numbers by significance before they are compressed: smaller and faster to read.
        Does nothing without compression, nor for gzip in ``.zarr``.
    chunk_elements
        Non-zeros compressed together, the least that a reader has to decode.
    shard_elements
        Non-zeros in a file of a ``.zarr``, rounded down to whole chunks.
    threads
        That compress, for ``.h5ad``; by default one a core. zarr's are set by ``zarr.config``.
    progress
        Show a bar; needs ``obs``.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    InputError
        A block of another kind or width, indices outside the genes, values that ``dtype`` cannot hold,
        too few or too many rows, annotation that AnnData cannot store.
    DataFileError
        A folder that is missing or cannot be written, a full disk.
    """
    path = Path(path)
    layout = _layout(path, compression, level, shuffle, chunk_elements, shard_elements)
    check_writable(path, suffixes=(".h5ad", ".zarr"))
    if path.suffix == ".zarr" and path.exists():
        raise DataFileError(f"{path} exists and is no folder; remove it or choose another output")
    threads = thread_count(threads)
    for name, frame in (("var", var), ("obs", obs)):
        if not isinstance(frame, pd.DataFrame) and not (name == "obs" and frame is None):
            raise InputError(f"{name} is a {type(frame).__name__}: pass a pandas DataFrame")
    if len(var) > _MAX_GENES:
        raise InputError(f"var has {len(var):,} rows: column indices are 32 bits, at most {_MAX_GENES:,}")
    bar = nullcontext(_silent) if obs is None else progress_bar("write", len(obs), enabled=progress)
    with atomic_path(path) as temporary, open_file(temporary) as file:
        root = file.root
        annotate(root, {"var": var, "uns": dict(uns or {})} | ({} if obs is None else {"obs": obs}))
        with ThreadPoolExecutor(threads) as pool, _cancelled(pool), bar as advance:
            matrix = GrowingCsr(root, len(var), dtype, layout, pool, 2 * threads)
            frame = GrowingFrame(root, "obs", path.suffix) if obs is None else None
            for number, item in enumerate(blocks):
                advance(_append(matrix, frame, item, number, None if obs is None else len(obs)))
                file.check()
            _finish(matrix, frame, obs)
    return path


def _append(matrix: GrowingCsr, frame: GrowingFrame | None, item: Any, number: int, n_obs: int | None) -> int:
    """Append one block; return its rows."""
    if frame is None:
        block, rows = item, None
    elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], pd.DataFrame):
        block, rows = item
    else:
        raise InputError(
            f"block {number} is no (matrix, data frame): with obs=None its rows of obs belong to it"
        )
    matrix.append(block, number)
    if frame is not None and rows is not None:
        if len(rows) != block.shape[0]:
            raise InputError(f"block {number} has {block.shape[0]} cells and {len(rows)} rows of obs")
        frame.append(rows)
    if n_obs is not None and matrix.n_rows > n_obs:
        raise InputError(
            f"the blocks up to {number} have {matrix.n_rows} cells, obs has {n_obs}; make them agree"
        )
    return int(block.shape[0])


def _finish(matrix: GrowingCsr, frame: GrowingFrame | None, obs: pd.DataFrame | None) -> None:
    matrix.finish()
    if frame is not None:
        frame.finish()
    elif obs is not None and matrix.n_rows != len(obs):
        raise InputError(f"the blocks have {matrix.n_rows} cells, obs has {len(obs)}; make them agree")


@contextmanager
def _cancelled(pool: ThreadPoolExecutor) -> Iterator[None]:
    """On any error, also an interrupt, let chunks that wait for a thread go unwritten."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise


def _layout(path: Path, compression: str | None, level: int, shuffle: bool, chunk: int, shard: int) -> Layout:
    if path.suffix not in (".h5ad", ".zarr"):
        raise InputError(f"{path}: give the output a name that ends in .h5ad or .zarr")
    if compression == "auto":
        compression = "gzip" if path.suffix == ".h5ad" else "zstd"
    return Layout(path.suffix, compression, level, shuffle, chunk, shard)


def _silent(steps: int = 1, note: str = "") -> None:
    """Advance no bar."""
