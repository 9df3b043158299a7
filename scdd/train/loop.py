"""The one training loop: Fabric for devices and precision, EMA, clipping, cosine schedule, exact resume."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scdd.errors import InputError
from scdd.progress import progress_bar
from scdd.train.checkpoint import load_checkpoint, save_checkpoint
from scdd.train.ema import MovingAverage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lightning_fabric import Fabric

    Loss = Callable[[Any, torch.Generator], dict[str, Tensor]]


# Weights stay float32: under true bf16 the moving average's small steps would round to nothing.
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class TrainConfig:
    """How to train; ``steps`` counts mini-batches."""

    steps: int
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.05
    clip: float = 1.0
    ema: float = 0.999
    device: str = "auto"
    precision: str = "32-true"
    seed: int = 0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if self.precision not in _PRECISIONS:
            raise InputError(f"precision={self.precision!r}; choose one of {', '.join(_PRECISIONS)}")
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; it must be at least 1")


def make_fabric(config: TrainConfig) -> Fabric:
    """One process on one device; ``device`` is auto, cpu, cuda, mps or cuda:N."""
    from lightning_fabric import Fabric

    kind, _, number = config.device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps"):
        raise InputError(f"device={config.device!r}; choose auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("device='cuda' but PyTorch sees no CUDA device; pass device='cpu' or 'auto'")
    devices: Any = [int(number)] if number else 1
    return Fabric(accelerator=kind, devices=devices, precision=config.precision)  # type: ignore[arg-type]


def train(
    module: nn.Module,
    loss: str,
    batches: Any,
    config: TrainConfig,
    *,
    label: str = "training",
    prepare: Callable[[Any], Any] = lambda batch: batch,
    checkpoint: Path | None = None,
    identity: dict[str, Any] | None = None,
    progress: bool = True,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train ``module`` by its method ``loss(batch, generator) -> {name: Tensor}``, whose terms are summed.

    ``batches`` is iterated epoch after epoch (``set_epoch`` where it has one) and ``prepare`` turns each
    item into what the method takes. With ``checkpoint`` the run is saved every ``checkpoint_every`` steps
    and resumed from there to the same numbers; ``identity`` (JSON-able) says of what model and data it is,
    and a checkpoint of another identity is refused.

    Returns
    -------
    module, history
        The module with the moving average of its weights, in evaluation mode on the CPU, and one row of
        mean losses for every 50 steps.
    """
    fabric = make_fabric(config)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, config))
    wrapped, wrapped_optimiser = fabric.setup(module, optimiser)
    wrapped.mark_forward_method(loss)
    average = MovingAverage(module, config.ema)
    generator = torch.Generator().manual_seed(config.seed)
    state = {"module": module, "optimiser": optimiser, "schedule": schedule, "average": average}
    run = _Run(fabric, state, generator, {**asdict(config), **(identity or {})})
    step, history = run.resume(checkpoint, batches)
    window: list[dict[str, float]] = []
    module.train()
    with progress_bar(label, config.steps, enabled=progress) as advance:
        advance(step)
        for batch in _endless(batches, config.steps - step):
            terms = getattr(wrapped, loss)(fabric.to_device(prepare(batch)), generator)
            total = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(total):
                raise InputError(
                    f"{label} diverged at step {step}: the loss is {total.item()}; lower lr={config.lr}"
                )
            wrapped_optimiser.zero_grad(set_to_none=True)
            fabric.backward(total)
            fabric.clip_gradients(wrapped, wrapped_optimiser, max_norm=config.clip, error_if_nonfinite=False)
            wrapped_optimiser.step()
            schedule.step()
            average.update()
            step += 1
            window.append({name: value.item() for name, value in terms.items()})
            if step % 50 == 0 or step == config.steps:
                history.append({"step": step, **_mean(window)})
                window.clear()
            advance(1, f"loss {total.item():.3f}")
            if checkpoint is not None and (step % config.checkpoint_every == 0 or step == config.steps):
                run.save(checkpoint, step, history, batches)
    average.apply()
    module.zero_grad(set_to_none=True)
    return module.cpu().eval(), history


@dataclass
class _Run:
    """What a checkpoint holds of a run."""

    fabric: Fabric
    state: dict[str, Any]
    generator: torch.Generator
    config: dict[str, Any]

    def save(self, path: Path, step: int, history: list[dict[str, float]], batches: Any) -> None:
        parts = {name: part.state_dict() for name, part in self.state.items()}
        loader = batches.state_dict() if hasattr(batches, "state_dict") else None
        rest = {"step": step, "history": history, "generator": self.generator.get_state()}
        # Dropout draws from the global generators, of the CPU and of the device.
        on_gpu = self.fabric.device.type == "cuda"
        rest["torch"] = torch.get_rng_state()
        rest["cuda"] = torch.cuda.get_rng_state(self.fabric.device) if on_gpu else None
        save_checkpoint(path, {**parts, **rest, "loader": loader, "config": self.config})

    def resume(self, path: Path | None, batches: Any) -> tuple[int, list[dict[str, float]]]:
        saved = load_checkpoint(path, self.config) if path is not None else None
        if saved is None:
            return 0, []
        for name, part in self.state.items():
            part.load_state_dict(saved[name])
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["torch"])
        if saved["cuda"] is not None and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda"], self.fabric.device)
        if saved["loader"] is not None:
            batches.load_state_dict(saved["loader"])
        return saved["step"], saved["history"]


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


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
