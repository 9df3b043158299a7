"""How large the cells of a class are: quantiles of their total counts."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

_QUANTILES = 101


class LibrarySizes(NamedTuple):
    """Quantiles of ``log total`` for every class, and for all cells last: ``log_total`` [C + 1, 101]."""

    log_total: Tensor

    @classmethod
    def fit(cls, totals: Tensor, label: Tensor, classes: int) -> Self:
        """Of the training cells' totals [n] and classes [n]; a class without cells is as all."""
        levels = torch.linspace(0, 1, _QUANTILES, dtype=torch.float64)
        logs = totals.double().clamp_min(1).log()
        everyone = torch.quantile(logs, levels)
        rows = [logs[label == k] for k in range(classes)]
        found = [torch.quantile(row, levels) if len(row) else everyone for row in rows]
        return cls(torch.stack([*found, everyone]).float())

    def sample(self, label: Tensor, generator: torch.Generator) -> Tensor:
        """Whole totals [n], at least 1, of classes [n] (-1: any)."""
        at = torch.rand(len(label), generator=generator) * (_QUANTILES - 1)
        below = at.long().clamp(max=_QUANTILES - 2)
        rows = self.log_total[torch.where(label < 0, len(self.log_total) - 1, label)]
        low, high = rows.gather(1, below[:, None])[:, 0], rows.gather(1, below[:, None] + 1)[:, 0]
        return torch.exp(low + (at - below) * (high - low)).round().clamp_min(1)

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of ``log total`` over all cells."""
        everyone = self.log_total[-1].double()
        return float(everyone.mean()), float(everyone.std().clamp_min(0.05))
