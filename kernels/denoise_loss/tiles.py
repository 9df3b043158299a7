"""How much of the work one program takes, by the sizes and the bytes of an element.

A tile has 64 tokens of one cell, the least that the tensor cores of Hopper multiply at once, and as much of
their channels as registers hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds: `rows` tokens of a cell, `width` of their channels, over `num_warps` warps."""

    rows: int
    width: int
    num_warps: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the cells are dealt to programs of the backward: `slices` programs of `cells` cells."""

    slices: int
    cells: int


_ROWS: Final = 64
# Bytes an element -> most channels of a tile, warps.
_WIDTHS: Final = {2: (64, 8), 4: (64, 8)}
_BACKWARD: Final = {2: (64, 8), 4: (32, 8)}
# Place in a table -> what may be tried there.
CANDIDATES: Final = MappingProxyType(
    {
        ("_WIDTHS", 2): ((32, 4), (64, 4), (128, 8)),
        ("_WIDTHS", 4): ((32, 4), (32, 8)),
        ("_BACKWARD", 2): ((32, 4), (32, 8), (64, 4)),
        ("_BACKWARD", 4): ((32, 4), (16, 4)),
    }
)
# Loads are asked for ahead by hand: the pipeliner would not take those of h.
BACKWARD_STAGES: Final = 1
_MIN_WIDTH: Final = 16

# In float32 the backward of a patch of 32 genes does not fit the registers.
MAX_PATCH: Final = 16

# Enough programs for eight on each multiprocessor of the largest GPU of today. A constant, not a property of
# the machine, so that sums over cells are cut alike, and round alike, on every machine.
_PROGRAMS: Final = 1184


def choose(width: int, element_size: int, *, backward: bool) -> Tile:
    """Return the tile for `width` channels of `element_size` bytes."""
    most, num_warps = (_BACKWARD if backward else _WIDTHS)[element_size]
    padded = max(_MIN_WIDTH, 1 << (width - 1).bit_length())
    return Tile(_ROWS, min(most, padded), num_warps)


def patch_width(patch: int) -> int:
    """Genes of a patch as the tensor cores take them."""
    return max(16, 1 << (patch - 1).bit_length())


def schedule(cells: int, width: int, tile: Tile) -> Schedule:
    """Deal the cells to as many programs as fill a GPU."""
    share = max(1, -(-cells * -(-width // tile.width) // _PROGRAMS))
    return Schedule(slices=max(1, -(-cells // share)), cells=share)
