"""How many tokens a program multiplies at a time, by the width of a head and the size of an element."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Tile:
    """A program of `num_warps` warps holds a matrix of `channels`, to which it adds `block` tokens at a time.

    That of the gradient holds `tokens` and sums over `gradient_block` at a time.
    """

    block: int
    tokens: int
    gradient_block: int
    channels: int
    num_warps: int


# Padded channels -> (block, warps). The matrix of a head, channels x channels, stays in registers; from 64
# on it is tall enough for the tensor cores of Hopper.
_TABLE: Final = MappingProxyType({16: (16, 4), 32: (32, 4), 64: (16, 4), 128: (16, 8)})

# The least that the tensor cores of Hopper take of rows.
_TOKENS: Final = 64
_GRADIENT_BLOCK: Final = 32

# Place in a table -> what may be tried there.
CANDIDATES: Final = MappingProxyType(
    {
        ("_TABLE", 32): ((16, 4), (64, 4)),
        ("_TABLE", 64): ((32, 4), (16, 8)),
        ("_TABLE", 128): ((32, 8), (16, 16)),
        ("_TOKENS",): (128,),
        ("_GRADIENT_BLOCK",): (16, 64),
    }
)

MIN_CHANNELS: Final = 16
MAX_CHANNELS: Final = 128

# Enough programs for two on each multiprocessor of the largest GPU of today.
_PROGRAMS: Final = 264


def choose(channels: int) -> Tile:
    """Return the tile for heads of `channels` channels."""
    padded = max(MIN_CHANNELS, 1 << (channels - 1).bit_length())
    block, num_warps = _TABLE[padded]
    return Tile(block, _TOKENS, min(padded, _GRADIENT_BLOCK), padded, num_warps)


def every_tile() -> list[Tile]:
    """All that `choose` can return."""
    return [choose(channels) for channels in _TABLE]


def slices(matrices: int, segments: int, tokens: int, tile: Tile) -> int:
    """Into how many programs the tokens of each of `matrices` heads are cut for the gradient.

    `tokens` are those of all `segments`: lengths are on the device, and would have to be fetched.
    """
    if not matrices:
        return 1
    tiles = -(-tokens // (segments * tile.tokens))
    return max(1, min(tiles, -(-_PROGRAMS // matrices)))
