"""How much of the work one program takes, by the width of a token and the size of an element.

A program holds 64 tokens, the fewest that Hopper's tensor cores take, over all columns where they fit the
registers and otherwise over one chunk of them at a time. It then makes two passes: one for the statistics of
each row and one to write it; rows of genes come from the L2 cache in both, as a vocabulary of 20,000 genes is
smaller than that cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

ROWS: Final = 64

MAX_WIDTH: Final = 4096
# Bins or hidden units, offset and streams together: all are columns of one matrix product.
MAX_COLUMNS: Final = 128
MAX_HIDDEN: Final = 128

# A sum over tokens that is kept in registers is cut into this many parts, on every machine alike.
PARTS: Final = 264


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds: `rows` tokens x `columns`, spread over `num_warps` warps."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int = 2


# Columns a chunk -> warps, by the bytes of an element, of the kernels that multiply.
_TABLE: Final = MappingProxyType({(16, 2): 4, (16, 4): 4, (32, 2): 4, (32, 4): 8, (64, 2): 4, (128, 2): 8})
_MAX_CHUNK: Final = MappingProxyType({2: 128, 4: 32})
_STAGES: Final = MappingProxyType({2: 2, 4: 1})

# Padded width -> (tokens a step, warps) of the sum by gene.
_SUMS: Final = MappingProxyType(
    {16: (32, 1), 32: (32, 1), 64: (32, 2), 128: (16, 2), 256: (16, 4), 512: (8, 4), 1024: (8, 8)}
)


# Of the encoding of values, by the bytes of an element and whether its scores have two layers.
_ENCODINGS: Final = MappingProxyType(
    {
        (2, False): Tile(32, MAX_COLUMNS, 8), (4, False): Tile(32, MAX_COLUMNS, 8),
        (2, True): Tile(64, MAX_COLUMNS, 8, 1), (4, True): Tile(64, MAX_COLUMNS, 8, 1),
    }
)  # fmt: skip


# Place in a table -> what may be tried there.
CANDIDATES: Final = MappingProxyType(
    {
        ("_MAX_CHUNK", 2): (64,), ("_MAX_CHUNK", 4): (16,),
        ("_TABLE", (128, 2)): (4,), ("_TABLE", (64, 2)): (8,), ("_TABLE", (32, 4)): (4,),
        ("_STAGES", 2): (1, 3), ("_STAGES", 4): (2,),
        ("_SUMS", 512): ((16, 4), (8, 8), (4, 4)), ("_SUMS", 1024): ((4, 8), (8, 4), (16, 8)),
        ("_ENCODINGS", (2, False)): (Tile(64, MAX_COLUMNS, 8), Tile(32, MAX_COLUMNS, 4)),
        ("_ENCODINGS", (4, False)): (Tile(64, MAX_COLUMNS, 8), Tile(32, MAX_COLUMNS, 4)),
    }
)  # fmt: skip


def padded(size: int, least: int = 16) -> int:
    """The power of two that holds `size`."""
    return max(least, 1 << (size - 1).bit_length())


def choose(width: int, element_size: int) -> Tile:
    """Return the tile for tokens of `width` elements of `element_size` bytes."""
    columns = min(padded(width), _MAX_CHUNK[element_size])
    return Tile(ROWS, columns, _TABLE[columns, element_size], _STAGES[element_size])


def step(columns: int, element_size: int) -> int:
    """How many of the columns of the weights a product takes at a time."""
    return columns if element_size == 2 else min(columns, 32)


def choose_encoding(element_size: int, *, mixed: bool) -> Tile:
    """Return the tile for the weights of the table and their gradient; all columns at once."""
    return _ENCODINGS[element_size, mixed]


def choose_sum(width: int) -> Tile:
    """Return the tile for the sums by gene of rows of `width` elements."""
    columns = min(padded(width), 1024)
    rows, num_warps = _SUMS[columns]
    return Tile(rows, columns, num_warps)


def every_tile() -> list[tuple[Tile, int]]:
    """All that `choose` can return, each with its bytes an element."""
    return [(Tile(ROWS, columns, warps, _STAGES[size]), size) for (columns, size), warps in _TABLE.items()]


def every_sum_tile() -> list[Tile]:
    """All that `choose_sum` can return."""
    return [Tile(rows, columns, warps) for columns, (rows, warps) in _SUMS.items()]
