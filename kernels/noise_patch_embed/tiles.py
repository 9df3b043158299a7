"""How much of the work one program takes, by the sizes and the bytes of an element.

A tile has 64 rows, the least that the tensor cores of Hopper multiply at once: a few tokens of several cells.
Few tokens, as their positions are then read once for all of the cells and no row lies idle where 8 divides
the number of patches (200 and 256); but all 64 of them of one cell where there are few cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds: `tokens` of each of `cells`, `width` channels, over `num_warps` warps."""

    tokens: int
    cells: int
    width: int
    num_warps: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the cells are dealt to programs of the backward: `slices` programs of `steps` tiles of cells."""

    slices: int
    steps: int


_ROWS: Final = 64
_FEW_TOKENS: Final = 8
# Bytes an element -> most channels of a tile, warps.
# With half the warps the sums of the backward take 180 registers a thread.
_WIDTHS: Final = {2: (128, 8), 4: (64, 8)}
_MIN_WIDTH: Final = 16

# Place in a table -> what may be tried there.
CANDIDATES: Final = MappingProxyType(
    {
        ("_WIDTHS", 2): ((64, 4), (64, 8), (128, 4)),
        ("_WIDTHS", 4): ((32, 4), (32, 8), (64, 4)),
        ("_FEW_TOKENS",): (4, 16),
    }
)

# A patch of 64 genes in float32 leaves the backward no registers to spare.
MAX_PATCH: Final = 32

# Enough programs for eight on each multiprocessor of the largest GPU of today. A constant, not a property of
# the machine, so that sums over cells are cut alike, and round alike, on every machine.
_PROGRAMS: Final = 1184


def choose(cells: int, width: int, element_size: int) -> Tile:
    """Return the tile for `width` channels of `element_size` bytes."""
    tokens = _FEW_TOKENS if cells * _FEW_TOKENS >= _ROWS else _ROWS
    most, num_warps = _WIDTHS[element_size]
    padded = max(_MIN_WIDTH, 1 << (width - 1).bit_length())
    return Tile(tokens, _ROWS // tokens, min(most, padded), num_warps)


def every_tile() -> list[tuple[Tile, int]]:
    """All that `choose` can return for wide tokens, each with its bytes an element."""
    return [(choose(cells, 1024, size), size) for size in _WIDTHS for cells in (1, _ROWS)]


def patch_width(patch: int) -> int:
    """Genes of a patch as the tensor cores take them."""
    return max(16, 1 << (patch - 1).bit_length())


def schedule(cells: int, tokens: int, width: int, tile: Tile) -> Schedule:
    """Deal the cells to as many programs as fill a GPU."""
    side_by_side = -(-tokens // tile.tokens) * -(-width // tile.width)
    tiles = -(-cells // tile.cells)
    steps = max(1, -(-tiles * side_by_side // _PROGRAMS))
    return Schedule(slices=max(1, -(-tiles // steps)), steps=steps)
