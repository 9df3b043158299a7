"""The loss on cells that are never trained on, and when to stop because of it."""

from __future__ import annotations

import math
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lightning_fabric import Fabric
    from torch import nn

    from scdd.train.config import TrainConfig
    from scdd.train.ema import MovingAverage

# A few cells judge better when each is met at several times and noises: passes until so many were met.
_CELLS = 512


class Validation:
    """Loss of the moving average on the same cells, times and noises at each evaluation, and the best so far.

    Parameters
    ----------
    batches
        Iterated anew at each evaluation; gives ``(item, n_cells)``, the item as the loss takes it.
    loss
        ``loss(item, generator) -> {name: Tensor}``.
    """

    def __init__(
        self,
        batches: Iterable[tuple[Any, int]],
        loss: Callable[..., dict[str, Any]],
        module: nn.Module,
        average: MovingAverage,
        fabric: Fabric,
        config: TrainConfig,
    ):
        self._batches, self._loss, self._module = batches, loss, module
        self._average, self._fabric, self._config = average, fabric, config
        self.best_loss, self.best_step, self.without_gain = math.inf, 0, 0
        self._best: list[torch.Tensor] = []

    def due(self, step: int) -> bool:
        """Whether to evaluate after so many steps."""
        return step % self._config.validate_every == 0 or step == self._config.steps

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        return 0 < self._config.patience <= self.without_gain

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss a cell; nothing of the training's state moves, its random numbers among it."""
        total, cells = 0.0, 0
        with self._average.applied(), _evaluating(self._module), self._as_always():
            generator = torch.Generator().manual_seed(self._config.seed)
            while cells < _CELLS:
                before = cells
                for item, n in self._batches:
                    terms = self._loss(self._fabric.to_device(item), generator)
                    total += n * float(torch.stack([term.float() for term in terms.values()]).sum())
                    cells += n
                if cells == before:
                    break
        return total / max(cells, 1)

    @contextmanager
    def _as_always(self) -> Iterator[None]:
        """Seeded random numbers, and no compilation for batches of other sizes."""
        device = self._fabric.device
        eager = torch.compiler.set_stance("force_eager") if self._config.compile else nullcontext()
        with torch.random.fork_rng([device] if device.type == "cuda" else []), eager:
            torch.manual_seed(self._config.seed)
            yield

    def note(self, loss: float, step: int) -> None:
        """Keep the moving average if it is the best; else patience wears out."""
        if loss < self.best_loss - self._config.min_delta:
            self.best_loss, self.best_step, self.without_gain = loss, step, 0
            self._best = [value.clone() for value in self._average.values]
        else:
            self.without_gain += 1

    def put_best(self) -> None:
        """Make the best moving average the moving average."""
        for value, best in zip(self._average.values, self._best, strict=False):
            value.copy_(best)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        counters = {"best_loss": self.best_loss, "best_step": self.best_step}
        return {**counters, "without_gain": self.without_gain, "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]
        self.without_gain = state["without_gain"]
        self._best = [value.to(self._fabric.device) for value in state["best"]]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    module.eval()
    try:
        yield
    finally:
        module.train()
