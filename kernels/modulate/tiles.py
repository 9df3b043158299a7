"""How much of the work one program takes, by the width of a row and the size of an element.

A program holds whole rows, padded to a power of two. The table gives each thread 16 bytes of a row, so that
every load is 128 bits wide, and packs several conditions into a program where rows are short. One table
serves every architecture: `tests/test_aot.py` holds each entry to its register budget on all of them, and
only a measurement on a GPU could justify a column for one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds: `conditions` x `width` elements, spread over `num_warps` warps."""

    conditions: int
    width: int
    num_warps: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the rows of each condition are dealt to programs: `slices` programs of `rows` rows."""

    slices: int
    rows: int


# Padded width -> (warps, conditions a program) by the bytes of an element.
_TABLE: Final = MappingProxyType(
    {
        (16, 2): (2, 32), (16, 4): (2, 16),
        (32, 2): (2, 16), (32, 4): (2, 8),
        (64, 2): (2, 8), (64, 4): (2, 4),
        (128, 2): (2, 4), (128, 4): (4, 4),
        (256, 2): (4, 4), (256, 4): (4, 2),
        (512, 2): (4, 2), (512, 4): (4, 1),
        (1024, 2): (4, 1), (1024, 4): (8, 1),
        (2048, 2): (8, 1), (2048, 4): (16, 1),
        (4096, 2): (16, 1), (4096, 4): (16, 1),
    }
)  # fmt: skip

# Place in a table -> what may be tried there: half and twice the warps, half and twice the conditions.
CANDIDATES: Final = MappingProxyType(
    {
        ("_TABLE", key): tuple(
            entry
            for entry in (
                (warps // 2, conditions), (2 * warps, conditions),
                (warps, conditions // 2), (warps, 2 * conditions),
            )
            # over 16 warps a thread is left too few registers
            if min(entry) > 0 and entry[0] <= 16
        )
        for key, (warps, conditions) in _TABLE.items()
    }
)  # fmt: skip

MIN_WIDTH: Final = 16
# At 8192 the gated backward spills: 32 warps leave a thread 64 registers.
MAX_WIDTH: Final = 4096

# Enough programs for eight on each multiprocessor of the largest GPU of today. A constant, not a property of
# the machine, so that sums over rows are cut alike, and round alike, on every machine.
_PROGRAMS: Final = 1184


def choose(width: int, element_size: int) -> Tile:
    """Return the tile for rows of `width` elements of `element_size` bytes."""
    padded = max(MIN_WIDTH, 1 << (width - 1).bit_length())
    num_warps, conditions = _TABLE[padded, element_size]
    return Tile(conditions, padded, num_warps)


def every_tile() -> list[tuple[Tile, int]]:
    """All that `choose` can return, each with its bytes an element."""
    return [(Tile(conditions, width, warps), size) for (width, size), (warps, conditions) in _TABLE.items()]


def schedule(conditions: int, rows: int, tile: Tile, *, least_rows: int = 1) -> Schedule:
    """Deal `rows` rows of each condition to as many programs as fill a GPU, none with under `least_rows`."""
    tiles = -(-conditions // tile.conditions)
    share = max(least_rows, -(-rows * tiles // _PROGRAMS), 1)
    return Schedule(slices=max(1, -(-rows // share)), rows=share)
