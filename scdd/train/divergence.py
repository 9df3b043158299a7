"""Losses and gradients that are no numbers: the step is skipped, the state before it kept, training ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from scdd.train.config import TrainConfig


class Diverged(InputError):
    """Training met a loss or gradient that is not finite; the module holds the last good moving average."""

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class Guard:
    """Keeps what is not finite out of the weights, without waiting for the device.

    The fused optimiser takes a flag beside the gradients, meant for loss scaling: where it is raised, neither
    weights nor moments move. Running statistics of norm layers move in the forward pass, before anything is
    known of the loss; they are remembered while all is well, and put back.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, statistics: Sequence[Tensor], *, scaled: bool):
        self._optimiser, self._statistics = optimiser, list(statistics)
        self._scaled = scaled  # under float16 the loss scaler raises the flag itself
        self.remember()

    def shield(self, total: Tensor, norm: Tensor) -> None:
        """Let the next step of the optimiser pass over what is not finite."""
        if not self._scaled:
            fine = torch.isfinite(total.detach()) & torch.isfinite(norm)
            self._optimiser.found_inf = (~fine).float()  # type: ignore[attr-defined]

    @torch.no_grad()
    def remember(self) -> None:
        """All is well so far."""
        self._good = [value.clone() for value in self._statistics]

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what was remembered."""
        for value, good in zip(self._statistics, self._good, strict=True):
            value.copy_(good)


def first_bad(rows: Sequence[Sequence[float]], *, scaled: bool) -> int | None:
    """Index of the first row, of losses and then the gradient's norm, that is not finite.

    Under float16 an infinite gradient is how the loss scale is found, no fault.
    """
    for index, row in enumerate(rows):
        if not all(map(math.isfinite, row[:-1] if scaled else row)):
            return index
    return None


def what_to_do(
    label: str,
    step: int,
    found: dict[str, float],
    config: TrainConfig,
    checkpoint: Path | None,
    saved_step: int | None,
) -> str:
    """At which step, what was not finite, what to lower, and where to go on from."""
    bad = ", ".join(f"{name} is {value}" for name, value in found.items() if not math.isfinite(value))
    said = f"{label} diverged at step {step}: {bad}; lower lr={config.lr:g} (try {_rounded(config.lr / 3)})"
    if config.precision != "32-true":
        said += f", or pass precision='32-true' in place of {config.precision!r}"
    if checkpoint is None:
        return said + ". With checkpoint= (--checkpoints) it could go on from the last good state"
    return said + (
        f". The last good checkpoint, of step {saved_step}, is {checkpoint}: the same run with another lr "
        "or precision continues from it"
    )


def _rounded(value: float) -> str:
    return f"{value:.1g}"
