"""How much of the work one program takes: 1024 genes, of one cell or of several small ones."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds: `genes` of each of `cells`, over `num_warps` warps."""

    cells: int
    genes: int
    num_warps: int


_ELEMENTS: Final = 1024
_MIN_GENES: Final = 16
# Eight elements a thread: 128 bits in 16-bit dtypes, two counters of noise in all.
_WARPS: Final = 4

# Place -> what may be tried there.
CANDIDATES: Final = MappingProxyType({("_ELEMENTS",): (512, 2048), ("_WARPS",): (2, 8)})


def choose(genes: int) -> Tile:
    """Return the tile for cells of `genes`."""
    padded = min(_ELEMENTS, max(_MIN_GENES, 1 << (genes - 1).bit_length()))
    return Tile(_ELEMENTS // padded, padded, _WARPS)


def every_tile() -> list[Tile]:
    """All that `choose` can return."""
    return [choose(1 << power) for power in range(4, 11)]
