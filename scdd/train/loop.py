"""The one training loop: Fabric for devices and precision, EMA, clipping, cosine schedule, exact resume."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scdd.errors import InputError
from scdd.progress import progress_bar
from scdd.train.checkpoint import load_checkpoint, save_checkpoint
from scdd.train.compilation import compiled
from scdd.train.config import TrainConfig, make_fabric
from scdd.train.divergence import Diverged, Guard, first_bad, what_to_do
from scdd.train.ema import MovingAverage
from scdd.train.interruption import Interrupted, noted_interrupts
from scdd.train.logs import Log
from scdd.train.meter import ROW_EVERY, Clock, Meter
from scdd.train.validation import Validation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = ["Diverged", "Interrupted", "TrainConfig", "train"]


def train(
    module: nn.Module,
    loss: str,
    batches: Any,
    config: TrainConfig,
    *,
    label: str = "training",
    prepare: Callable[[Any], Any] = lambda batch: batch,
    validation: Iterable[tuple[Any, int]] | None = None,
    checkpoint: Path | None = None,
    identity: dict[str, Any] | None = None,
    log: Path | None = None,
    progress: bool = True,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train ``module`` by its method ``loss(batch, generator) -> {name: Tensor}``, whose terms are summed.

    ``batches`` is iterated epoch after epoch (``set_epoch`` where it has one) and ``prepare`` turns each
    item into what the method takes. With ``checkpoint`` the run is saved every ``checkpoint_every`` steps,
    and on Ctrl-C, and resumed from there to the same numbers; ``identity`` (JSON-able) says of what model and
    data it is, and a checkpoint of another identity is refused.

    Parameters
    ----------
    validation
        Pairs of an item, as the method takes it, and its number of cells: what the moving average is judged
        on. The best moving average is kept, and ``config.patience`` may end training early.
    log
        A .csv file, or a folder for ``LABEL.csv`` and TensorBoard's events.

    Returns
    -------
    module, history
        The module with the moving average of its weights, in evaluation mode on the CPU, and one row for
        every 50 steps and every evaluation: ``step``, the mean of every term, ``loss`` (their sum),
        ``gradient_norm``, ``lr`` and, where it was measured, ``validation``.

    Raises
    ------
    Diverged
        A loss or gradient is not finite. The module then holds the last good moving average, and no bad
        state was saved.
    Interrupted
        Ctrl-C, after the checkpoint was written; without one, KeyboardInterrupt at once.
    """
    run = _Run(module, loss, batches, config, label, prepare, validation, checkpoint, identity or {})
    run.resume()
    try:
        with (
            Log(log, label, run.history) as rows,
            compiled(module, loss, enabled=config.compile),
            noted_interrupts(enabled=checkpoint is not None) as interrupted,
            progress_bar(label, config.steps, enabled=progress) as advance,
        ):
            run.go(rows, interrupted, advance)
    finally:
        run.finish()
    return module, run.history


class _Run:
    """A run under way: what a checkpoint holds, and what one step does."""

    def __init__(
        self,
        module: nn.Module,
        loss: str,
        batches: Any,
        config: TrainConfig,
        label: str,
        prepare: Callable[[Any], Any],
        validation: Iterable[tuple[Any, int]] | None,
        checkpoint: Path | None,
        identity: dict[str, Any],
    ):
        self.module, self.batches, self.config, self.label = module, batches, config, label
        self.prepare, self.checkpoint = prepare, checkpoint
        self.identity = {**asdict(config), "validated": validation is not None, **identity}
        self.fabric = make_fabric(config)
        trained = [p for p in module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            trained, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.wrapped, self.wrapped_optimiser = self.fabric.setup(module, self.optimiser)
        self.wrapped.mark_forward_method(loss)
        self.loss_name = loss
        self.average = MovingAverage(module, config.ema)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.scaled = config.precision == "16-mixed"
        self.guard = Guard(self.optimiser, self.average.statistics, scaled=self.scaled)
        self.meter, self.clock = Meter(), Clock(config.batch_size)
        self.step = self.steps_read = 0
        self.history: list[dict[str, float]] = []
        self.saved_step: int | None = None
        self.validation: Validation | None = None
        if validation is not None:
            self.validation = Validation(validation, self.loss, module, self.average, self.fabric, config)

    def loss(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms, in the precision that was asked for.

        On a single device Fabric calls a marked method directly, past the context of its precision.
        """
        with self.fabric.autocast():
            return getattr(self.wrapped, self.loss_name)(batch, generator)

    def go(self, log: Log, interrupted: Callable[[], bool], advance: Callable[..., None]) -> None:
        """Step after step, until all are done or patience is at its end."""
        self.module.train()
        advance(self.step, self._note())
        left = 0 if self._exhausted else self.config.steps - self.step
        self.clock.start()
        for batch in _endless(self.batches, left):
            self._one_step(batch)
            if self._row_due(self.step):
                self._close_row(log)
            due = self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps
            stop = interrupted()
            if self.checkpoint is not None and (due or stop or self._exhausted):
                self.save()
            advance(1, self._note())
            if stop:
                raise Interrupted(
                    f"{self.label} stopped after step {self.step} of {self.config.steps}, saved in "
                    f"{self.checkpoint}; run the same again to continue"
                )
            if self._exhausted:
                return

    def _one_step(self, batch: Any) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr * _rate(self.step, self.config)
        terms = self.loss(self.fabric.to_device(self.prepare(batch)), self.generator)
        total = torch.stack(list(terms.values())).sum()
        self.wrapped_optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(total)
        norm = self.fabric.clip_gradients(
            self.wrapped, self.wrapped_optimiser, max_norm=self.config.clip or math.inf,
            error_if_nonfinite=False,
        )  # fmt: skip
        assert norm is not None, "clipping by norm gives the norm"
        self.meter.add(terms, total, norm)
        self.guard.shield(total, norm)
        self.wrapped_optimiser.step()
        if reading := self._reading_due(self.step + 1):
            self._read()
        self.average.update()
        if reading:
            self.guard.remember()
        self.step += 1
        self.clock.tick()

    def _reading_due(self, step: int) -> bool:
        """On a CPU there is nothing to wait for; on a GPU losses are read when they are used."""
        saving = self.checkpoint is not None and step % self.config.checkpoint_every == 0
        return self.fabric.device.type == "cpu" or saving or self._row_due(step)

    def _row_due(self, step: int) -> bool:
        validating = self.validation is not None and self.validation.due(step)
        return step % ROW_EVERY == 0 or step == self.config.steps or validating

    def _read(self) -> None:
        rows = self.meter.read()
        bad = first_bad(rows, scaled=self.scaled)
        if bad is None:
            self.steps_read += len(rows)
            return
        self.guard.restore()
        found, step = self.meter.named(rows[bad]), self.steps_read + bad
        del self.meter.window[len(self.meter.window) - len(rows) + bad :]
        if self.checkpoint is not None and self.saved_step is None:
            self.save()
        raise Diverged(
            what_to_do(self.label, step, found, self.config, self.checkpoint, self.saved_step), step
        )

    def _close_row(self, log: Log) -> None:
        rate = self.clock.lap()
        row = {"step": self.step, **self.meter.close_window(), "lr": self.optimiser.param_groups[0]["lr"]}
        if self.validation is not None and self.validation.due(self.step):
            row["validation"] = self.validation.evaluate()
            self.validation.note(row["validation"], self.step)
        self.history.append(row)
        log.row(row, cells_per_second=rate)
        self.clock.start()

    def _note(self) -> str:
        loss = self.meter.loss if self.meter.window else (self.history[-1]["loss"] if self.history else None)
        judged = next((row["validation"] for row in reversed(self.history) if "validation" in row), None)
        said = [f"loss {loss:.3f}"] if loss is not None else []
        said += [f"validation {judged:.3f}"] if judged is not None else []
        said += [f"{self.clock.lap():,.0f} cells/s"] if self.step else []
        return ", ".join(said)

    @property
    def _exhausted(self) -> bool:
        return self.validation is not None and self.validation.exhausted

    def finish(self) -> None:
        """Leave the module with the moving average, the best one where that is known."""
        if self.validation is not None:
            self.validation.put_best()
        self.average.apply()
        self.module.zero_grad(set_to_none=True)
        self.module.cpu().eval()

    @property
    def _parts(self) -> dict[str, Any]:
        parts = {"module": self.module, "optimiser": self.optimiser, "average": self.average}
        return parts if self.validation is None else {**parts, "validation": self.validation}

    def save(self) -> None:
        """Write the checkpoint."""
        assert self.checkpoint is not None
        self._read()  # a bad state raises here
        on_gpu = self.fabric.device.type == "cuda"
        state = {
            **{name: part.state_dict() for name, part in self._parts.items()},
            "step": self.step,
            "history": self.history,
            "window": self.meter.window,
            "names": self.meter.names,
            "generator": self.generator.get_state(),
            # Dropout draws from the global generators, of the CPU and of the device.
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.fabric.device) if on_gpu else None,
            "loader": self.batches.state_dict() if hasattr(self.batches, "state_dict") else None,
            "config": self.identity,
        }
        save_checkpoint(self.checkpoint, state)
        self.saved_step = self.step
        self.clock.start()

    def resume(self) -> None:
        """Continue where the checkpoint is, if there is one."""
        saved = load_checkpoint(self.checkpoint, self.identity) if self.checkpoint is not None else None
        if saved is None:
            return
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["torch"])
        if saved["cuda"] is not None and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda"], self.fabric.device)
        if saved["loader"] is not None:
            self.batches.load_state_dict(saved["loader"])
        self.step = self.steps_read = self.saved_step = saved["step"]
        self.history, self.meter.window, self.meter.names = saved["history"], saved["window"], saved["names"]
        self.guard.remember()


def _rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to 1 %."""
    warm = max(1, int(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, config.steps - warm)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _endless(batches: Any, count: int) -> Iterator[Any]:
    """``count`` items, starting over as often as needed; the loader keeps its own epoch number."""
    while count > 0:
        before = count
        for batch in batches:
            yield batch
            count -= 1
            if count <= 0:
                return
        if count == before:
            raise InputError("there is no batch to train on: batch_size exceeds the number of cells")
