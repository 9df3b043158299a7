"""How much of a row of logits a program holds at a time, and how many tokens make a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Tile:
    """A program steps over a row of logits `width` at a time, with `num_warps` warps."""

    width: int
    num_warps: int


# Bytes of an element -> tile. 16 numbers a thread: two loads of 128 bits in flight for 16-bit logits.
_TABLE: Final = MappingProxyType({2: Tile(4096, 8), 4: Tile(4096, 8)})

# Place in a table -> what may be tried there.
CANDIDATES: Final = MappingProxyType(
    {
        ("_TABLE", 2): (Tile(2048, 4), Tile(8192, 8), Tile(8192, 16)),
        ("_TABLE", 4): (Tile(2048, 4), Tile(4096, 16), Tile(8192, 16)),
    }
)

# The logits of a chunk. Each chunk reads and writes the sum of the weight's gradient again: with Liger's
# choice, about D tokens, that alone takes longer than the softmax. On a CPU smaller ones stay in its cache.
_CHUNK_BYTES: Final = MappingProxyType({True: 1 << 28, False: 1 << 24})
# rows of a chunk are a multiple of the tiles of a product
_ROUND: Final = 128


def choose(element_size: int) -> Tile:
    """Return the tile for logits of `element_size` bytes."""
    return _TABLE[element_size]


def every_tile() -> list[tuple[Tile, int]]:
    """All that `choose` can return, each with its bytes an element."""
    return [(tile, size) for size, tile in _TABLE.items()]


def chunk_rows(rows: int, vocabulary: int, element_size: int, *, on_gpu: bool) -> int:
    """Tokens of a chunk: all alike, and as few chunks as their logits allow."""
    most = max(_ROUND, _CHUNK_BYTES[on_gpu] // (vocabulary * element_size) // _ROUND * _ROUND)
    share = -(-rows // -(-rows // most))
    return min(rows, -(-share // _ROUND) * _ROUND)
