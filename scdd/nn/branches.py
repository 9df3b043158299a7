"""The two halves of a block: what mixes tokens, and what works on each token alone.

A mixer and a token map take normalised and modulated tokens [B, N, D]. A mixer returns its branch [B, N, D];
a token map returns the new residual stream.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scdd.kernels import (
    ista_step,
    multihead_subspace_attention,
    overcomplete_ista_step,
    token_statistics_attention,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    # Told of tensors inside a block by name; what `interpret` listens to.
    Observe = Callable[[str, Tensor], None]


class TokenMap(Protocol):
    """``residual + gate * f(y)``, or for a residual-free map ``f(y)``."""

    def __call__(self, y: Tensor, residual: Tensor, gate: Tensor, observe: Observe | None) -> Tensor:
        """The new stream [B, N, D]."""


class SelfAttention(nn.Module):
    """Multi-head softmax attention with biases, through PyTorch's fused attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        for layer in (self.qkv, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, y: Tensor, observe: Observe | None = None) -> Tensor:  # noqa: D102
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SubspaceAttention(nn.Module):
    """CRATE's compression step, ``MSSA(y | U)``: each head attends within its own subspace.

    ``tied=True`` recombines by ``beta U``, as the derivation has it, with one learned ``beta > 0``; else by
    a linear map of its own, as the published code.
    """

    def __init__(self, width: int, heads: int, *, tied: bool = False):
        super().__init__()
        self.heads = heads
        self.subspaces = nn.Linear(width, width, bias=False)
        if tied:
            # U starts orthonormal, as the derivation needs it; beta, of which it has the sign, at 1
            nn.init.orthogonal_(self.subspaces.weight)
            self.log_beta = nn.Parameter(torch.zeros(()))
        else:
            nn.init.xavier_uniform_(self.subspaces.weight)
            self.out = nn.Linear(width, width)
            nn.init.xavier_uniform_(self.out.weight)
            nn.init.zeros_(self.out.bias)
        self.tied = tied

    def project(self, y: Tensor) -> Tensor:
        """``U_k^T y`` of every head, [B, N, H, P]."""
        return self.subspaces(y).unflatten(-1, (self.heads, -1))

    def recombine(self, heads: Tensor) -> Tensor:
        """[B, N, H, P] -> [B, N, D]."""
        if self.tied:
            beta = self.log_beta.exp().to(heads.dtype)
            return beta * F.linear(heads.flatten(2), self.subspaces.weight.mT)
        return self.out(heads.flatten(2))

    def deviation(self) -> Tensor:
        """``|U^T U - I|_F^2 / D``, a scalar: 0 where the bases of all heads are orthonormal."""
        gram = self.subspaces.weight @ self.subspaces.weight.mT
        return (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum() / len(gram)

    def forward(self, y: Tensor, observe: Observe | None = None) -> Tensor:  # noqa: D102
        w = self.project(y)
        if observe is not None:
            observe("projected", w)
        return self.recombine(multihead_subspace_attention(w))


class TokenStatistics(SubspaceAttention):
    """ToST's mixer (Wu et al. 2024): linear in the tokens, no attention map."""

    def __init__(self, width: int, heads: int, *, tied: bool = False):
        super().__init__(width, heads, tied=tied)
        self.temperature = nn.Parameter(torch.ones(heads))

    def forward(self, y: Tensor, observe: Observe | None = None) -> Tensor:  # noqa: D102
        w = self.project(y)
        if observe is not None:
            observe("projected", w)
        return self.recombine(token_statistics_attention(w, self.temperature))


class Perceptron(nn.Module):
    """``residual + gate * MLP(y)``, four times as wide inside, GELU."""

    def __init__(self, width: int, *, ratio: int = 4):
        super().__init__()
        self.enter, self.out = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)
        for layer in (self.enter, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, y: Tensor, residual: Tensor, gate: Tensor, observe: Observe | None = None) -> Tensor:  # noqa: D102
        branch = self.out(F.gelu(self.enter(y), approximate="tanh"))
        return torch.addcmul(residual, gate[:, None].to(branch.dtype), branch)


class SparseCoding(nn.Module):
    """CRATE's sparsification: one proximal step of ISTA over a square dictionary ``D``.

    ``h = relu(y + eta D^T (y - D y) - eta lambda)``. As published for diffusion the step is gated and added
    to the stream; with ``residual=False`` it replaces the stream, as in CRATE. ``learned=True`` learns the
    threshold of every column (softplus, from the published 0.1).
    """

    operator: Tensor | None

    def __init__(
        self, width: int, *, step_size: float = 0.1, threshold: float = 0.1, learned: bool = False,
        residual: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.step_size, self.residual = step_size, residual
        self.dictionary = nn.Parameter(torch.empty(width, width))
        nn.init.kaiming_uniform_(self.dictionary)
        self.level = _level(threshold, width if learned else None)
        # set in the copy that `prepared_for_sampling` makes, where weights stand still
        self.register_buffer("operator", None, persistent=False)

    def threshold(self) -> Tensor:
        """``lambda``, the price of a nonzero: a scalar, or one for each column [D]."""
        return F.softplus(self.level)

    def code(self, y: Tensor) -> Tensor:
        """The sparse code ``h`` [B, N, D] of tokens."""
        return ista_step(y, self.dictionary.to(y.dtype), step_size=self.step_size, threshold=self.threshold())

    def forward(self, y: Tensor, residual: Tensor, gate: Tensor, observe: Observe | None = None) -> Tensor:  # noqa: D102
        ready = self.operator
        step = partial(
            ista_step,
            y,
            self.dictionary.to(y.dtype) if ready is None else None,
            operator=None if ready is None else ready.to(y.dtype),
            step_size=self.step_size,
            threshold=self.threshold(),
        )
        if observe is not None:
            observe("sparse_input", y)
            observe("sparse", self.code(y))
        return step(residual=residual, gate=gate) if self.residual else step()


class OvercompleteSparseCoding(nn.Module):
    """CRATE-alpha's sparsification (Yang et al. 2024): two steps over ``ratio`` times as many atoms."""

    def __init__(
        self, width: int, *, ratio: int = 4, step_size: float = 0.1, threshold: float = 0.1,
        learned: bool = False, residual: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.step_size, self.residual = step_size, residual
        self.dictionary, self.readout = (nn.Parameter(torch.empty(width, ratio * width)) for _ in range(2))
        for atoms in (self.dictionary, self.readout):
            nn.init.kaiming_uniform_(atoms)
        self.level = _level(threshold, ratio * width if learned else None)

    def threshold(self) -> Tensor:
        """``lambda``, the price of a nonzero: a scalar, or one for each atom [ratio D]."""
        return F.softplus(self.level)

    def code(self, y: Tensor) -> Tensor:
        """The sparse code [B, N, ratio D] of tokens: two steps from zero, not read out.

        The operator keeps the code to itself; this says it again, for those who measure.
        """
        atoms, price = self.dictionary.to(y.dtype), self.step_size * self.threshold().to(y.dtype)
        first = F.relu(self.step_size * y @ atoms - price)
        missed = y - first @ atoms.mT
        return F.relu(first + self.step_size * missed @ atoms - price)

    def forward(self, y: Tensor, residual: Tensor, gate: Tensor, observe: Observe | None = None) -> Tensor:  # noqa: D102
        step = partial(
            overcomplete_ista_step, y, self.dictionary.to(y.dtype), self.readout.to(y.dtype),
            step_size=self.step_size, threshold=self.threshold(),
        )  # fmt: skip
        if observe is not None:
            observe("sparse_input", y)
            observe("sparse", self.code(y))
        return step(residual=residual, gate=gate) if self.residual else step()


def _level(threshold: float, columns: int | None) -> nn.Parameter:
    """The number whose softplus is ``threshold``: trained where there is one a column, else fixed."""
    raw = torch.tensor(math.log(math.expm1(threshold)))
    if columns is None:
        return nn.Parameter(raw, requires_grad=False)
    return nn.Parameter(raw.repeat(columns))
