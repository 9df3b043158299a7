"""Entries of a sparse matrix dealt out to temporary files, one a range of rows, and read back in order."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Buckets:
    """Files of (row, column, value) in a folder; rows are counted from the first of their bucket.

    A row may hold at most ``most_entries``; `take` raises ValueError where one holds more.

    Parameters
    ----------
    folder
        Empty; the caller removes it.
    n_rows, n_columns
        Shape of the whole matrix.
    rows_per_bucket
        Bucket ``i`` holds rows ``i * rows_per_bucket`` and on.
    most_entries
        As many as are put in order at once.
    """

    def __init__(self, folder: Path, n_rows: int, n_columns: int, rows_per_bucket: int, most_entries: int):
        self.folder, self.n_columns, self.most_entries = folder, n_columns, most_entries
        self.rows_per_bucket, self._n_rows = rows_per_bucket, n_rows
        self.counts = np.zeros(-(-n_rows // rows_per_bucket), dtype=np.int64)

    def add(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """Append entries (unsigned, int32, float32) in ascending order of columns; overwrites ``rows``."""
        bucket = (rows // rows.dtype.type(self.rows_per_bucket)).astype(np.uint16)
        rows -= bucket.astype(rows.dtype) * rows.dtype.type(self.rows_per_bucket)
        sizes = np.bincount(bucket, minlength=len(self.counts))
        order = np.argsort(bucket, kind="stable")  # a radix sort, and columns stay in order
        entries = rows.astype(np.uint32, copy=False)[order], columns[order], values[order]
        ends = np.cumsum(sizes)
        for number in np.flatnonzero(sizes):
            share = slice(ends[number] - sizes[number], ends[number])
            with self._path(int(number)).open("ab") as file:
                file.write(np.int64(sizes[number]).tobytes())
                for part in entries:
                    file.write(part[share].data)
        self.counts += sizes

    def take(self, number: int) -> Iterator[sparse.csr_matrix]:
        """Rows of one bucket in order, in several parts if it holds too much for one; its file is removed."""
        n_rows = min(self.rows_per_bucket, self._n_rows - number * self.rows_per_bucket)
        ends = self._divide(number, n_rows) if self.counts[number] > self.most_entries else [0, n_rows]
        for first, last in pairwise(ends):
            yield self._sorted(number, first, last)
        self._path(number).unlink(missing_ok=True)

    def _divide(self, number: int, n_rows: int) -> list[int]:
        """Bounds of row ranges that hold at most ``most_entries`` each."""
        sizes = np.zeros(n_rows, dtype=np.int64)
        for rows, _, _ in self._blocks(number):
            sizes += np.bincount(rows, minlength=n_rows)
        if sizes.max() > self.most_entries:
            raise ValueError(f"a row has {sizes.max()} entries in {self.n_columns} columns")
        ends, total = [0], np.cumsum(sizes)
        while ends[-1] < n_rows:
            before = total[ends[-1] - 1] if ends[-1] else 0
            ends.append(int(np.searchsorted(total, before + self.most_entries, side="right")))
        return ends

    def _sorted(self, number: int, first: int, last: int) -> sparse.csr_matrix:
        """Rows ``first:last`` of a bucket; duplicated entries are added up."""
        count = sum(int(_between(rows, first, last).sum()) for rows, _, _ in self._blocks(number))
        entries = tuple(np.empty(count, dtype=dtype) for dtype in (np.int32, np.int32, np.float32))
        at = 0
        for block in self._blocks(number):
            chosen = _between(block[0], first, last)
            share = slice(at, at + int(chosen.sum()))
            for whole, part in zip(entries, block, strict=True):
                whole[share] = part[chosen]
            at = share.stop
        rows, columns, values = entries
        rows -= first
        # A counting sort, which keeps the order of columns.
        return sparse.coo_matrix((values, (rows, columns)), shape=(last - first, self.n_columns)).tocsr()

    def _blocks(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """What `add` wrote: their number (int64), rows (uint32), columns (int32) and values (float32)."""
        if not self.counts[number]:
            return
        with self._path(number).open("rb") as file:
            while header := file.read(8):
                count = int(np.frombuffer(header, dtype=np.int64)[0])
                rows = np.fromfile(file, dtype=np.uint32, count=count)
                yield rows, np.fromfile(file, np.int32, count), np.fromfile(file, np.float32, count)

    def _path(self, number: int) -> Path:
        return self.folder / str(number)


def _between(rows: np.ndarray, first: int, last: int) -> np.ndarray:
    return (rows >= first) & (rows < last)
