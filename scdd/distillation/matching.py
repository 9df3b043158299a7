"""Matching objectives: how far synthetic cells are from real ones in the eyes of a fresh random network."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Batches = Sequence[Tensor]  # one [n_k, G] tensor for each class


class MatchingNetwork(nn.Module):
    """A fresh random MLP psi: scaled expression [n, G] -> features [n, width] -> logits [n, C].

    ``depth`` counts hidden ReLU layers. With 0 the features are the scaled genes themselves: what random
    linear maps would see on average, without their noise.
    """

    def __init__(
        self, mean: Tensor, std: Tensor, classes: int, *, width: int, depth: int, generator: torch.Generator
    ):
        super().__init__()
        self.mean, self.std = mean, std
        sizes = [len(mean), *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.leave = nn.Linear(sizes[-1], classes)
        for layer in (*self.layers, self.leave):
            bound = (3 / layer.in_features) ** 0.5
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=generator).mul_(2**0.5)
                layer.bias.zero_()

    def features(self, x: Tensor) -> Tensor:
        """Penultimate activations [n, width]."""
        h = ((x - self.mean) / self.std).clamp(-10, 10)
        for layer in self.layers:
            h = F.relu(layer(h))
        return h

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.leave(self.features(x))


def distribution_matching(network: MatchingNetwork, real: Batches, synthetic: Batches) -> Tensor:
    """``sum_c |mean psi(T_c) - mean psi(S_c)|^2`` over features (DM; Zhao & Bilen, WACV 2023)."""
    with torch.no_grad():
        wanted = torch.stack([network.features(x).mean(0) for x in real])
    sizes = [len(x) for x in synthetic]
    features = network.features(torch.cat(list(synthetic))).split(sizes)
    return (torch.stack([f.mean(0) for f in features]) - wanted).square().sum(1).sum()


def gradient_matching(network: MatchingNetwork, real: Batches, synthetic: Batches) -> Tensor:
    """``sum_c sum_layers sum_rows (1 - cos(grad l(T_c), grad l(S_c)))`` (DC; Zhao et al., ICLR 2021).

    Gradients of the cross-entropy with respect to the weight matrices; vectors (biases) count nothing.
    """
    weights = [p for p in network.parameters() if p.ndim > 1]
    total = torch.zeros(())
    for label, (x, s) in enumerate(zip(real, synthetic, strict=True)):
        wanted = torch.autograd.grad(_entropy(network, x, label), weights)
        got = torch.autograd.grad(_entropy(network, s, label), weights, create_graph=True)
        total = total + sum(_row_distance(g, w) for g, w in zip(got, wanted, strict=True))
    return total


def _entropy(network: MatchingNetwork, x: Tensor, label: int) -> Tensor:
    return F.cross_entropy(network(x), torch.full((len(x),), label, dtype=torch.long))


def _row_distance(got: Tensor, wanted: Tensor) -> Tensor:
    dot, lengths = (got * wanted).sum(1), got.norm(dim=1) * wanted.norm(dim=1)
    # A unit that is dead for both has equal gradients, zero, whose cosine is undefined.
    dead = (got.detach() == 0).all(1) & (wanted == 0).all(1)
    return (1 - dot / (lengths + 1e-6))[~dead].sum()


def both(network: MatchingNetwork, real: Batches, synthetic: Batches) -> Tensor:
    """The sum of the two, gradient matching scaled by the number of rows it sums over."""
    rows = sum(p.shape[0] for p in network.parameters() if p.ndim > 1)
    return (
        distribution_matching(network, real, synthetic) + gradient_matching(network, real, synthetic) / rows
    )


OBJECTIVES: dict[str, Callable[[MatchingNetwork, Batches, Batches], Tensor]] = {
    "dm": distribution_matching,
    "dc": gradient_matching,
    "dc+dm": both,
}
