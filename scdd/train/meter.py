"""What training measures of itself: losses, read seldom, for reading waits for the device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

ROW_EVERY = 50


class Meter:
    """Losses of every step, left on the device until they are asked for, and their means over 50 steps."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.window: list[list[float]] = []
        self._unread: list[Tensor] = []

    def add(self, terms: dict[str, Tensor], total: Tensor, norm: Tensor) -> None:
        """Losses and gradient norm of one step."""
        self.names = [*terms, "loss", "gradient_norm"]
        values = [value.detach().float() for value in (*terms.values(), total, norm)]
        self._unread.append(torch.stack([value.to(total.device) for value in values]))

    def read(self) -> list[list[float]]:
        """The rows since the last reading, which now count towards the means."""
        if not self._unread:
            return []
        rows = torch.stack(self._unread).tolist()
        self._unread.clear()
        self.window += rows
        return rows

    @property
    def loss(self) -> float:
        """Of the last step that was read."""
        return self.window[-1][-2]

    def named(self, row: list[float]) -> dict[str, float]:
        """A row by the names of its values."""
        return dict(zip(self.names, row, strict=True))

    def close_window(self) -> dict[str, float]:
        """Means since the last call."""
        means = [sum(column) / len(self.window) for column in zip(*self.window, strict=True)]
        self.window = []
        return self.named(means)


class Clock:
    """Cells per second of training proper: validation and checkpoints are not counted."""

    def __init__(self, cells_a_step: int):
        self._cells, self._steps, self.rate = cells_a_step, 0, 0.0
        self._start = time.perf_counter()

    def tick(self) -> None:
        """A step is done."""
        self._steps += 1

    def lap(self) -> float:
        """The rate since the last start."""
        if self._steps:
            self.rate = self._cells * self._steps / max(time.perf_counter() - self._start, 1e-9)
        return self.rate

    def start(self) -> None:
        """Count anew."""
        self._steps, self._start = 0, time.perf_counter()
