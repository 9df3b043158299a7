"""The published diffusion transformers in plain PyTorch: the baseline.

scRDiT's DiT and the White-Box Diffusion Transformer share all but two branches: tokens of ten adjacent genes,
a sinusoidal time embedding, adaLN-Zero blocks, a modulated final projection. Written from the mathematics,
as it is published or, with `collapsed`, in the algebra that `scdd.kernels` uses: attention without a map in
memory, and one matrix product for a step of ISTA.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Those of the publications; `patch` must divide `genes`."""

    genes: int = 2000
    patch: int = 10
    width: int = 768
    heads: int = 8
    depth: int = 3
    step_size: float = 0.1
    threshold: float = 0.1
    hidden: int = 4
    collapsed: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of a cell."""
        return self.genes // self.patch


def positions(tokens: int, width: int) -> Tensor:
    """Sines and cosines of the position, [tokens, width]."""
    rate = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
    angle = torch.arange(tokens)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """Sinusoids of the time through two layers: [B] -> [B, width]."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        rate = torch.exp(-math.log(10_000) * torch.arange(frequencies // 2) / (frequencies // 2))
        self.register_buffer("rate", rate)
        self.layers = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times 0 to 1000."""
        angle = t[:, None] * self.rate
        return self.layers(torch.cat([angle.cos(), angle.sin()], dim=1).to(self.layers[0].weight.dtype))


def attend(q: Tensor, k: Tensor, v: Tensor, *, collapsed: bool) -> Tensor:
    """Softmax attention [B, H, N, P], its map in memory as published, or not."""
    if collapsed:
        return F.scaled_dot_product_attention(q, k, v)
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v


class SelfAttention(nn.Module):
    """Softmax attention."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.collapsed = sizes.heads, sizes.collapsed
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.out = nn.Linear(sizes.width, sizes.width)

    def forward(self, y: Tensor) -> Tensor:
        """[B, N, d] -> [B, N, d]."""
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v, collapsed=self.collapsed).transpose(1, 2).flatten(2))


class SubspaceAttention(nn.Module):
    """One projection is query, key and value (CRATE's MSSA)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.collapsed = sizes.heads, sizes.collapsed
        self.project = nn.Linear(sizes.width, sizes.width, bias=False)
        self.out = nn.Linear(sizes.width, sizes.width)

    def forward(self, y: Tensor) -> Tensor:
        """[B, N, d] -> [B, N, d]."""
        w = self.project(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.out(attend(w, w, w, collapsed=self.collapsed).transpose(1, 2).flatten(2))


class Ista(nn.Module):
    """One step of sparse coding over a square dictionary, in three matrix products or in one."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.dictionary = nn.Parameter(torch.empty(sizes.width, sizes.width))
        nn.init.kaiming_uniform_(self.dictionary)
        self.step_size, self.threshold = sizes.step_size, sizes.threshold
        self.collapsed = sizes.collapsed

    def forward(self, y: Tensor) -> Tensor:
        """``ReLU(y + eta D^T (y - D y) - eta lambda)``."""
        if self.collapsed:
            transposed = self.dictionary.mT
            operator = self.step_size * (transposed - transposed @ self.dictionary)
            return F.relu(y + F.linear(y, operator) - self.step_size * self.threshold)
        error = y - F.linear(y, self.dictionary)
        descent = F.linear(error, self.dictionary.mT)
        return F.relu(y + self.step_size * descent - self.step_size * self.threshold)


class Block(nn.Module):
    """Two branches, each behind a modulated layer norm and a gate."""

    def __init__(self, sizes: Sizes, *, white_box: bool) -> None:
        super().__init__()
        wide = sizes.hidden * sizes.width
        self.attention = SubspaceAttention(sizes) if white_box else SelfAttention(sizes)
        self.second = Ista(sizes) if white_box else nn.Sequential(
            nn.Linear(sizes.width, wide), nn.GELU(approximate="tanh"), nn.Linear(wide, sizes.width)
        )  # fmt: skip
        self.modulation = nn.Linear(sizes.width, 6 * sizes.width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """[B, N, d] under [B, d]."""
        rows = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        shift, scale, gate = rows[:3]
        h = h + gate * self.attention(norm(h) * (1 + scale) + shift)
        shift, scale, gate = rows[3:]
        return h + gate * self.second(norm(h) * (1 + scale) + shift)


def norm(h: Tensor) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(h, h.shape[-1:], eps=1e-6)


class Transformer(nn.Module):
    """Noise of a noised cell: ``(x_t [B, G], t [B]) -> [B, G]``."""

    def __init__(self, sizes: Sizes, *, white_box: bool) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed = nn.Linear(sizes.patch, sizes.width)
        self.register_buffer("positions", positions(sizes.tokens, sizes.width))
        self.time = TimeEmbedding(sizes.width)
        self.blocks = nn.ModuleList(Block(sizes, white_box=white_box) for _ in range(sizes.depth))
        self.modulation = nn.Linear(sizes.width, 2 * sizes.width)
        self.leave = nn.Linear(sizes.width, sizes.patch)
        # the publications start these at zero; then nothing but the last layer would have a gradient to compare
        for layer in (self.modulation, self.leave, *(block.modulation for block in self.blocks)):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predict the noise."""
        h = self.embed(x_t.unflatten(-1, (-1, self.sizes.patch))) + self.positions.to(x_t.dtype)
        condition = self.time(t)
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
        return self.leave(norm(h) * (1 + scale) + shift).flatten(1)


def loss(model: Transformer, x0: Tensor, signal: Tensor, noise: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error of the predicted noise, of ``x_t = signal x0 + noise eps``."""
    predicted = model(signal[:, None] * x0 + noise[:, None] * eps, t)
    wide = torch.promote_types(predicted.dtype, torch.float32)
    return F.mse_loss(predicted.to(wide), eps.to(wide))


def alpha_bar() -> Tensor:
    """What is left of the signal at t = 0 to 999, by the linear schedule."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float()


@torch.no_grad()
def sample(
    model: Transformer,
    noise: Tensor,
    generator: torch.Generator,
    *,
    calls: int = 100,
    stop: int | None = None,
) -> Tensor:
    """Cells [B, G] by the published accelerated sampler: every tenth time, eta = 1, from t = 990 down to 1.

    With ``stop`` it ends after so many calls: all cost the same, so that a share of them can be timed.
    """
    every = 1000 // calls
    times = [*range(1000 - every, 0, -every), 1, 0]
    table, x = alpha_bar(), noise
    for now, after in list(pairwise(times))[:stop]:
        signal, later = table[now], table[after]
        eps = model(x, torch.full((len(x),), float(now)))
        x0 = (x - (1 - signal).sqrt() * eps) / signal.sqrt()
        sigma = ((1 - later) / (1 - signal)).sqrt() * (1 - signal / later).sqrt()
        fresh = torch.randn(x.shape, generator=generator)
        x = later.sqrt() * x0 + (1 - later - sigma.square()).clamp_min(0).sqrt() * eps + sigma * fresh
    return x
