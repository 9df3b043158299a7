"""Segments of a packed batch, and how a grid of programs is laid over them.

A packed batch holds segments of rows end to end; `cu_seqlens` [S + 1] says where each starts. A tile is a run
of at most `tile_rows` rows and comes in two kinds:

- part of one segment that is longer than a tile. Its keys are the rows of that segment.
- whole segments that fit a tile together. Its keys are its own rows, told apart by segment.

Who attends to whom is symmetric, so the same table read as (keys, range of queries) serves the backward over
keys. A loader makes the table on the CPU while the GPU works; here it is made from lengths alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch

from . import _dispatch
from ._check import (
    require_device_of,
    require_dims,
    require_integer,
    require_shape,
    require_tensor,
    require_whole,
)

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS: Final = 6
_MOST_ROWS: Final = 2**31 - 1


class SegmentSchedule(NamedTuple):
    """A grid for attention inside segments, over ``T`` rows.

    The hand-over from a loader's table is
    ``SegmentSchedule(torch.from_numpy(tiles).to(device), torch.from_numpy(segments).to(device), tile_rows)``.
    """

    tiles: Tensor
    """int32 ``[M, 6]``, a row each: first row and end row (exclusive) of its queries, first and last segment
    (inclusive), first key and end key (exclusive). The longest key ranges come first. A row of zeros is a
    tile of nothing; they come last."""
    segments: Tensor
    """int32 ``[T]``, the segment of every row: equal for query and key where they may attend."""
    tile_rows: int
    """At most this many rows a tile."""


def segment_schedule(cu_seqlens: Tensor, total: int, *, tile_rows: int) -> SegmentSchedule:
    """Cut packed segments into tiles, the fewest that cut no segment which would fit into one.

    Parameters
    ----------
    cu_seqlens
        int32 or int64 ``[S + 1]``, where each segment starts; it begins with 0, does not decrease and ends
        with `total`. Segments may be empty.
    total
        Number of rows ``T``.
    tile_rows
        Rows a tile.

    Returns
    -------
    SegmentSchedule
        On the device of `cu_seqlens`. From lengths on the CPU it has as many tiles as there are; on another
        device, where their number can not be known without waiting for it, ``min(S + T // tile_rows,
        3 * (T // tile_rows) + 2)``, the last of them empty.

    Raises
    ------
    TypeError
        `cu_seqlens` is not a tensor of whole numbers, or `total` or `tile_rows` is not a whole number.
    ValueError
        `tile_rows` or `total` is out of range, or the values of `cu_seqlens` are wrong. On a GPU values are
        checked without waiting: the device stops with an assertion.

    Examples
    --------
    >>> schedule = scdd.kernels.segment_schedule(cu_seqlens, len(q), tile_rows=128)
    >>> out = scdd.kernels.segment_attention(q, k, v, cu_seqlens, schedule=schedule)
    """
    require_whole("total", total)
    require_whole("tile_rows", tile_rows)
    require_lengths(cu_seqlens, total)
    if tile_rows < 1:
        raise ValueError(f"tile_rows is {tile_rows}; a tile has at least one row, pass 64 or 128")
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        tiles, segments = _bounded_schedule(cu_seqlens, total, tile_rows)
        return SegmentSchedule(tiles, segments, tile_rows)
    starts = checked_starts(cu_seqlens, total)
    arrays = _greedy(starts, tile_rows)
    return SegmentSchedule(torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1]), tile_rows)


def require_lengths(cu_seqlens: Tensor, total: int) -> None:
    """Refuse what can not be the starts of segments of `total` rows, without a look at the values."""
    require_integer("cu_seqlens", cu_seqlens)
    require_dims("cu_seqlens", cu_seqlens, (1,), "[S + 1]")
    if not len(cu_seqlens):
        raise ValueError("cu_seqlens is empty; pass [S + 1] numbers, torch.tensor([0]) for no segments")
    if total > _MOST_ROWS:
        raise ValueError(f"there are {total} rows and offsets are int32; make batches under {_MOST_ROWS}")


def require_packed(cu_seqlens: Tensor, name: str, packed: Tensor) -> None:
    """Refuse what are not the starts of the segments of `packed`, its values too where they lie on a CPU."""
    require_lengths(cu_seqlens, len(packed))
    require_device_of("cu_seqlens", cu_seqlens, name, packed)
    # a tensor of a tracer has no values
    if (
        cu_seqlens.device.type == "cpu"
        and type(cu_seqlens) is torch.Tensor
        and not torch.compiler.is_compiling()
    ):
        checked_starts(cu_seqlens, len(packed))


def require_schedule(schedule: SegmentSchedule, total: int, device: torch.device) -> None:
    """Refuse a schedule that can not be one for `total` rows on `device`."""
    if not isinstance(schedule, SegmentSchedule):
        raise TypeError(f"schedule is a {type(schedule).__name__}; pass what segment_schedule returns")
    tiles, segments, tile_rows = schedule
    require_tensor("schedule.tiles", tiles)
    if tiles.ndim != 2 or tiles.shape[1] != COLUMNS:
        raise ValueError(f"schedule.tiles has shape {tuple(tiles.shape)}; give it the shape [M, {COLUMNS}]")
    require_shape("schedule.segments", segments, (total,), "one for each row of q")
    for name, tensor in (("tiles", tiles), ("segments", segments)):
        if tensor.dtype != torch.int32:
            raise TypeError(f"schedule.{name} has dtype {tensor.dtype}; cast it with .to(torch.int32)")
        if tensor.device != device:
            raise ValueError(
                f"schedule.{name} is on {tensor.device} and q is on {device}; move it with .to(q.device)"
            )
        if not tensor.is_contiguous():
            raise ValueError(
                f"schedule.{name} has strides {tensor.stride()}; the kernels read it row by row, "
                "pass it .contiguous()"
            )
    if tile_rows < 1:
        raise ValueError(f"schedule.tile_rows is {tile_rows}; pass that which the tiles were cut to")


def checked_starts(cu_seqlens: Tensor, total: int) -> np.ndarray:
    """`cu_seqlens` as int64 on the CPU, refused unless it starts at 0, does not decrease and ends at `total`.

    Waits for a GPU; the fused path does not come here.
    """
    # not `.numpy()`, which a transform of torch.func leaves without memory to look at
    starts = np.array(cu_seqlens.tolist(), dtype=np.int64)
    if starts[0] != 0:
        raise ValueError(f"cu_seqlens starts at {starts[0]}; the first segment starts at row 0")
    if (falls := np.flatnonzero(starts[1:] < starts[:-1])).size:
        at = falls[0]
        raise ValueError(
            f"cu_seqlens falls from {starts[at]} to {starts[at + 1]} at {at + 1}; "
            "pass running totals of lengths"
        )
    if starts[-1] != total:
        raise ValueError(f"cu_seqlens ends at {starts[-1]}; it must end at the number of rows, {total}")
    return starts


def _greedy(starts: np.ndarray, tile_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """`tiles` and `segments`, for lengths on the CPU."""
    n = len(starts) - 1
    segments = np.repeat(np.arange(n, dtype=np.int32), np.diff(starts))
    # [S]; the segment after the group that starts with this one
    after = np.maximum(
        np.searchsorted(starts, starts[:-1] + tile_rows, side="right") - 1, np.arange(1, n + 1)
    )
    following, group, groups = after.tolist(), 0, []
    while group < n:
        groups.append(group)
        group = following[group]
    begin = starts[groups]
    rows = starts[after[groups]] - begin
    order = np.argsort(-rows, kind="stable")
    begin, rows = begin[order], rows[order]
    counts = -(-rows // tile_rows)
    # [M]; the group of each tile, and its place there
    of = np.repeat(np.arange(len(rows)), counts)
    place = np.arange(len(of)) - (np.cumsum(counts) - counts)[of]
    first, end = begin[of] + place * tile_rows, (begin + rows)[of]
    first_segment = np.searchsorted(starts, begin[of], side="right") - 1
    last_segment = np.searchsorted(starts, end, side="left") - 1
    columns = (first, np.minimum(first + tile_rows, end), first_segment, last_segment, begin[of], end)
    return np.stack(columns, 1).astype(np.int32), segments


def _parallel(cu_seqlens: Tensor, total: int, tile_rows: int) -> tuple[Tensor, Tensor]:
    """`tiles` and `segments` by parallel operations alone: the same tiles as `_greedy`, then empty ones."""
    starts = cu_seqlens.long()
    n, device = len(starts) - 1, starts.device
    sound = (starts[0] == 0) & (starts[-1] == total) & (starts[1:] >= starts[:-1]).all()
    torch._assert_async(sound, "cu_seqlens must start at 0, not decrease and end at the number of rows")
    rows = torch.arange(total, device=device)
    segments = (torch.searchsorted(starts, rows, right=True) - 1).int()
    most = _most_tiles(n, total, tile_rows)
    if n == 0:
        return starts.new_zeros((most, COLUMNS), dtype=torch.int32), segments
    after, opens = _groups(starts, tile_rows)
    begin, end = starts[:-1], starts[after]
    length = torch.where(opens, end - begin, 0)
    length, order = torch.sort(length, descending=True, stable=True)
    counts = (length + tile_rows - 1) // tile_rows
    behind = counts.cumsum(0)
    # [M]; the group of each tile, and its place there. Beyond the last tile a group is looked up all the same
    tile = torch.arange(most, device=device)
    of = torch.searchsorted(behind, tile, right=True).clamp_(max=n - 1)
    begin, end = begin[order][of], end[order][of]
    first = begin + (tile - (behind - counts)[of]) * tile_rows
    first_segment = torch.searchsorted(starts, begin, right=True) - 1
    last_segment = torch.searchsorted(starts, end) - 1
    columns = (first, torch.minimum(first + tile_rows, end), first_segment, last_segment, begin, end)
    tiles = torch.stack(columns, 1) * (tile < behind[-1])[:, None]
    return tiles.int(), segments


def _groups(starts: Tensor, tile_rows: int) -> tuple[Tensor, Tensor]:
    """For each segment: the one after the group that would start with it, and whether a group does.

    Groups follow one another, which looks like a loop; but with each pass all that is known to open a group
    marks one twice as far ahead.
    """
    n = len(starts) - 1
    # [S + 1]; the last follows itself
    following = torch.arange(1, n + 2, device=starts.device).clamp_(max=n)
    following = torch.maximum(torch.searchsorted(starts, starts + tile_rows, right=True) - 1, following)
    after, opens = following[:-1], torch.zeros(n + 1, dtype=torch.bool, device=starts.device)
    opens[:1] = True
    for _ in range(n.bit_length()):
        opens = opens.index_fill(0, torch.where(opens, following, n), True)
        following = following[following]
    return after, opens[:-1]


def _most_tiles(n_segments: int, total: int, tile_rows: int) -> int:
    """How many tiles there may be: a group ends with at most one tile that is not full.

    There is a group for at most each segment, and two groups in a row have more than `tile_rows` rows.
    """
    full = total // tile_rows
    return torch.sym_min(n_segments + full, 3 * full + 2)


def _fake_schedule(cu_seqlens: Tensor, total: int, tile_rows: int) -> tuple[Tensor, Tensor]:
    most = _most_tiles(len(cu_seqlens) - 1, total, tile_rows)
    return (
        cu_seqlens.new_empty((most, COLUMNS), dtype=torch.int32),
        cu_seqlens.new_empty(total, dtype=torch.int32),
    )


_bounded_schedule = _dispatch.define(
    "segment_schedule(Tensor cu_seqlens, SymInt total, int tile_rows) -> (Tensor, Tensor)",
    reference=_parallel,
    kernel=_parallel,
    fake=_fake_schedule,
)
