"""How much of the work one program takes, by the widths of the network and the size of an element."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Tile:
    """A program of `num_warps` warps takes `rows` codes through the network.

    It computes `columns` outputs of a layer at a time, over `inputs` of its inputs at a time, `num_stages` of
    which are on their way from memory; and norms `normed` rows at a time.
    """

    rows: int
    columns: int
    inputs: int
    normed: int
    num_warps: int
    num_stages: int

    def constants(self, latent: int, sizes: Sequence[int]) -> dict[str, int]:
        """What both kernels are compiled for, with `sizes` those of `DenoiserWeights.w1`."""
        depth, hidden, width = sizes
        network = {"D": latent, "BD": padded_latent(latent), "W": width, "H": hidden, "DEPTH": depth}
        return network | {
            "BW": padded(width),
            "BM": self.rows,
            "BN": self.columns,
            "BK": self.inputs,
            "BE": min(padded_latent(latent), self.inputs),
            "BR": self.normed,
            "STAGES": self.num_stages,
        }


# Rows, columns and inputs at the most, warps and stages, by the bytes of an element. With fewer than 64 rows
# Hopper multiplies by the instructions of its predecessor, with more 4096 codes fill few multiprocessors.
_TABLE: Final = MappingProxyType({2: (64, 128, 64, 8, 4), 4: (64, 32, 32, 8, 2)})
# Numbers that are normed at a time: 8 a thread.
_NORMED: Final = 2048

# Place in a table -> what may be tried there.
CANDIDATES: Final = MappingProxyType(
    {
        ("_TABLE", 2): (
            (64, 128, 64, 8, 3), (64, 128, 64, 4, 4), (64, 64, 64, 4, 4), (64, 256, 64, 8, 3),
            (128, 128, 64, 8, 3), (64, 128, 128, 8, 2),
        ),
        ("_TABLE", 4): ((64, 32, 32, 4, 2), (64, 64, 32, 8, 2), (64, 32, 32, 8, 3)),
        ("_NORMED",): (1024, 4096),
    }
)  # fmt: skip

MIN_WIDTH: Final = 16
MAX_WIDTH: Final = 2048
MAX_LATENT: Final = 256


def choose(width: int, hidden: int, element_size: int) -> Tile:
    """Return the tile for layers of `width` and `hidden` numbers, both multiples of `MIN_WIDTH`."""
    rows, columns, inputs, warps, stages = _TABLE[element_size]
    whole = math.gcd(width, hidden)
    normed = max(1, min(rows, _NORMED // padded(width)))
    return Tile(rows, _power(whole, columns), _power(whole, inputs), normed, warps, stages)


def padded(width: int) -> int:
    """`width` rounded up to a power of two."""
    return 1 << (width - 1).bit_length()


def padded_latent(latent: int) -> int:
    """Length of a code as the weights hold it."""
    return max(MIN_WIDTH, padded(latent))


def _power(size: int, most: int) -> int:
    """The largest power of two up to `most` that divides `size`."""
    return min(most, size & -size)
