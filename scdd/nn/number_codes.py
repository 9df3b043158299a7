"""Numbers as whole codes, so that categories and numbers of a cell travel in one table of int64.

A code of -1 then means "not given" in every column, and whatever drops, fills or nulls conditions need not
know which of them are numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Codes = TypeVar("Codes", np.ndarray, Tensor)

# Codes for one standard deviation: finer than what a network can tell apart. All codes are below 2^23, so
# that even float32 holds them exactly.
STEPS = 1 << 16
_MIDDLE = 1 << 22
# What lies farther out than this many standard deviations is read as this far.
_FARTHEST = 63.0


def codes_of_numbers(numbers: np.ndarray) -> np.ndarray:
    """Codes int64 [n], never negative, of standardised numbers [n]; -1 for NaN."""
    given = ~np.isnan(numbers)
    inside = np.where(given, numbers, 0.0).clip(-_FARTHEST, _FARTHEST)
    return np.where(given, np.rint(inside * STEPS).astype(np.int64) + _MIDDLE, -1)


def offsets_of_codes(codes: Codes) -> Codes:
    """Whole numbers of ``STEPS`` to the standard deviation; meaningless where the code is -1."""
    return codes - _MIDDLE
