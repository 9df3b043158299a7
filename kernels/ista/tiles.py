"""How much of the work one program takes, by the size of an element.

The product of the rows with a dictionary is short: 12 steps of 64 at N = 768. So a program spends as long on
what follows the product, which waits for memory, as on the product itself, and two programs must share a
multiprocessor, so that one multiplies while the other waits. That decides 128 x 128 in 8 warps: under 128
registers a thread on Hopper, and twice three stages of 32 kB.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program of a product holds: `rows` x `columns` of the result, `depth` of the sum at a time."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Strip:
    """What one program of the gated gradient holds at a time: `rows` x `columns`."""

    rows: int
    columns: int
    num_warps: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the rows of each cell are dealt to programs: `slices` programs of `rows` rows."""

    slices: int
    rows: int


_TILES: Final = MappingProxyType(
    {
        2: Tile(128, 128, 64, num_warps=8, num_stages=3),
        # three products of tf32 for each of float32; the halves of both operands lie in registers
        4: Tile(128, 64, 32, num_warps=8, num_stages=3),
    }
)

# Sixteen bytes a thread, one row a warp; with more rows the sums take too many registers.
_STRIPS: Final = MappingProxyType({2: Strip(8, 256, num_warps=4), 4: Strip(8, 128, num_warps=4)})

# Place in a table -> what may be tried there.
CANDIDATES: Final = MappingProxyType(
    {
        ("_TILES", 2): (
            Tile(128, 128, 64, num_warps=4, num_stages=3),
            Tile(128, 128, 64, num_warps=8, num_stages=4),
            Tile(128, 256, 64, num_warps=8, num_stages=3),
            Tile(256, 128, 64, num_warps=8, num_stages=3),
            Tile(64, 256, 64, num_warps=4, num_stages=3),
        ),
        ("_TILES", 4): (
            Tile(64, 64, 32, num_warps=4, num_stages=3), Tile(128, 64, 32, num_warps=8, num_stages=2),
        ),
        ("_STRIPS", 2): (Strip(4, 256, num_warps=4), Strip(8, 128, num_warps=4), Strip(8, 256, num_warps=8)),
        ("_STRIPS", 4): (Strip(4, 128, num_warps=4), Strip(8, 64, num_warps=4), Strip(8, 128, num_warps=8)),
    }
)  # fmt: skip

# Enough programs for sixteen on each multiprocessor of the largest GPU of today. A constant, not a property
# of the machine, so that sums over rows are cut alike, and round alike, on every machine.
_PROGRAMS: Final = 2368


def choose(element_size: int) -> Tile:
    """Return the tile of a product of elements of `element_size` bytes."""
    return _TILES[element_size]


def choose_strip(element_size: int) -> Strip:
    """Return the strip of the gated gradient."""
    return _STRIPS[element_size]


def every_tile() -> list[tuple[Tile, int]]:
    """All that `choose` can return, each with its bytes an element."""
    return [(tile, size) for size, tile in _TILES.items()]


def schedule(cells: int, rows: int, width: int, strip: Strip) -> Schedule:
    """Deal `rows` rows of each cell to as many programs as fill a GPU, in whole strips."""
    across = -(-width // strip.columns)
    share = max(1, -(-rows * cells * across // _PROGRAMS))
    share = -(-share // strip.rows) * strip.rows
    # the slices are the second dimension of a CUDA grid
    share = max(share, -(-rows // 65_535))
    return Schedule(slices=max(1, -(-rows // share)), rows=share)
