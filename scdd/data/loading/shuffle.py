"""The order of an epoch: a pure function of the seed, the epoch, the data and the sizes, never of threads."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np

from scdd.data.loading.blocks import Blocks, with_the_later


class EpochOrder(NamedTuple):
    """Positions 0..n_rows-1, window by window, in the order in which they are delivered.

    Blocks of consecutive positions are put in random order; the row of blocks is cut into equal parts for the
    ranks, each part into windows, and positions are shuffled within each window. A position that lies in the
    chunks of two blocks goes with the later one, which finds a part of it decoded. A disk thus reads runs,
    while a batch mixes ``window / block`` places of the file (`variance_inflation`). Blocks of one position
    and a single window each give a fully random order.

    Attributes
    ----------
    block_size : positions a block, where ``blocks`` is None
    window : rows held at once; rounded up to whole batches, so that no batch straddles two windows
    shuffle : whether there is any randomness; else positions come as they are
    blocks : where blocks begin, e.g. where chunks of a file do
    rank, world_size : which of how many equal parts this is
    even : how parts become equally long: ``"drop"`` leaves out up to world_size - 1 positions of the epoch,
        ``"pad"`` repeats as many
    """

    n_rows: int
    batch_size: int
    block_size: int
    window: int
    seed: int
    epoch: int
    shuffle: bool
    blocks: Blocks | None = None
    rank: int = 0
    world_size: int = 1
    even: str = "pad"

    @property
    def n_own(self) -> int:
        """Positions that this rank delivers."""
        share = self.n_rows // self.world_size
        return share if self.even == "drop" else -(-self.n_rows // self.world_size)

    @property
    def batches_per_window(self) -> int:
        """Batches that one window is cut into; the last window may hold fewer."""
        return max(1, -(-self.window // self.batch_size))

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return -(-self.n_own // (self.batches_per_window * self.batch_size))

    def windows(self, first: int = 0) -> EpochWindows:
        """Start at window number ``first``."""
        return EpochWindows(self, first)

    def settings(self) -> dict[str, Any]:
        """What two orders must share to be the same but for the epoch; JSON-able."""
        blocks = None
        if self.blocks is not None:
            blocks = zlib.crc32(b"".join(np.ascontiguousarray(part).tobytes() for part in self.blocks))
        return self._asdict() | {"blocks": blocks, "epoch": None, "rank": None}


class EpochWindows:
    """Iterates over windows (int64 positions each); memory is three numbers a block, plus one window."""

    def __init__(self, order: EpochOrder, first: int = 0) -> None:
        self._order = order
        self._next = first
        edges, shared = order.blocks or Blocks.apart(
            np.append(np.arange(0, order.n_rows, order.block_size, dtype=np.int64), order.n_rows)
        )
        n_blocks = len(edges) - 1
        # A window has its own stream, so that an epoch can be resumed at any of them.
        blocks = self._random(0).permutation(n_blocks) if order.shuffle else np.arange(n_blocks)
        edges = with_the_later(edges, shared, blocks)
        self._starts = edges[blocks]
        self._ends = np.cumsum(
            edges[blocks + 1] - self._starts
        )  # where each block ends in the order of the epoch

    def __iter__(self) -> EpochWindows:
        return self

    def __next__(self) -> np.ndarray:
        order, number = self._order, self._next
        if number >= order.n_windows:
            raise StopIteration
        self._next += 1
        size = order.batches_per_window * order.batch_size
        begin, end = number * size, min((number + 1) * size, order.n_own)
        offset = order.rank * order.n_own
        positions = self._wrapped(offset + begin, offset + end)
        return self._random(number + 1).permutation(positions) if order.shuffle else positions

    def _random(self, stream: int) -> np.random.Generator:
        order = self._order
        # One rank has the streams it would have alone.
        key = [order.seed, order.epoch, stream] + ([order.rank] if order.rank and stream else [])
        return np.random.default_rng(key)

    def _wrapped(self, begin: int, end: int) -> np.ndarray:
        """Positions ``begin..end`` of the row of blocks; past its end it begins again, as padding."""
        n = self._order.n_rows
        parts = []
        while begin < end:
            start = begin % n
            stop = min(n, start + end - begin)
            parts.append(self._span(start, stop))
            begin += stop - start
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def _span(self, begin: int, end: int) -> np.ndarray:
        """Positions ``begin..end`` of the row of blocks; blocks at either end may be cut."""
        first, last = np.searchsorted(self._ends, [begin, end - 1], side="right")
        ends = self._ends[first : last + 1]
        # Within a block, position - place in the row of blocks is constant.
        offsets = self._starts[first : last + 1] - np.concatenate(
            [[self._ends[first - 1] if first else 0], ends[:-1]]
        )
        cuts = np.concatenate([[begin], ends[:-1], [end]])
        return np.arange(begin, end, dtype=np.int64) + np.repeat(offsets, np.diff(cuts))


def variance_inflation(block: float, batch: int, window: int) -> float:
    """``1 + (b - 1)(B - 1) / (W - 1)``: how much more a batch's label shares vary than those of random cells.

    Holds where all cells of a block are alike, the worst case; a batch must not be larger than the window.
    """
    return 1.0 + max(block - 1.0, 0.0) * (batch - 1) / max(window - 1, 1)
