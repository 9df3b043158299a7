"""Where the inverse dispersions of a count head start: what fits the training cells, given their classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from scdd.nn.count_likelihood import negative_binomial_losses

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas

_GRID = np.geomspace(0.1, 200.0, 12)
_CELLS = 4_096


def fit_dispersions(
    atlas: Atlas, columns: np.ndarray, label: np.ndarray, log_share: Tensor, *, seed: int = 0
) -> Tensor:
    """The likeliest ``log theta`` [G + 1] on a grid, for counts of mean ``total share[class]``.

    Of up to 4,096 cells; ``columns`` [G] are the genes' places in the atlas, ``log_share`` [C + 1, G + 1] as
    :meth:`scdd.models.class_profiles.ClassProfiles.log_share` has it. Moments would not do: one cell of a
    hundred counts makes a gene look dispersed that is Poisson in all others.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(atlas.n_obs)[:_CELLS])
    grid = torch.from_numpy(_GRID).float()
    losses = torch.zeros(len(grid), log_share.shape[1])
    for part in np.array_split(rows, max(1, len(rows) // 512)):
        block = atlas.read(part)
        totals = torch.from_numpy(np.asarray(block.sum(1), dtype=np.float32).ravel())
        counts = torch.from_numpy(block[:, columns].toarray().astype(np.float32))
        counts = torch.cat([counts, (totals - counts.sum(1)).clamp_min(0)[:, None]], 1)
        mu = torch.softmax(log_share[torch.from_numpy(label[part])], 1) * totals[:, None] + 1e-8
        for at, theta in enumerate(grid):
            losses[at] += negative_binomial_losses(counts, mu, theta.log().expand(counts.shape[1]))
    return grid[losses.argmin(0)].log()
