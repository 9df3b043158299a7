"""A stored CSC matrix by rows, in bounded memory: its entries go to files of row ranges, then into order."""

from __future__ import annotations

import errno
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scdd.data.formats.buckets import Buckets
from scdd.errors import DataFileError, InputError
from scdd.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy import sparse

# Bytes of memory an entry takes while it is dealt out to the buckets, and while a bucket is put in order:
# row, column, value, the same as CSR, a part of the file, the block before, which a caller may hold.
_DEALT_BYTES = 100
_ORDERED_BYTES = 48
# Bytes of a row in order (its indptr, thrice), eightfold; of a column (indptr as stored, as int64, sizes).
_ROW_BYTES = 192
_COLUMN_BYTES = 32
_FILE_BYTES = 12
_SMALLEST_BUDGET = 1 << 20
_LARGEST_BUDGET = 1 << 36  # so that a block has fewer than 2^31 entries and rows
_MOST_BUCKETS = 2**16 - 1


@dataclass(frozen=True)
class _Columns:
    """A CSC matrix on disk: its checked ``indptr``, and what a share of the memory can hold of it."""

    data: Any
    indices: Any
    indptr: np.ndarray
    shape: tuple[int, int]
    place: str
    budget: int

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return int(self.indptr[-1])

    @property
    def most_entries(self) -> int:
        """Entries that are put in order at once."""
        return self.budget // _ORDERED_BYTES

    @property
    def rows_per_bucket(self) -> int:
        """As many rows as would hold two thirds of what fits, were all of the same size."""
        by_entries = -(-3 * self.nnz // (2 * self.most_entries))
        by_rows = -(-self.shape[0] * _ROW_BYTES // self.budget)
        return max(-(-self.shape[0] // max(by_entries, by_rows, 1)), 1)


def rows_of_columns(
    group: Any,
    shape: tuple[int, int],
    *,
    memory_limit: int,
    place: str,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Iterator[sparse.csr_matrix]:
    """Rows of a CSC matrix in an open h5ad or zarr group, in order, as float32 CSR blocks.

    One pass over the columns appends (row, column, value) to a temporary file for each range of rows; every
    file is then read and sorted by row. Columns ascend in each row; duplicated entries are added up.

    Parameters
    ----------
    group
        Holds ``data``, ``indices`` (rows) and ``indptr`` (of columns).
    shape
        Rows, columns.
    memory_limit
        Bytes. The peak is at most this, one decoded chunk of ``data`` and one of ``indices``, as long as
        the caller holds no more than the latest block.
    place
        What to call the matrix in messages.
    folder
        Where the temporary files go, 12 bytes an entry; they are removed at the end, also after an error.
        By default that of `tempfile`.
    progress
        Show a bar during the pass over the columns.

    Raises
    ------
    InputError
        ``memory_limit`` is too small for a matrix of this shape.
    DataFileError
        The matrix is corrupt or cannot be read, or the disk is full.
    """
    n_rows, n_columns = (int(n) for n in shape)
    fixed = _COLUMN_BYTES * (n_columns + 1)
    least = max(_ORDERED_BYTES * n_columns, _SMALLEST_BUDGET)
    if memory_limit - fixed < least:
        raise InputError(
            f"memory_limit={memory_limit} is too small for the {n_columns:,} columns of {place}; "
            f"allow {fixed + least:,} bytes or more"
        )
    budget = min(int(memory_limit) - fixed, _LARGEST_BUDGET)
    columns = _Columns(*_parts(group, place), (n_rows, n_columns), place, budget)
    _check(columns)
    where = Path(folder or tempfile.gettempdir())
    _check_space(columns, where)
    return _stream(columns, where, progress)


def _parts(group: Any, place: str) -> tuple[Any, Any, np.ndarray]:
    """``data``, ``indices`` and ``indptr``, the last of them in memory as int64."""
    try:
        parts = [group[key] for key in ("data", "indices", "indptr")]
        if not all(part.dtype.kind in kinds for part, kinds in zip(parts, ("biuf", "iu", "iu"), strict=True)):
            raise ValueError("its arrays are not all numbers")
        return parts[0], parts[1], np.asarray(parts[2][...]).astype(np.int64)
    except Exception as error:  # zarr lets the errors of its codecs through as they are
        raise DataFileError(
            f"{place} is not a complete sparse matrix ({error}); write the file again"
        ) from error


def _check(columns: _Columns) -> None:
    indptr, fault = columns.indptr, None
    data, indices = columns.data.shape, columns.indices.shape
    if indptr.shape != (columns.shape[1] + 1,):
        fault = f"indptr has {indptr.size} entries for {columns.shape[1]} columns"
    elif indptr[0] != 0 or np.any(indptr[1:] < indptr[:-1]):
        fault = "indptr does not start at 0 or decreases"
    elif not data == indices == (columns.nnz,):
        fault = f"indptr ends at {columns.nnz}, data holds {data}, indices {indices}"
    elif columns.shape[1] > np.iinfo(np.int32).max:
        fault = f"it has {columns.shape[1]} columns"
    elif columns.nnz and not columns.shape[0]:
        fault = "it has entries but no rows"
    if fault:
        raise DataFileError(f"{columns.place} is corrupt: {fault}; write the file again")
    if columns.shape[0] > columns.rows_per_bucket * _MOST_BUCKETS:
        raise InputError(
            f"memory_limit is too small for the {columns.nnz:,} entries of {columns.place}; allow more"
        )


def _check_space(columns: _Columns, folder: Path) -> None:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise DataFileError(
            f"the folder {folder} cannot be used ({error.strerror}); choose another"
        ) from error
    if free < _FILE_BYTES * columns.nnz:
        raise _full(columns, folder)


def _full(columns: _Columns, folder: Path) -> DataFileError:
    return DataFileError(
        f"{folder} has no room for the {_FILE_BYTES * columns.nnz / 1e9:.3g} GB of temporary files that "
        f"reading {columns.place} by rows takes; free some or choose another folder"
    )


def _stream(columns: _Columns, folder: Path, progress: bool) -> Iterator[sparse.csr_matrix]:
    try:
        with tempfile.TemporaryDirectory(prefix="scdd-columns-", dir=folder) as temporary:
            buckets = Buckets(Path(temporary), *columns.shape, columns.rows_per_bucket, columns.most_entries)
            _deal(columns, buckets, progress=progress)
            for number in range(len(buckets.counts)):
                yield from buckets.take(number)
    except DataFileError:
        raise
    except ValueError as error:
        raise DataFileError(f"{columns.place} is corrupt: {error}; write the file again") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(columns, folder) from error
        raise DataFileError(
            f"the temporary files of {columns.place} in {folder} cannot be written or read "
            f"({error.strerror or error}); choose another folder"
        ) from error


def _deal(columns: _Columns, buckets: Buckets, *, progress: bool) -> None:
    """Read all entries once, in the order in which they are stored."""
    size = columns.budget // _DEALT_BYTES
    starts = range(0, columns.nnz, size)
    with progress_bar("reading columns", len(starts), enabled=progress) as advance:
        for start in starts:
            stop = min(start + size, columns.nnz)
            rows, values = _read(columns, start, stop)
            buckets.add(rows, _columns_of(columns.indptr, start, stop), values)
            advance()


def _read(columns: _Columns, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (uint32, or uint64 of more than 2^32 rows) and values (float32) of entries ``start:stop``."""
    try:
        rows = np.asarray(columns.indices[start:stop])
        values = np.asarray(columns.data[start:stop], dtype=np.float32)
    except Exception as error:  # zarr lets the errors of its codecs through as they are
        raise DataFileError(f"{columns.place} cannot be read at entries {start}:{stop} ({error})") from error
    if rows.min() < 0 or rows.max() >= columns.shape[0]:
        raise DataFileError(
            f"{columns.place} is corrupt: a row index outside 0..{columns.shape[0] - 1} "
            f"in entries {start}:{stop}; write the file again"
        )
    return rows.astype(np.uint32 if columns.shape[0] <= 2**32 else np.uint64), values


def _columns_of(indptr: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Column of each of the entries ``start:stop``, int32."""
    first = int(np.searchsorted(indptr, start, side="right")) - 1
    last = int(np.searchsorted(indptr, stop, side="left"))
    sizes = np.diff(np.clip(indptr[first : last + 1], start, stop))
    return np.repeat(np.arange(first, last, dtype=np.int32), sizes)
