"""Which cells an epoch delivers: all of them, as many of every class, or batch by batch of one class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scdd.data.loading.blocks import Blocks
from scdd.data.loading.shuffle import EpochOrder
from scdd.errors import InputError


class BalancedSampler(NamedTuple):
    """As many cells as there are, every class equally often; small classes repeat, large ones are sampled.

    Each class gets ``n // classes`` cells of an epoch: whole passes over its cells, then a random part of
    them.

    Attributes
    ----------
    codes : int64 [n], class of each cell; -1 are left out
    seed : with the epoch, of the random parts
    """

    codes: np.ndarray
    seed: int

    def cells(self, epoch: int) -> np.ndarray:
        """Positions in ``codes`` for an epoch, ascending; some repeat."""
        rng = np.random.default_rng([self.seed, epoch, 0xBA1])
        classes = np.unique(self.codes[self.codes >= 0])
        if not len(classes):
            raise InputError("sampler='balanced': no cell has a label")
        share = max(1, len(self.codes) // len(classes))
        drawn = []
        for code in classes:
            members = np.flatnonzero(self.codes == code)
            passes, rest = divmod(share, len(members))
            drawn += [np.repeat(members, passes), rng.choice(members, rest, replace=False)]
        return np.sort(np.concatenate(drawn)).astype(np.int64)


class ClassBatches(NamedTuple):
    """Batches of one class each, in random order; every cell with a label once an epoch.

    Within a class, cells come in the order of an `EpochOrder` over its members.

    Attributes
    ----------
    codes : int64 [n], class of each cell; -1 are left out
    edges : int64 [n_blocks + 1], blocks of cells that are read together
    window : cells held at once; rounded up to whole batches
    """

    codes: np.ndarray
    batch_size: int
    edges: np.ndarray | None
    window: int
    seed: int
    epoch: int
    shuffle: bool
    drop_last: bool

    def batches(self) -> list[np.ndarray]:
        """Positions of each batch, in the order of delivery."""
        made: list[np.ndarray] = []
        for code in np.unique(self.codes[self.codes >= 0]):
            members = np.flatnonzero(self.codes == code)
            blocks = None
            if self.edges is not None:
                blocks = Blocks.apart(np.unique(np.searchsorted(members, self.edges)))
            seed = self.seed + 7_919 * (int(code) + 1)
            own = (len(members), self.batch_size, 1, self.window, seed, self.epoch, self.shuffle, blocks)
            order = np.concatenate(list(EpochOrder(*own).windows()))
            cuts = np.split(members[order], np.arange(self.batch_size, len(members), self.batch_size))
            made += [cut for cut in cuts if len(cut) == self.batch_size or not self.drop_last]
        if not self.shuffle:
            return made
        random = np.random.default_rng([self.seed, self.epoch, 0xC1A55])
        return [made[number] for number in random.permutation(len(made))]


def in_passes(rows: np.ndarray, store_rows: np.ndarray) -> np.ndarray:
    """``rows`` in passes over the store: each cell for the first time, those that repeat for the second, ...

    No block holds a cell twice: copies side by side would cut the run that they lie in into blocks of one.
    """
    order = np.argsort(store_rows, kind="stable")
    ordered = store_rows[order]
    begins = np.concatenate([[True], np.diff(ordered) != 0])[: len(ordered)]
    places = np.arange(len(ordered))
    copy = places - np.maximum.accumulate(np.where(begins, places, 0)) if len(ordered) else places
    return rows[order[np.lexsort((ordered, copy))]]
