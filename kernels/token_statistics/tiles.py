"""How many tokens one program holds, and how the tokens of a segment are dealt to programs.

A program holds all heads of a token, as the softmax couples them: [BN, BH, BP], heads and channels padded
to powers of two. From 128 numbers a token the table gives a thread 16 of a
block: Triton 3.6 spills at 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds: `tokens` x `heads` x `channels`, spread over `num_warps` warps."""

    tokens: int
    heads: int
    channels: int
    num_warps: int


# Padded numbers of a token -> (tokens, warps).
_TABLE: Final = MappingProxyType(
    {
        16: (32, 1), 32: (32, 1), 64: (16, 2), 128: (8, 2), 256: (8, 4), 512: (4, 4), 1024: (2, 4),
        2048: (2, 8),
    }
)  # fmt: skip

# Place in a table -> what may be tried there: more tokens in flight a program, or more programs.
CANDIDATES: Final = MappingProxyType(
    {
        ("_TABLE", 128): ((16, 2), (8, 4), (8, 1)),
        ("_TABLE", 256): ((16, 4), (16, 2), (8, 2)),
        ("_TABLE", 512): ((8, 4), (4, 2)),
        ("_TABLE", 1024): ((4, 4), (4, 8), (8, 8)),
        ("_TABLE", 2048): ((4, 8), (2, 4)),
    }
)

MIN_CHANNELS: Final = 16
MAX_SIZE: Final = 2048

# Four programs on each multiprocessor of the largest GPU of today. A constant, not a property of the machine,
# so that sums over tokens are cut alike, and round alike, on every machine.
_PROGRAMS: Final = 528
# A slice leaves its sums in memory and every other program of its segment reads them: float32 numbers for two
# tokens of bfloat16. Over this many tokens that is small.
_LEAST_TOKENS: Final = 32


def padded_size(heads: int, channels: int) -> int:
    """Numbers that a program holds of one token."""
    return _power(heads) * max(MIN_CHANNELS, _power(channels))


def choose(heads: int, channels: int) -> Tile:
    """Return the tile for tokens of `heads` heads of `channels` channels."""
    tokens, num_warps = _TABLE[padded_size(heads, channels)]
    return Tile(tokens, _power(heads), max(MIN_CHANNELS, _power(channels)), num_warps)


def slices(segments: int, tokens: int) -> int:
    """Into how many programs each of `segments` segments is cut, `tokens` being those of all together.

    Depends on shapes alone: lengths are on the device, and would have to be fetched.
    """
    if not segments:
        return 1
    mean = -(-tokens // segments)
    return max(1, min(_PROGRAMS // segments, mean // _LEAST_TOKENS))


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()
