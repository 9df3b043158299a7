"""How a loader will read: block, window and memory, and how well its batches are mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scdd.data.loading.blocks import Blocks, mean_block
from scdd.data.loading.shuffle import variance_inflation
from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas

# A window of the largest size that the mixing needs: W >= 4 b B keeps the inflation at 1.25 or below.
_WANTED_INFLATION = 1.25
# Cells that one read should bring at least, where nothing else decides: some 100 kB of a typical atlas.
_CELLS_A_READ = 16
# Entries of a row record and of its total in a window, bytes.
_ROW_OVERHEAD = 24
# Of the memory limit, what both windows may take.
_WINDOW_SHARE = 2 / 3


class LoaderPlan(NamedTuple):
    """What a loader does with its memory, and how random its batches are.

    ``memory_bytes = windows * window_bytes + (preload + 3) * batch_bytes + scratch_bytes``: two windows (one
    in use, one being read; none where rows need no reading), the batches that are ready, one being made, one
    in use and one that the caller's last step may still hold. ``cell_bytes`` is an upper bound for counts to
    65,535 and exact for other values, for a cell of average size. Windows take at most two thirds of
    ``memory_limit``, whatever the batches are, so that the order of cells depends on no setting but those
    that say how cells are ordered.

    Attributes
    ----------
    batch_size : B
    block_size : b, cells of the block that a random cell lies in
    window : W, cells among which batches are mixed
    variance_inflation : ``1 + (b - 1)(B - 1)/(W - 1)``: the variance of a label's share in a batch, relative
        to that of independently drawn cells, if all cells of a block have one label; 1 where the whole epoch
        is one window, and where no shuffling was asked for
    n_blocks, n_windows : of one epoch
    cell_bytes, window_bytes, batch_bytes, scratch_bytes, memory_bytes : see above
    source : what rows are read from, in a few words
    """

    batch_size: int
    block_size: float
    window: int
    variance_inflation: float
    n_blocks: int
    n_windows: int
    cell_bytes: int
    window_bytes: int
    batch_bytes: int
    scratch_bytes: int
    memory_bytes: int
    source: str

    def __str__(self) -> str:
        return (
            f"{self.source}; blocks of {self.block_size:.0f} cells, windows of {self.window:,}, batches of "
            f"{self.batch_size:,}: variance inflation {self.variance_inflation:.2f}; "
            f"{self.memory_bytes / 2**20:,.0f} MiB"
        )


class Costs(NamedTuple):
    """Bytes of a cell in the window and in a batch, of a batch, and of the threads' own memory."""

    cell: int
    delivered_cell: int
    batch: int
    scratch: int


class Sizes(NamedTuple):
    """Blocks (None: every cell for itself) and cells a window."""

    blocks: Blocks | None
    window: int

    @property
    def edges(self) -> np.ndarray | None:
        """Where blocks begin."""
        return None if self.blocks is None else self.blocks.edges


def cell_bytes(atlas: Atlas) -> int:
    """Bytes of an average cell in a window: two or four a gene number, two or four a value."""
    value = 2 if atlas.expression == "counts" else 4
    gene = 2 if atlas.n_vars <= 1 << 16 else 4
    return int(np.ceil(atlas.mean_entries * (value + gene))) + 8 + _ROW_OVERHEAD


def largest_window(cell: int, *, batch_size: int, memory_limit: int) -> int:
    """Cells of the largest window that fits into a third of the limit, a second one being read meanwhile."""
    cells = int(memory_limit * _WINDOW_SHARE // (2 * cell))
    if cells < batch_size:
        raise InputError(
            f"memory_limit={memory_limit} is too small for windows of {batch_size} cells of {cell} bytes; "
            f"allow {int(2 * cell * batch_size / _WINDOW_SHARE) + 1:,} or lower batch_size="
        )
    return cells // batch_size * batch_size  # whole batches


def choose_preload(costs: Costs, preload: int | None, *, windows: int, memory_limit: int) -> int:
    """Batches made ahead: those asked for, else as many up to three as fit beside windows of a third each."""
    room = memory_limit - windows * memory_limit * _WINDOW_SHARE / 2 - costs.scratch
    fitting = int(room // max(costs.batch, 1)) - 3
    if preload is not None and preload < 0:
        raise InputError(f"preload={preload} must not be negative")
    if preload is None:
        preload = min(max(fitting, 0), 3)
    if fitting < preload and windows:
        raise InputError(
            f"memory_limit={memory_limit} is too small: {preload + 3} batches of {costs.batch:,} bytes and "
            f"{costs.scratch:,} bytes of scratch do not fit beside the windows; "
            "raise it, or lower batch_size= or preload="
        )
    return preload


def choose_sizes(
    atlas: Atlas,
    store_rows: np.ndarray,
    *,
    batch_size: int,
    block_size: int | None,
    window: int | None,
    most: int,
) -> Sizes:
    """Blocks as long as reading likes and mixing allows, then the window that mixing needs and memory allows.

    Parameters
    ----------
    store_rows : ascending rows of the store that an epoch delivers
    block_size, window : the user's own, or None
    most : cells of the largest window that fits into memory
    """
    if window is not None and window > most:
        raise InputError(f"window={window} does not fit into memory_limit; at most {most:,} cells do")
    room = min(most if window is None else window, max(len(store_rows), 1))
    if block_size is not None:
        blocks = atlas.store.blocks(store_rows, block_size, parts=True)
    else:
        # Where the end of a block may cost a whole chunk, longer ones waste less: while mixing stays good.
        cells = _CELLS_A_READ
        if atlas.store.decodes_whole_chunks:
            cells = max(cells, int(1 + (_WANTED_INFLATION - 1) * (room - 1) / max(batch_size - 1, 1)) // 2)
            cells = min(cells, 1_024)
        blocks = atlas.store.blocks(store_rows, cells)
    return Sizes(blocks, window or _wanted_window(mean_block(blocks.edges), batch_size, room))


def _wanted_window(block: float, batch_size: int, room: int) -> int:
    wanted = int(np.ceil((block - 1) * (batch_size - 1) / (_WANTED_INFLATION - 1))) + 1
    whole = -(-max(wanted, 4 * batch_size) // batch_size) * batch_size
    return max(1, min(whole, room))


def inflation(edges: np.ndarray | None, *, batch_size: int, window: int, n_rows: int) -> float:
    """Variance inflation of an order; 1 where all cells are in one window or each is a block of its own."""
    if edges is None or window >= n_rows:
        return 1.0
    return variance_inflation(mean_block(edges), min(batch_size, window), window)
