"""How the scores of a head are cut into blocks, by the width of the head and the size of an element.

A program owns `rows` rows of one head and visits the keys `keys` at a time. Hopper's tensor cores multiply 64
rows at once for every four warps, so rows are padded to 64; columns need only be a multiple of 8. Keys that
fill no whole block are therefore met in a last, narrower block (:func:`last_keys`), and 200 tokens cost
256 x 208 scores instead of 256 x 256.

Two programs of 64 rows and one of 128 compute the same; the latter reads every key once instead of twice.
Scores of one program depend on none of another, so a row is the same however they are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds: `rows` x `keys` scores at a time, spread over `num_warps` warps."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


# The head widths of the kernels, each as the powers of two that are multiplied one after the other. 96 as
# 64 + 32 needs no padding; as 128 it would cost a third more of everything.
PIECES: Final = MappingProxyType({32: (32, 0), 64: (64, 0), 96: (64, 32), 128: (128, 0)})

# The rows of a program; a schedule of segments may be cut to either.
ROWS: Final = (64, 128)

# (head width, bytes of an element) -> tile of a program with 64 rows; with 128 it has twice the warps.
_FORWARD: Final = MappingProxyType(
    {
        (32, 2): Tile(64, 64, 4, 3), (32, 4): Tile(64, 32, 4, 2),
        (64, 2): Tile(64, 64, 4, 3), (64, 4): Tile(64, 32, 4, 2),
        (96, 2): Tile(64, 64, 4, 3), (96, 4): Tile(64, 32, 4, 2),
        (128, 2): Tile(64, 64, 4, 3), (128, 4): Tile(64, 32, 4, 2),
    }
)  # fmt: skip
# Three blocks of scores are alive at once, and 64 keys of a wide head would spill.
_BACKWARD: Final = MappingProxyType(
    {
        (32, 2): Tile(64, 64, 4, 2), (32, 4): Tile(64, 32, 4, 2),
        (64, 2): Tile(64, 64, 4, 2), (64, 4): Tile(64, 32, 4, 2),
        (96, 2): Tile(64, 32, 4, 2), (96, 4): Tile(64, 32, 4, 2),
        (128, 2): Tile(64, 32, 4, 2), (128, 4): Tile(64, 32, 4, 2),
    }
)  # fmt: skip

# Columns that float32 products are taken over at a time.
_WIDE_COLUMNS: Final = 32


def choose(width: int, element_size: int, rows: int = 64, *, backward: bool = False) -> Tile:
    """Return the tile for heads of `width` elements of `element_size` bytes, `rows` (or more) to a program."""
    tile = (_BACKWARD if backward else _FORWARD)[width, element_size]
    if rows <= 64:
        return tile
    return Tile(128, tile.keys, 2 * tile.num_warps, tile.num_stages)


def rows_of(length: int) -> int:
    """Rows of a program for a fixed number of tokens: 128 unless that pads an eighth more than 64."""
    padded = {rows: -(-length // rows) * rows for rows in ROWS}
    return 128 if 8 * padded[128] <= 9 * padded[64] else 64


def last_keys(keys: int, tile: Tile) -> int:
    """Width of the block that takes what is left after whole blocks: 0, or a power of two from 16."""
    left = keys % tile.keys
    return max(16, 1 << (left - 1).bit_length()) if left else 0


def constants(width: int, element_size: int, tile: Tile, length: int | None) -> dict[str, Any]:
    """What a kernel is compiled with, for a fixed `length` or (None) for segments."""
    first, second = PIECES[width]
    return {
        "P": width, "PA": first, "PB": second, "BP": _WIDE_COLUMNS if element_size == 4 else 0,
        "BM": tile.rows, "BN": tile.keys, "BT": tile.keys if length is None else last_keys(length, tile),
        "SEGMENTED": length is None, "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    }  # fmt: skip
