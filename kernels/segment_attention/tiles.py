"""How much of the work one program takes, by kernel, head dimension and size of an element.

A program holds `rows` of a schedule's tile (queries, or keys in the kernel for their gradients) and steps
over the other side `step` at a time. Sixty-four rows are the least with which Hopper's tensor cores run at
their full width, whatever the lengths: so short segments share a tile. One table serves every architecture,
but for a tile that spills before Hopper, where the tensor cores take both operands from registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from .._dispatch import INTERPRET

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

Kernel = Literal["forward", "queries", "keys"]

KERNELS: Final[tuple[Kernel, ...]] = ("forward", "queries", "keys")
WIDTHS: Final = (32, 64, 96, 128)
# What a schedule is cut to where the caller has none.
TILE_ROWS: Final = 128
# The other side a step where segments share a tile. There is little of it, and it must take no more registers
# than the loop over long segments, whose occupancy it would lower.
SHARED_STEP: Final = 16


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program holds, and how it is compiled."""

    rows: int
    step: int
    num_warps: int
    num_stages: int
    registers: int | None = None
    """The most that a thread may use on Hopper, so that two programs or more fit a multiprocessor."""
    columns: int = 0
    """How much of a head is multiplied at a time, loaded anew for each step, and how much a program writes; 0
    for all. That repeats scores, and fits where registers are short."""


# (kernel, padded head dimension, bytes an element) -> one tile for 128 rows and one for fewer. In float32
# both parts of each number must be held, and wide heads would spill whatever the rows.
_TABLE: Final[Mapping[tuple[Kernel, int, int], tuple[Tile, ...]]] = MappingProxyType(
    {
        ("forward", 32, 2): (Tile(128, 64, 8, 3, 128), Tile(64, 64, 4, 3)),
        ("forward", 64, 2): (Tile(128, 64, 8, 3, 128), Tile(64, 64, 4, 2, 168)),
        ("forward", 128, 2): (Tile(128, 64, 8, 3), Tile(64, 32, 4, 3)),
        ("queries", 32, 2): (Tile(128, 64, 8, 2), Tile(64, 64, 4, 2)),
        ("queries", 64, 2): (Tile(128, 64, 8, 2), Tile(64, 32, 4, 2)),
        ("queries", 128, 2): (Tile(128, 64, 8, 2), Tile(64, 32, 4, 2)),
        ("keys", 32, 2): (Tile(128, 64, 8, 2), Tile(64, 32, 4, 2)),
        ("keys", 64, 2): (Tile(128, 64, 8, 2), Tile(64, 32, 4, 2)),
        ("keys", 128, 2): (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2)),
        ("forward", 32, 4): (Tile(64, 32, 4, 2),),
        ("forward", 64, 4): (Tile(64, 16, 8, 2),),
        ("forward", 128, 4): (Tile(64, 16, 4, 2, columns=32),),
        ("queries", 32, 4): (Tile(64, 32, 4, 2),),
        ("queries", 64, 4): (Tile(64, 16, 4, 2, columns=32),),
        ("queries", 128, 4): (Tile(64, 16, 4, 2, columns=32),),
        ("keys", 32, 4): (Tile(64, 16, 4, 2),),
        ("keys", 64, 4): (Tile(64, 16, 4, 2, columns=32),),
        ("keys", 128, 4): (Tile(64, 16, 4, 2, columns=32),),
    }
)

# Where a bias leaves no room for the tiles above.
_BIASED: Final[Mapping[tuple[Kernel, int, int], tuple[Tile, ...]]] = MappingProxyType(
    {
        ("queries", 128, 2): (Tile(128, 32, 8, 2), Tile(64, 32, 4, 2)),
        ("keys", 64, 2): (Tile(128, 32, 8, 2), Tile(64, 32, 4, 2)),
        ("keys", 128, 2): (Tile(64, 32, 8, 2),),
    }
)

# Where tensor cores before Hopper's have no room for the tile above.
_BEFORE_HOPPER: Final[Mapping[tuple[Kernel, int, int], tuple[Tile, ...]]] = MappingProxyType(
    {
        ("keys", 128, 2): (Tile(64, 64, 8, 2),),
        ("keys", 32, 4): (Tile(64, 16, 4, 2, columns=16),),
        ("keys", 64, 4): (Tile(64, 16, 4, 2, columns=16),),
        ("keys", 128, 4): (Tile(64, 16, 4, 2, columns=16),),
    }
)

# Place in a table -> what may be tried there: the tiles for schedules of 128 rows and 16-bit elements.
CANDIDATES: Final = MappingProxyType(
    {
        ("_TABLE", ("forward", 32, 2), 0): (
            Tile(128, 64, 8, 3, 128), Tile(128, 128, 8, 2), Tile(64, 64, 4, 3),
        ),
        ("_TABLE", ("forward", 64, 2), 0): (
            Tile(128, 64, 8, 3, 128), Tile(128, 64, 8, 3), Tile(128, 64, 8, 2, 128), Tile(128, 128, 8, 2),
            Tile(64, 64, 4, 3), Tile(64, 64, 4, 3, 168),
        ),
        ("_TABLE", ("forward", 128, 2), 0): (
            Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(128, 32, 8, 3), Tile(64, 32, 4, 3),
        ),
        ("_TABLE", ("queries", 32, 2), 0): (
            Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2),
        ),
        ("_TABLE", ("queries", 64, 2), 0): (
            Tile(128, 64, 8, 2), Tile(128, 32, 8, 2, 128), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2),
        ),
        ("_TABLE", ("queries", 128, 2), 0): (
            Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(64, 64, 8, 2), Tile(64, 32, 4, 2),
        ),
        ("_TABLE", ("keys", 32, 2), 0): (
            Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(64, 64, 4, 2), Tile(64, 32, 4, 2),
        ),
        ("_TABLE", ("keys", 64, 2), 0): (
            Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(64, 64, 8, 2), Tile(64, 32, 4, 2),
        ),
        ("_TABLE", ("keys", 128, 2), 0): (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2), Tile(64, 32, 8, 2)),
    }
)  # fmt: skip


def choose(
    kernel: Kernel, width: int, element_size: int, tile_rows: int, *, biased: bool, hopper: bool = True
) -> Tile:
    """Return the tile for heads of `width` elements, in a schedule of `tile_rows` rows a tile.

    The largest that a tile of the schedule fills; a longer tile of the schedule is several of these. `hopper`
    is whether the tensor cores are of its generation or later.
    """
    key = kernel, padded(width), element_size
    known = _TABLE[key] if hopper else _BEFORE_HOPPER.get(key, _TABLE[key])
    known = _BIASED.get(key, known) if biased else known
    return next((tile for tile in known if tile.rows <= tile_rows), known[-1])


def every_tile() -> list[tuple[Kernel, int, int, Tile]]:
    """All that `choose` can return: kernel, padded head dimension, bytes an element and tile."""
    tables = (*_TABLE.items(), *_BIASED.items(), *_BEFORE_HOPPER.items())
    return [(*key, tile) for key, known in tables for tile in known]


def padded(width: int) -> int:
    """The power of two that a head of `width` elements takes in registers."""
    return 1 << (width - 1).bit_length()


def are_used(device: torch.device) -> bool:
    """Whether the registered operator runs the kernels on `device`, and so needs a schedule."""
    return INTERPRET or device.type != "cpu"
