"""A regression small enough to train in milliseconds, with all that a run must restore."""

from __future__ import annotations

import torch
from torch import nn

from scdd.train.loop import TrainConfig, train


class Regression(nn.Module):
    """Noise in the loss, dropout and batch norm, so that generators and buffers must be restored as well."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.dropout, self.layer = nn.BatchNorm1d(4), nn.Dropout(dropout), nn.Linear(4, 1)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def loss(self, batch, generator):
        x, y = batch
        noise = 0.1 * torch.randn(y.shape, generator=generator)
        return {"square": (self.layer(self.dropout(self.norm(x))) - y + noise).square().mean()}


class Batches:
    """Ten batches an epoch, with the state of a loader."""

    def __init__(self, seed: int = 1, noise: float = 0.0):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(80, 4, generator=generator)
        y = x.sum(1, keepdim=True) + noise * torch.randn(80, 1, generator=generator)
        self.items = list(zip(x.split(8), y.split(8), strict=True))
        self.at = self.served = 0

    def __iter__(self):
        start, self.at = self.at % 10, self.at % 10
        for item in self.items[start:]:
            self.at += 1
            self.served += 1
            yield self.given(item)

    def given(self, item):
        return item

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class BadBatches(Batches):
    """The batch numbered ``bad`` holds NaN."""

    def __init__(self, bad: int):
        super().__init__()
        self.bad = bad

    def given(self, item):
        x, y = item
        return (x * float("nan"), y) if self.served - 1 == self.bad else item


def held_out(noise: float = 0.0):
    """Eighty other cells of the same rule, as the loop takes them."""
    return [(item, len(item[0])) for item in Batches(seed=2, noise=noise).items]


def run(steps: int, *, module=None, batches=None, settings=None, **options):
    """Train on the CPU; returns the module and its history."""
    defaults = {"batch_size": 8, "lr": 0.05, "device": "cpu", "checkpoint_every": 7}
    config = TrainConfig(steps=steps, **{**defaults, **(settings or {})})
    module, batches = module or Regression(), Batches() if batches is None else batches
    return train(module, "loss", batches, config, progress=False, **options)


def weights(module):
    """All floats of a module."""
    return torch.cat([v.reshape(-1).float() for v in module.state_dict().values()])
