"""How the matrix of pairs is cut into square tiles, by the size of an element."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Tile:
    """A program compares `block` rows with `block` rows, `depth` features at a time."""

    block: int
    depth: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Triangle:
    """The tiles on and above the diagonal, folded into a rectangle of `height` x `width` programs."""

    tiles_x: int
    tiles: int
    height: int
    width: int


# Bytes of an element -> tile. Accumulators of 128 x 128 are 64 registers a thread in 8 warps. In float32 the
# accumulators share the registers with the parts that each number is split into for the tensor cores: with a
# tile of 128, sm_80 and sm_100 spill.
_TABLE: Final = MappingProxyType({2: Tile(128, 64, 8, 4), 4: Tile(64, 16, 4, 4)})

# Place in a table -> what may be tried there; all compile without spills for every architecture.
CANDIDATES: Final = MappingProxyType(
    {
        ("_TABLE", 2): (Tile(128, 64, 8, 3), Tile(128, 32, 8, 4), Tile(64, 64, 4, 4)),
        ("_TABLE", 4): (Tile(64, 32, 4, 3), Tile(64, 32, 8, 3)),
    }
)

# A wave of programs on the largest GPU of today takes 11 x 12 tiles, and so reads 23 blocks of rows instead
# of 133.
GROUP: Final = 11


def choose(element_size: int) -> Tile:
    """Return the tile for elements of `element_size` bytes."""
    return _TABLE[element_size]


def every_tile() -> list[tuple[Tile, int]]:
    """All that `choose` can return, each with its bytes an element."""
    return [(tile, size) for size, tile in _TABLE.items()]


def triangle(rows_x: int, rows_y: int, tile: Tile) -> Triangle:
    """Cut the joint sample into tiles of which none holds rows of both samples, and fold their triangle.

    Row r of the rectangle is row r of the triangle followed by row `even - 1 - r`: together they always have
    `even + 1` tiles. An odd number of tiles is made even; the tiles beyond the last one are left at once.
    """
    tiles_x, tiles_y = -(-rows_x // tile.block), -(-rows_y // tile.block)
    even = tiles_x + tiles_y + (tiles_x + tiles_y) % 2
    return Triangle(tiles_x, tiles_x + tiles_y, even // 2, even + 1)
