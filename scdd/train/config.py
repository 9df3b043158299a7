"""How to train, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from scdd.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Weights stay float32: under true bf16 the moving average's small steps would round to nothing.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class TrainConfig:
    """How to train; ``steps`` counts mini-batches.

    Where validation cells are given, the moving average is judged on them every ``validate_every`` steps, the
    best one is kept, and after ``patience`` evaluations that do not better it by ``min_delta`` training ends
    early (0: never). ``clip`` is the largest norm of the gradient, 0: any. ``compile`` passes the loss
    through :func:`torch.compile`.
    """

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
    validate_every: int = 250
    patience: int = 0
    min_delta: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision={self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        for name in ("steps", "batch_size", "checkpoint_every", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; it must be at least 1")
        for name in ("patience", "min_delta", "clip", "weight_decay"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)}; it must not be negative")
        if not self.lr > 0:
            raise InputError(f"lr={self.lr}; it must be above 0")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema={self.ema}; it lies in [0, 1)")


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
