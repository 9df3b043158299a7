"""Exponential moving average of the weights that are trained."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn


class MovingAverage:
    """``a <- a + (1 - d) (w - a)`` with ``d = min(decay, (1 + n) / (10 + n))`` at update n.

    A fixed decay would remember the random start for thousands of steps. Frozen parts are neither
    copied nor visited, which :class:`torch.optim.swa_utils.AveragedModel` cannot leave out: the
    denoiser is a twentieth of the module that it is trained in.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self._live: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self._weights = len(self._live)
        # Running statistics of norm layers belong to the weights they were collected under.
        trained = {id(p) for p in self._live}
        self._live += [
            buffer
            for part in module.modules()
            if any(id(p) in trained for p in part.parameters(recurse=False))
            for buffer in part.buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        self.values = [value.detach().clone() for value in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [value.detach() for value in self._live], 1 - decay)
        self.updates += 1

    @property
    def statistics(self) -> list[Tensor]:
        """Running statistics: those of the module, and their averages."""
        return self._live[self._weights :] + self.values[self._weights :]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While this lasts the module holds the average; afterwards its own weights, to the last bit."""
        own = [value.detach().clone() for value in self._live]
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for live, value in zip(self._live, own, strict=True):
                    live.copy_(value)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average into the module."""
        for live, value in zip(self._live, self.values, strict=True):
            live.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"values": self.values, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        saved: list[Tensor] = state["values"]
        for value, from_file in zip(self.values, saved, strict=True):
            value.copy_(from_file)
        self.updates = state["updates"]
