"""How far two samples are apart: maximum mean discrepancy, energy distance, and a permutation test."""

from __future__ import annotations

from .api import energy_distance, maximum_mean_discrepancy
from .bandwidth import bandwidth_heuristic
from .permutation import PermutationTest, mmd_permutation_test

__all__ = [
    "PermutationTest",
    "bandwidth_heuristic",
    "energy_distance",
    "maximum_mean_discrepancy",
    "mmd_permutation_test",
]
