"""How the scores of a head are cut into blocks, by the width of the head and the size of an element.

A program owns `rows` rows of one head and visits the keys `keys` at a time. Hopper's tensor cores multiply 64
rows at once for every four warps, so rows are padded to 64; columns need only be a multiple of 8. Keys that
fill no whole block are therefore met in a last, narrower block (:func:`last_keys`), and 200 tokens cost
256 x 208 scores instead of 256 x 256.

Two programs of 64 rows and one of 128 compute the same; the latter reads every key once instead of twice.
Scores of one program depend on none of another, so a row is the same however they are cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds: `rows` x `keys` scores at a time, spread over `num_warps` warps.

    With `columns` the head does not stay in the program: products are taken over so many columns at a time,
    loaded anew, and a program writes 32 columns of the result. That repeats scores, and fits where registers
    are short.
    """

    rows: int
    keys: int
    num_warps: int
    num_stages: int
    columns: int = 0


# The head widths of the kernels, each as the powers of two that are multiplied one after the other. 96 as
# 64 + 32 needs no padding; as 128 it would cost a third more of everything.
PIECES: Final = MappingProxyType({32: (32, 0), 64: (64, 0), 96: (64, 32), 128: (128, 0)})

# The rows of a program; a schedule of segments may be cut to either.
ROWS: Final = (64, 128)

# Tiles of a program with 64 rows; with 128 it has twice the warps.
_FORWARD: Final = Tile(64, 64, 4, 3)
# Blocks of 64 keys spill on Blackwell.
_NARROW_FORWARD: Final = Tile(64, 32, 4, 3)
# Three blocks of scores are alive at once: 64 keys would leave room for half as many programs, or spill.
_BACKWARD: Final = Tile(64, 32, 4, 2)
# float32 is multiplied as three products of tf32, whose operands would fill all registers.
_FLOAT32: Final = MappingProxyType(
    {width: Tile(64, 16, 4, 2, 16 if width in (32, 96) else 32) for width in PIECES}
)
# Tensor cores before Hopper's take both operands from registers, where wide heads do not fit.
_BEFORE_HOPPER: Final = Tile(64, 32, 4, 2, 32)

# Place -> what may be tried there: tiles for 16-bit elements that do not spill on Hopper.
CANDIDATES: Final = MappingProxyType(
    {
        ("_FORWARD",): (Tile(64, 64, 4, 4), Tile(64, 64, 4, 2), Tile(64, 32, 4, 3)),
        ("_NARROW_FORWARD",): (Tile(64, 64, 4, 3), Tile(64, 32, 4, 4)),
        ("_BACKWARD",): (Tile(64, 64, 4, 2), Tile(64, 32, 4, 3)),
    }
)

# Keys a step where segments share a tile or end. There are few, and they must not take more registers than
# the loop over long segments.
_SHARED_KEYS: Final = MappingProxyType({False: 32, True: 16})
_WRITTEN_COLUMNS: Final = 32


def choose(
    width: int, element_size: int, rows: int = 64, *, backward: bool = False, hopper: bool = True
) -> Tile:
    """Return the tile for heads of `width` elements of `element_size` bytes, up to `rows` to a program.

    `hopper` is whether the tensor cores are of its generation or later.
    """
    if element_size == 4:
        tile = _FLOAT32[width]
    elif not hopper and width >= 96:
        tile = _BEFORE_HOPPER
    else:
        tile = _BACKWARD if backward else _FORWARD if width > 32 else _NARROW_FORWARD
    return tile if rows <= ROWS[0] else replace(tile, rows=ROWS[1], num_warps=2 * tile.num_warps)


def rows_of(length: int) -> int:
    """Rows of a program for a fixed number of tokens: 128 unless that pads an eighth more than 64."""
    padded = {rows: -(-length // rows) * rows for rows in ROWS}
    return 128 if 8 * padded[128] <= 9 * padded[64] else 64


def last_keys(keys: int, tile: Tile) -> int:
    """Width of the block that takes what is left after whole blocks: 0, or a power of two from 16."""
    left = keys % tile.keys
    return max(16, 1 << (left - 1).bit_length()) if left else 0


def constants(width: int, tile: Tile, length: int | None, *, backward: bool) -> dict[str, Any]:
    """What a kernel is compiled with, for a fixed `length` or (None) for segments."""
    first, second = (_WRITTEN_COLUMNS, 0) if tile.columns else PIECES[width]
    if tile.columns:
        last = tile.keys
    else:
        last = _SHARED_KEYS[backward] if length is None else last_keys(length, tile)
    return {
        "P": width, "PA": first, "PB": second, "BP": tile.columns,
        "BM": tile.rows, "BN": tile.keys, "BT": last, "SEGMENTED": length is None,
        "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    }  # fmt: skip
