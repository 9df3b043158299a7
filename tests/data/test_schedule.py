"""Tiles of segment attention: every row once, every key of its segment, no tile too many."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scdd import _csr
from scdd.data.loading.schedule import repeat_schedule, tile_schedule
from scdd.errors import InputError

lengths_of = st.one_of(
    st.lists(st.integers(0, 12), max_size=60),
    st.lists(st.sampled_from([0, 1, 3, 7, 8, 9, 16, 17, 40]), max_size=40),
)


def starts_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def fewest_tiles(lengths, tile_rows):
    """By trying every way to group neighbours; a segment longer than a tile stands alone."""
    best = [0]
    for end in range(1, len(lengths) + 1):
        last = lengths[end - 1]
        if last > tile_rows:
            best.append(best[-1] - (-last // tile_rows))
            continue
        options = [best[end - 1] + (last > 0)]
        rows = 0
        for begin in range(end - 1, -1, -1):
            rows += lengths[begin]
            if rows > tile_rows:
                break
            options.append(best[begin] + (rows > 0))
        best.append(min(options))
    return best[-1]


def check(schedule, starts):
    """What a kernel relies on."""
    n_rows, tile_rows = int(starts[-1]), schedule.tile_rows
    assert schedule.tiles.dtype == schedule.segments.dtype == np.int32
    assert schedule.tiles.shape[1] == 6
    assert schedule.tiles.flags.c_contiguous
    np.testing.assert_array_equal(
        schedule.segments, np.searchsorted(starts, np.arange(n_rows), side="right") - 1
    )
    seen = np.zeros(n_rows, int)
    for first, end, first_segment, last_segment, first_key, end_key in schedule.tiles.tolist():
        assert 0 < end - first <= tile_rows
        seen[first:end] += 1
        assert schedule.segments[first] == first_segment
        assert schedule.segments[end - 1] == last_segment
        assert (first_key, end_key) == (starts[first_segment], starts[last_segment + 1])
        if first_segment == last_segment:
            assert first_key <= first
            assert end <= end_key
        else:  # whole segments, whose keys are the tile's own rows
            assert (first_key, end_key) == (first, end)
    assert (seen == 1).all()
    keys = schedule.tiles[:, 5] - schedule.tiles[:, 4]
    assert (np.diff(keys) <= 0).all()
    assert 0 < schedule.efficiency <= 1


@settings(max_examples=300, deadline=None)
@given(lengths_of, st.sampled_from([1, 4, 8, 64]))
def test_tiles_cover_every_row_once_with_all_its_keys(lengths, tile_rows):
    starts = starts_of(lengths)
    schedule = tile_schedule(starts, tile_rows=tile_rows)
    check(schedule, starts)
    assert len(schedule.tiles) == fewest_tiles(lengths, tile_rows)


def defined_tiles(starts, tile_rows):
    """Tiles one by one: short segments join as long as they fit, the longest keys go first."""
    tiles, shared = [], None
    for segment, (begin, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        if end - begin > tile_rows:
            shared = None
            cuts = [*range(begin, end, tile_rows), end]
            tiles += [[row, stop, segment, segment, begin, end] for row, stop in pairwise(cuts)]
        elif shared is not None and end > begin and end - shared[0] <= tile_rows:
            shared[1], shared[3], shared[5] = end, segment, end
        elif end > begin:
            shared = [begin, end, segment, segment, begin, end]
            tiles.append(shared)
    return sorted(tiles, key=lambda tile: (tile[4] - tile[5], tile[0]))


@settings(max_examples=200, deadline=None)
@given(lengths_of, st.sampled_from([1, 4, 8, 64, 2**40]))
def test_tiles_are_as_defined_in_their_order(lengths, tile_rows):
    starts = starts_of(lengths)
    schedule = tile_schedule(starts, tile_rows=tile_rows)
    assert schedule.tiles.tolist() == defined_tiles(starts, tile_rows)
    assert schedule.tile_rows == tile_rows


def test_segments_of_many_rows():
    starts = starts_of([0, 5_000, 2_048, 2_049, 0, 1, 70_000])
    check(tile_schedule(starts), starts)


@pytest.mark.parametrize("starts", [[], [1, 2], [0, 2, 1], [0, 2**31]])
def test_the_extension_refuses_starts_that_do_not_rise(starts):
    with pytest.raises(ValueError, match="starts must rise from 0"):
        _csr.tile_schedule(np.array(starts, dtype=np.int64), 64)


@pytest.mark.parametrize("tile_rows", [0, -1, 2**31])
def test_the_extension_refuses_tiles_without_rows(tile_rows):
    with pytest.raises(ValueError, match=f"tile_rows is {tile_rows}"):
        _csr.tile_schedule(np.array([0, 3]), tile_rows)


@settings(max_examples=100, deadline=None)
@given(lengths_of)
def test_two_copies_never_share_a_tile(lengths):
    starts = starts_of(lengths)
    n = len(lengths)
    twice = repeat_schedule(tile_schedule(starts, tile_rows=8), n_segments=n)
    check(twice, starts_of([*lengths, *lengths]))
    assert ((twice.tiles[:, 2] < n) == (twice.tiles[:, 3] < n)).all()


def test_long_segments_come_first_and_their_tiles_stay_together():
    schedule = tile_schedule(starts_of([3, 200, 5, 130, 200, 0, 60, 4]))
    segments = [(first, last) for _, _, first, last, _, _ in schedule.tiles.tolist()]
    assert segments == [(1, 1)] * 4 + [(4, 4)] * 4 + [(3, 3)] * 3 + [(6, 7), (2, 2), (0, 0)]


def test_efficiency_counts_what_a_grid_computes():
    assert tile_schedule(np.array([0, 64, 192])).efficiency == 1.0
    assert tile_schedule(np.array([0, 32, 64])).efficiency == 0.5
    assert tile_schedule(np.array([0, 65])).efficiency == 65**2 / (2 * 64 * 128)


@pytest.mark.parametrize("starts", [[0], [0, 0], [0, 0, 0]])
def test_no_rows_are_no_tiles(starts):
    schedule = tile_schedule(np.array(starts))
    assert schedule.tiles.shape == (0, 6)
    assert len(schedule.segments) == 0
    assert repeat_schedule(schedule, n_segments=len(starts) - 1).tiles.shape == (0, 6)


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (np.array([], int), "pass whole numbers"),
        (np.array([0.0, 3.0]), "float64"),
        (np.array([[0, 3]]), "shape"),
        (np.array([1, 3]), "start at 0"),
        (np.array([0, 3, 2]), "not decrease"),
        (np.array([0, 3, 2], np.uint32), "not decrease"),
        (np.array([0, 2**31]), "past 2147483647"),
    ],
)
def test_wrong_starts_are_refused(starts, message):
    with pytest.raises(InputError, match=message):
        tile_schedule(starts)


def test_tile_rows_must_be_positive():
    with pytest.raises(InputError, match="tile_rows=0"):
        tile_schedule(np.array([0, 3]), tile_rows=0)
