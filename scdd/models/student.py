"""The last stage of a distilled SCDG: the student is regressed on pairs that its teacher makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from scdd.models.scdg_net import TeacherBatch
from scdd.train.loop import TrainConfig, train

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from scdd.models.config import SCDGConfig
    from scdd.models.scdg_net import SCDGNet

_BLOCK = 4_096


def train_student(
    net: SCDGNet,
    fields: Tensor,
    config: SCDGConfig,
    *,
    checkpoint: Path | None,
    identity: dict[str, Any],
    log: Path | None = None,
    progress: bool,
) -> tuple[SCDGNet, list[dict[str, float]]]:
    """The network with a trained student, and its history; ``fields`` [n, F] are the cells' conditions.

    The pairs are a function of teacher and seed, so that a resumed run makes them again, the same.
    """
    net.start_student()
    pairs = TeacherPairs.of(net, fields, config)
    settings = TrainConfig(
        steps=config.student_steps, batch_size=pairs.batch_size, lr=config.lr, ema=min(config.ema, 0.99),
        device=config.device, precision=config.precision, seed=config.seed,
    )  # fmt: skip
    module, history = train(
        net, "student_loss", pairs, settings,
        label="student", checkpoint=checkpoint, identity=identity, log=log, progress=progress,
    )  # fmt: skip
    return module, history  # type: ignore[return-value]


class TeacherPairs:
    """Pairs (noise, clean latent) with conditions, in batches of an order that depends on seed and epoch.

    Half of the pairs follow the training composition and half are spread evenly over the classes, so that
    the student sees rare ones; of both, the share ``condition_dropout`` has no condition.
    """

    def __init__(self, noise: Tensor, clean: Tensor, codes: Tensor, *, batch_size: int, seed: int):
        self.noise, self.clean, self.codes = noise, clean, codes
        self.batch_size, self.seed = min(batch_size, len(noise)), seed
        self.epoch, self.batch = 0, 0

    @classmethod
    def of(cls, net: SCDGNet, fields: Tensor, config: SCDGConfig) -> TeacherPairs:
        """Ask the teacher in ``net``, in large batches."""
        stream = torch.Generator().manual_seed(config.seed + 2)
        codes = _draw_conditions(fields, config.student_pairs, config.condition_dropout, stream)
        noise = torch.randn(len(codes), net.denoiser.enter.in_features, generator=stream)
        clean = [
            net.teach(z, c, steps=config.teacher_steps, guidance=config.guidance)
            for z, c in zip(noise.split(_BLOCK), codes.split(_BLOCK), strict=True)
        ]
        return cls(noise, torch.cat(clean), codes, batch_size=config.batch_size, seed=config.seed)

    def __iter__(self) -> Iterator[TeacherBatch]:
        """The rest of this epoch; the next call begins the next."""
        stream = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = torch.randperm(len(self.noise), generator=stream)
        for rows in order.split(self.batch_size)[self.batch : len(order) // self.batch_size]:
            self.batch += 1
            yield TeacherBatch(self.noise[rows], self.clean[rows], self.codes[rows])
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """For a checkpoint: where in the order the next batch is."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """From a checkpoint."""
        self.epoch, self.batch = state["epoch"], state["batch"]


def _draw_conditions(fields: Tensor, n: int, dropout: float, stream: torch.Generator) -> Tensor:
    """Conditions [n, F] of training cells, half of them from classes drawn evenly."""
    sizes = torch.bincount(fields[:, 0]).double()
    chance = 1 / sizes[fields[:, 0]]
    even = torch.multinomial(chance, n // 2, replacement=True, generator=stream)
    rows = torch.cat([even, torch.randint(len(fields), (n - n // 2,), generator=stream)])
    keep = torch.rand(n, 1, generator=stream) >= dropout
    return torch.where(keep, fields[rows], -1)
