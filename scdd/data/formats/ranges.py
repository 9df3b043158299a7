"""Which bytes of which files hold the rows of a stored CSR matrix, and how they are best asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scdd.data.formats.layout import ArrayLayout

# Read over rather than asked for twice; and the most that one request brings.
GAP = 1 << 16
LONGEST = 1 << 23
# `scdd._csr` reads over gaps of this many bytes between rows of arrays that are not encoded.
_BRIDGED = 1 << 14

# Number of a file, first byte, end.
Span = tuple[int, int, int]


def coalesced(spans: Iterable[Span]) -> list[Span]:
    """Ascending spans with small gaps closed, cut into pieces of at most `LONGEST` bytes."""
    found: list[Span] = []
    for number, start, stop in spans:
        if found and found[-1][0] == number and start - found[-1][2] <= GAP:
            found[-1] = (number, found[-1][1], max(found[-1][2], stop))
        else:
            found.append((number, start, stop))
    return [
        (number, first, min(first + LONGEST, stop))
        for number, start, stop in found
        for first in range(start, stop, LONGEST)
    ]


class RowBytes:
    """Where the rows of a CSR matrix lie.

    Parameters
    ----------
    data, indices : chunk tables
    indptr : int64 [rows + 1]
    files : number of each path among all files of the matrix
    """

    def __init__(
        self, data: ArrayLayout, indices: ArrayLayout, indptr: np.ndarray, files: dict[str, int]
    ) -> None:
        self._layouts, self._indptr = (data, indices), indptr
        self._numbers = [np.array([files[path] for path in each.paths], np.int64) for each in self._layouts]

    @property
    def total(self) -> int:
        """Encoded bytes of the whole matrix."""
        return sum(int(each.sizes.sum()) for each in self._layouts)

    @property
    def largest(self) -> int:
        """Encoded bytes that have to be fetched together, of both arrays."""
        return sum(int(each.sizes.max()) for each in self._layouts if each.steps and each.n_chunks)

    def parts(self, rows: np.ndarray, most: int) -> list[slice]:
        """Ascending ``rows`` in parts of about ``most`` encoded bytes each."""
        if not len(rows):
            return []
        begins, ends = self._indptr[rows], self._indptr[rows + 1]
        cost = sum(_new_bytes(each, begins, ends) for each in self._layouts)
        part = np.cumsum(cost) // max(most, 1)
        cuts = np.flatnonzero(np.diff(part)) + 1
        return [slice(int(a), int(b)) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]

    def spans(self, rows: np.ndarray) -> list[Span]:
        """All bytes that reading ascending ``rows`` takes, ascending."""
        if not len(rows):
            return []
        begins, ends = self._indptr[rows], self._indptr[rows + 1]
        # Rows that are decoded together are decoded with what lies between them: see `cut` in stored_csr.hpp.
        if any(each.steps for each in self._layouts):
            together = np.diff(begins // max(self._layouts[1].chunk_length, 1)) <= 1
        else:
            item = sum(each.dtype.itemsize for each in self._layouts)
            together = (begins[1:] - ends[:-1]) * item <= _BRIDGED
        first = np.flatnonzero(np.concatenate([[True], ~together]))
        begins, ends = begins[first], ends[np.append(first[1:] - 1, len(ends) - 1)]
        begins, ends = begins[begins < ends], ends[begins < ends]
        found = [
            _spans(each, own, begins, ends) for each, own in zip(self._layouts, self._numbers, strict=True)
        ]
        every = np.concatenate(found)
        order = np.lexsort((every[:, 2], every[:, 1], every[:, 0]))
        return [(int(number), int(start), int(stop)) for number, start, stop in every[order]]


def _spans(layout: ArrayLayout, files: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Bytes of elements ``begins:ends``, int64 [n, 3]; each chunk is named once where it is read whole."""
    length, item = max(layout.chunk_length, 1), layout.dtype.itemsize
    first, last = begins // length, (ends - 1) // length
    counts = last - first + 1
    run = np.repeat(np.arange(len(begins)), counts)
    chunk = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts) + first[run]
    if layout.steps:
        chunk = np.unique(chunk)
        start, stop = np.zeros(len(chunk), dtype=np.int64), layout.sizes[chunk]
    else:
        start = (np.maximum(begins[run], chunk * length) - chunk * length) * item
        stop = (np.minimum(ends[run], (chunk + 1) * length) - chunk * length) * item
    offset = layout.offsets[chunk]
    number = files[layout.file_of_chunk[chunk]] if len(files) else np.zeros(len(chunk), dtype=np.int64)
    return np.stack([number, offset + start, offset + stop], axis=1)[offset >= 0]


def _new_bytes(layout: ArrayLayout, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Encoded bytes that each row needs beyond those of the rows before it, int64 [n]."""
    if not layout.steps:
        return (ends - begins) * layout.dtype.itemsize
    length = max(layout.chunk_length, 1)
    before = np.concatenate([[0], np.cumsum(layout.sizes)])
    first, after = begins // length, np.where(ends > begins, (ends - 1) // length + 1, begins // length)
    seen = np.maximum.accumulate(np.concatenate([[0], after[:-1]]))
    fresh = np.maximum(first, seen)
    return before[np.maximum(after, fresh)] - before[fresh]
