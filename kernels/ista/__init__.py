"""One step of iterative shrinkage-thresholding towards a sparse code: the MLP of a white-box transformer."""

from __future__ import annotations

from .api import IstaOutput, ista_operator, ista_step, ista_step_with_zeros
from .overcomplete import overcomplete_ista_step, overcomplete_ista_step_with_zeros

__all__ = [
    "IstaOutput",
    "ista_operator",
    "ista_step",
    "ista_step_with_zeros",
    "overcomplete_ista_step",
    "overcomplete_ista_step_with_zeros",
]
