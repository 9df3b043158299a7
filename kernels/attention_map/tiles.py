"""How much of the work one program takes, by head dimension and size of an element."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

# Rows of the tiles that are cut here; a schedule from elsewhere may have others, in multiples or not.
TILE_ROWS: Final = 64

WIDTHS: Final = (32, 64, 96, 128)

# Programs that share the keys of one tile of queries, as few queries of a segment are of a chosen gene.
KEY_PARTS: Final = 4


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds: `queries` x `keys` scores, spread over `num_warps` warps."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int
    step: int
    """Columns of a head that a product takes at a time; all of them lets the keys stay in registers."""


# Head dimension, bytes of an element -> tile. Keys stay and queries pass by.
_MASS: Final = MappingProxyType(
    {
        (32, 2): Tile(64, 64, 4, 3, 32), (32, 4): Tile(64, 64, 4, 2, 32),
        (64, 2): Tile(64, 64, 4, 3, 64), (64, 4): Tile(32, 64, 8, 2, 32),
        (96, 2): Tile(64, 64, 4, 3, 128), (96, 4): Tile(32, 64, 8, 2, 32),
        (128, 2): Tile(64, 64, 4, 3, 128), (128, 4): Tile(32, 64, 8, 2, 32),
    }
)  # fmt: skip

# Queries stay and keys pass by, for all heads in turn.
_ROWS: Final = MappingProxyType(
    {
        (32, 2): Tile(64, 32, 8, 2, 32), (32, 4): Tile(64, 32, 8, 2, 16),
        (64, 2): Tile(64, 32, 8, 2, 32), (64, 4): Tile(64, 32, 8, 2, 16),
        (96, 2): Tile(64, 32, 8, 2, 32), (96, 4): Tile(64, 32, 8, 2, 16),
        (128, 2): Tile(64, 32, 8, 2, 32), (128, 4): Tile(64, 32, 8, 2, 16),
    }
)  # fmt: skip

# Place in a table -> what may be tried there.
CANDIDATES: Final = MappingProxyType(
    {
        ("_MASS", (64, 2)): (Tile(64, 64, 4, 2, 64), Tile(128, 64, 8, 3, 64), Tile(64, 128, 8, 3, 64)),
        ("_MASS", (128, 2)): (Tile(64, 64, 4, 2, 128), Tile(128, 64, 8, 3, 128), Tile(64, 64, 8, 3, 128)),
        ("_MASS", (64, 4)): (Tile(64, 64, 8, 2, 32), Tile(32, 64, 4, 2, 32)),
        ("_ROWS", (64, 2)): (Tile(64, 32, 4, 2, 32), Tile(64, 32, 8, 3, 32), Tile(64, 64, 8, 2, 32)),
        ("_ROWS", (128, 2)): (Tile(64, 32, 4, 2, 32), Tile(64, 32, 8, 3, 32), Tile(64, 64, 8, 2, 32)),
        ("_ROWS", (64, 4)): (Tile(64, 32, 4, 2, 16), Tile(64, 32, 8, 2, 32)),
    }
)  # fmt: skip


def choose_mass(width: int, element_size: int) -> Tile:
    """Return the tile of `attention_mass` for heads of `width` elements of `element_size` bytes."""
    return _MASS[width, element_size]


def choose_rows(width: int, element_size: int) -> Tile:
    """Return the tile of `attention_rows`."""
    return _ROWS[width, element_size]


def every_tile() -> list[tuple[str, int, int, Tile]]:
    """All that can be chosen: operator, head dimension, bytes an element, tile."""
    tables = (("mass", _MASS), ("rows", _ROWS))
    return [(name, width, size, tile) for name, table in tables for (width, size), tile in table.items()]
