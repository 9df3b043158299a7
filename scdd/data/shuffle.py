"""The order of an epoch: a pure function of the seed, the epoch and the number of rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class EpochOrder(NamedTuple):
    """Positions 0..n_rows-1, window by window, in the order in which they are delivered.

    Blocks of ``block_size`` consecutive positions are put in random order; the row of blocks is cut into
    windows, and positions are shuffled within each window. A disk thus reads runs, while a batch mixes
    ``window / block_size`` places of the file. ``block_size=1`` is a fully random order. A batch of B
    cells has a label variance ``1 + (block_size - 1)(B - 1)/(window - 1)`` times that of independent draws
    if all cells of a block are alike.

    Attributes
    ----------
    window : rows held at once; rounded up to whole batches, so that no batch straddles two windows
    shuffle : whether there is any randomness; else positions come as they are
    """

    n_rows: int
    batch_size: int
    block_size: int
    window: int
    seed: int
    epoch: int
    shuffle: bool

    @property
    def batches_per_window(self) -> int:
        """Batches that one window is cut into; the last window may hold fewer."""
        return max(1, -(-self.window // self.batch_size))

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return -(-self.n_rows // (self.batches_per_window * self.batch_size))

    def windows(self, first: int = 0) -> EpochWindows:
        """Start at window number ``first``."""
        return EpochWindows(self, first)


class EpochWindows:
    """Iterates over windows (int64 positions each); memory is one number a block, plus one window."""

    def __init__(self, order: EpochOrder, first: int = 0) -> None:
        self._order = order
        self._next = first
        n_blocks = -(-order.n_rows // order.block_size)
        # A window has its own stream, so that an epoch can be resumed at any of them.
        blocks = self._random(0).permutation(n_blocks) if order.shuffle else np.arange(n_blocks)
        self._starts = blocks * order.block_size
        lengths = np.minimum(order.block_size, order.n_rows - self._starts)
        self._ends = np.cumsum(lengths)  # where each block ends in the order of the epoch

    def __iter__(self) -> EpochWindows:
        return self

    def __next__(self) -> np.ndarray:
        order, number = self._order, self._next
        if number >= order.n_windows:
            raise StopIteration
        self._next += 1
        size = order.batches_per_window * order.batch_size
        positions = self._span(number * size, min((number + 1) * size, order.n_rows))
        return self._random(number + 1).permutation(positions) if order.shuffle else positions

    def _random(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._order.seed, self._order.epoch, stream])

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
