"""Tiles for attention within segments: which rows a program of the grid takes, and which keys it must visit.

A packed batch holds segments of rows end to end; a row attends to the rows of its own segment.
A tile is a run of at most 64 rows (one program of a kernel) and comes in two kinds:

- part of one segment that is longer than a tile. Its keys are that segment's rows, without any mask.
- whole segments that fit a tile together. Its keys are its own rows; rows must be masked by segment.

So no short segment is cut, a grid is exactly as long as there are tiles, and all of it is known on the CPU
before the batch leaves for the GPU. Who attends to whom is symmetric: the same table read as (key tile, query
range) serves the backward pass over keys.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scdd import _csr
from scdd.errors import InputError

TILE_ROWS = 64

FIRST_ROW, END_ROW, FIRST_SEGMENT, LAST_SEGMENT, FIRST_KEY, END_KEY = range(6)


class TileSchedule(NamedTuple):
    """A grid for segment attention over ``T`` rows in ``S`` segments.

    Attributes
    ----------
    tiles : int32 [M, 6], a row each: first row and end row (exclusive) of its queries, first and last segment
        (inclusive; neither is empty), first key and end key (exclusive). The longest key ranges come first,
        so that no long tile is left for the end; tiles of one segment stay together, for the cache.
    segments : int32 [T], the segment of every row; equal for query and key where they may attend
    tile_rows : at most this many rows a tile
    """

    tiles: np.ndarray
    segments: np.ndarray
    tile_rows: int

    @property
    def efficiency(self) -> float:
        """Scores wanted over scores that the tiles compute, rows and keys rounded up to whole tiles."""
        width = np.int64(self.tile_rows)
        keys = self.tiles[:, END_KEY].astype(np.int64) - self.tiles[:, FIRST_KEY]
        computed = int((-(-keys // width) * width * width).sum())
        wanted = int((np.bincount(self.segments).astype(np.int64) ** 2).sum()) if len(self.segments) else 0
        return wanted / computed if computed else 1.0


def tile_schedule(cu_seqlens: np.ndarray, *, tile_rows: int = TILE_ROWS) -> TileSchedule:
    """Cut packed segments into tiles, the fewest that cut no segment which would fit into one.

    Parameters
    ----------
    cu_seqlens
        Int [S + 1], where each segment starts; the last is the number of rows. Segments may be empty.
    tile_rows
        Rows a tile.

    Raises
    ------
    InputError
        ``cu_seqlens`` does not start at 0, decreases or passes 2147483647; ``tile_rows`` is below 1.
    """
    starts = _checked(cu_seqlens, tile_rows)
    # No tile is longer than all rows together.
    tiles, segments = _csr.tile_schedule(starts, min(tile_rows, np.iinfo(np.int32).max))
    return TileSchedule(tiles, segments, tile_rows)


def repeat_schedule(schedule: TileSchedule, *, n_segments: int) -> TileSchedule:
    """The schedule of the same segments packed twice, [2T] rows in 2 * n_segments segments.

    No tile spans both copies, so whether a tile is of the second is whether its first segment is at least
    `n_segments`: a kernel reads what differs between two streams once a tile.
    """
    rows = len(schedule.segments)
    if 2 * rows > np.iinfo(np.int32).max:
        raise InputError(f"two views of {rows} tokens pass 2147483647; make batches of fewer cells")
    step = np.array([rows, rows, n_segments, n_segments, rows, rows], dtype=np.int32)
    pairs = np.stack([schedule.tiles, schedule.tiles + step])
    keys = np.tile(schedule.tiles[:, END_KEY] - schedule.tiles[:, FIRST_KEY], 2)
    tiles = pairs.reshape(-1, 6)[np.argsort(-keys, kind="stable")]
    segments = np.concatenate([schedule.segments, schedule.segments + np.int32(n_segments)])
    return TileSchedule(np.ascontiguousarray(tiles), segments, schedule.tile_rows)


def _checked(cu_seqlens: np.ndarray, tile_rows: int) -> np.ndarray:
    starts = np.asarray(cu_seqlens)
    if tile_rows < 1:
        raise InputError(f"tile_rows={tile_rows} must be at least 1")
    if starts.ndim != 1 or not len(starts) or starts.dtype.kind not in "iu":
        raise InputError(
            f"cu_seqlens is {starts.dtype} of shape {starts.shape}; pass whole numbers [segments + 1]"
        )
    if starts[0] != 0 or np.any(starts[1:] < starts[:-1]):
        raise InputError("cu_seqlens must start at 0 and not decrease")
    if starts[-1] > np.iinfo(np.int32).max:
        raise InputError(f"cu_seqlens ends at {starts[-1]}, past 2147483647; make batches of fewer cells")
    return np.ascontiguousarray(starts, dtype=np.int64)
