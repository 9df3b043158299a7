"""The published transformer, trained for a while on real cells: what samplers are compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

import scdd
from scdd.data.preprocess import Preprocessor

from . import published

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from .published import Sizes, Transformer

_BATCH = 32


class Cells(NamedTuple):
    """Expression [n, G] of training and of held-out cells, log1p CP10k over one standard deviation of all."""

    train: Tensor
    test: Tensor


def cells(path: Path, genes: int, *, seed: int = 0) -> Cells:
    """Half of the cells to learn from, half to compare with."""
    atlas = scdd.Atlas(path)
    order = np.random.default_rng(seed).permutation(atlas.n_obs)
    halves = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    scale = Preprocessor.fit(atlas, n_top_genes=genes)
    train, test = (torch.from_numpy(scale.transform(atlas, rows)) for rows in halves)
    return Cells(train / train.std(), test / train.std())


def learn(model: Transformer, x: Tensor, *, steps: int, lr: float = 1e-3, seed: int = 0) -> float:
    """Train as published (noise predicted, squared error, AdamW), cosine rate; the loss of the last tenth."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    table, losses = published.alpha_bar(), []
    for _ in range(steps):
        x0 = x[torch.randint(len(x), (_BATCH,), generator=generator)]
        t = torch.randint(1, 1000, (_BATCH,), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        value = published.loss(model, x0, table[t].sqrt(), (1 - table[t]).sqrt(), t.float(), eps)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        rate.step()
        losses.append(value.item())
    return float(np.mean(losses[-max(1, steps // 10) :]))


def small(sizes: Sizes, *, seed: int = 0) -> Transformer:
    """A white-box transformer of these sizes, its gates and last layer closed as published."""
    torch.manual_seed(seed)
    model = published.Transformer(sizes, white_box=True)
    for layer in (model.modulation, model.leave, *(block.modulation for block in model.blocks)):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model
