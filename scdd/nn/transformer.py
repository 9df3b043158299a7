"""The diffusion transformer over genes, its blocks black or white, on the fused operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scdd.kernels import denoise_loss, gated_residual_modulate, modulate
from scdd.nn.branches import (
    OvercompleteSparseCoding,
    Perceptron,
    SelfAttention,
    SparseCoding,
    SubspaceAttention,
    TokenStatistics,
)
from scdd.nn.count_head import CountHead
from scdd.nn.embeddings import ConditionEmbedding, TimeEmbedding
from scdd.nn.gene_tokens import GeneTokens, PatchReadout
from scdd.nn.modulation import Modulation, ModulationKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scdd.nn.linear_start import Centred, LinearStart

    # Told of the tensors of every block: number of the block, name, tensor.
    Observe = Callable[[int, str, Tensor], None]

# Where gates are kept positive they start at softplus(-1) = 0.31: from nearly closed ones training is slow.
_START = -1.0


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """What :class:`DiffusionTransformerNet` is built of.

    ``mixer`` is attention, subspace or statistics; ``token_map`` is mlp, ista or overcomplete. ``tied``,
    ``residual``, ``learned_threshold`` and ``positive_gates`` are the choices that bring a white-box block
    nearer to its derivation. ``positive_gates`` is for both branches, or for that of the mixer alone
    (``"attention"``), which is where a negative gate turns compression round. ``hurdle`` adds logits of
    zeros. ``counts`` adds a distribution of counts (:class:`scdd.nn.count_head.CountHead`) with a code of
    ``count_code`` numbers at the price ``count_kl``, gives every patch weights of its own, and starts from
    the linear denoiser of ``linear_rank`` directions (:class:`scdd.nn.linear_start.LinearStart`).
    """

    patch: int = 10
    width: int = 768
    heads: int = 8
    depth: int = 3
    mixer: str = "attention"
    token_map: str = "mlp"
    modulation: ModulationKind = "full"
    rank: int = 64
    tied: bool = False
    residual: bool = True
    learned_threshold: bool = False
    positive_gates: bool | Literal["attention"] = False
    learned_positions: bool = True
    hurdle: bool = False
    counts: bool = False
    count_code: int = 16
    count_kl: float = 0.3
    linear_rank: int = 32


class Clean(NamedTuple):
    """What a network says of noised cells: its prediction [B, G], and logits that a gene is zero [B, G]."""

    prediction: Tensor
    zero_logit: Tensor | None


class Block(nn.Module):
    """A mixer of tokens and a map of single tokens."""

    def __init__(self, shape: TransformerShape):
        super().__init__()
        width, heads = shape.width, shape.heads
        mixers: dict[str, Callable[[], nn.Module]] = {
            "attention": lambda: SelfAttention(width, heads),
            "subspace": lambda: SubspaceAttention(width, heads, tied=shape.tied),
            "statistics": lambda: TokenStatistics(width, heads, tied=shape.tied),
        }
        sparse = {"learned": shape.learned_threshold, "residual": shape.residual}
        maps: dict[str, Callable[[], nn.Module]] = {
            "mlp": lambda: Perceptron(width),
            "ista": lambda: SparseCoding(width, **sparse),
            "overcomplete": lambda: OvercompleteSparseCoding(width, **sparse),
        }
        self.mixer: Callable[..., Tensor] = _choose("mixer", shape.mixer, mixers)
        self.token_map: Callable[..., Tensor] = _choose("token_map", shape.token_map, maps)


def _choose(name: str, value: str, known: dict[str, Callable[[], nn.Module]]) -> nn.Module:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known)}")
    return known[value]()


class DiffusionTransformerNet(nn.Module):
    """``f(x_t [B, G], t [B], codes [B, F], numbers [B, K])``: the noise (or v, or x0) of noised cells.

    Tokens of ``patch`` genes pass ``depth`` adaLN-Zero blocks (Peebles & Xie 2023; scRDiT; White-Box DiT).
    Codes of -1 and numbers of NaN stand for a condition that is not given.
    """

    def __init__(
        self, genes: int, shape: TransformerShape, *, conditions: Sequence[int] = (), numbers: int = 0,
        start: LinearStart | None = None,
    ):  # fmt: skip
        super().__init__()
        if shape.counts != (start is not None):
            raise ValueError("counts=True and start= go together; give both or neither")
        if shape.positive_gates not in (True, False, "attention"):
            raise ValueError(f"positive_gates is {shape.positive_gates!r}; choose True, False or 'attention'")
        self.shape, width = shape, shape.width
        self.tokens = GeneTokens(
            genes, shape.patch, width, learned=shape.learned_positions, own_weights=shape.counts
        )
        self.time = TimeEmbedding(width, frequencies=128)
        self.conditions = ConditionEmbedding(conditions, width) if conditions else None
        # a number and whether it is given
        self.numbers = nn.Linear(2 * numbers, width) if numbers else None
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.modulation = Modulation(width, shape.depth, kind=shape.modulation, rank=shape.rank)
        self.start, self.counts = start, None
        self.leave: nn.Linear | PatchReadout
        if start is not None:
            self.leave = PatchReadout(genes, shape.patch, width)
            scores = start.basis.shape[1]
            self.state, self.move = nn.Linear(scores, width), nn.Linear(width, scores)
            nn.init.zeros_(self.move.weight)
            nn.init.zeros_(self.move.bias)
            code: dict[str, Any] = {"latent": shape.count_code, "kl_weight": shape.count_kl}
            self.counts = CountHead(start.basis.shape[1], genes, conditions[0], **code)
        else:
            self.leave = nn.Linear(width, shape.patch)
            nn.init.zeros_(self.leave.weight)
            nn.init.zeros_(self.leave.bias)
        self.zero = nn.Linear(width, shape.patch) if shape.hurdle else None

    def rows(self, t: Tensor, codes: Tensor, numbers: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Modulation rows [B, D] of times in [0, 1] and conditions."""
        context = self.time(t)
        if self.conditions is not None:
            context = context + self.conditions(codes)
        if self.numbers is not None:
            given = ~numbers.isnan()
            context = context + self.numbers(torch.cat([numbers.nan_to_num(), given.to(numbers.dtype)], 1))
        return tuple(row.to(dtype) for row in self.modulation(context))

    def blocks_of(self, h: Tensor, rows: tuple[Tensor, ...], observe: Observe | None = None) -> Tensor:
        """Tokens [B, N, D] after all blocks; the seam between branches is one fused pass."""
        y = modulate(h, rows[0], rows[1])
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            told = None if observe is None else (lambda name, x, at=number: observe(at, name, x))
            _, _, gate, shift, scale, second = rows[6 * number : 6 * number + 6]
            if told is not None:
                told("stream", h)
            y, h = gated_residual_modulate(
                block.mixer(y, told), shift, scale, residual=h, gate=self._gate(gate, "attention")
            )
            if told is not None:
                told("mixed", h)
            h = block.token_map(y, h, self._gate(second, "token_map"), told)
            if number + 1 < len(self.blocks):
                y = modulate(h, *rows[6 * number + 6 : 6 * number + 8])
        if observe is not None:
            observe(len(self.blocks), "stream", h)
        return h

    def _gate(self, gate: Tensor, branch: str) -> Tensor:
        positive = self.shape.positive_gates in (True, branch)
        return F.softplus(gate + _START) if positive else gate

    def deviation(self) -> Tensor:
        """Mean over blocks of how far the subspaces of a white box are from orthonormal."""
        blocks: Any = self.blocks
        return torch.stack([block.mixer.deviation() for block in blocks]).mean()

    def forward(self, x_t: Tensor, t: Tensor, codes: Tensor, numbers: Tensor) -> Clean:  # noqa: D102
        return self.clean(x_t, self.rows(t, codes, numbers, compute_dtype(x_t)), t, codes)

    def enter(self, x_t: Tensor, t: Tensor, codes: Tensor) -> Tensor:
        """Tokens [B, N, D] of noised cells [B, G]; where counts are modelled the last is of the state."""
        return self.tokens(x_t) if self.start is None else self._enter(self.start.centre(x_t, t, codes))

    def _enter(self, cells: Centred) -> Tensor:
        """Tokens of what the mean of the class leaves, and one of where the cell lies within its class."""
        assert self.start is not None, "the shape has counts=True"
        state = self.state(self.start.scores(cells))
        return torch.cat([self.tokens(cells.x_t), state[:, None]], 1)

    def clean(self, x_t: Tensor, rows: tuple[Tensor, ...], t: Tensor, codes: Tensor) -> Clean:
        """What the network says of noised cells [B, G] under rows of modulation [B, D]."""
        if self.start is not None:
            cells = self.start.centre(x_t, t, codes)
            return Clean(self.start.uncentred(self.centred(cells, rows), cells), None)
        y = self._leave(self.tokens(x_t), rows)
        zero = None if self.zero is None else self.tokens.leave(self.zero(y)).float()
        return Clean(self.tokens.leave(self.leave(y)).float(), zero)

    def centred(self, cells: Centred, rows: tuple[Tensor, ...]) -> Tensor:
        """The prediction [B, G] of cells around the means of their classes: linear, and what that leaves.

        The state is moved along the basis as a whole, genes each by their patch.
        """
        assert self.start is not None, "the shape has counts=True"
        y = self._leave(self._enter(cells), rows)
        moved = self.move(y[:, -1].float()).float() @ self.start.basis.mT
        return self.start.prediction(cells) + moved + self.leave(y[:, :-1]).float()

    def _leave(self, h: Tensor, rows: tuple[Tensor, ...]) -> Tensor:
        return modulate(self.blocks_of(h.to(rows[0].dtype), rows), *rows[-2:])

    def loss(
        self, x0: Tensor, signal: Tensor, noise: Tensor, t: Tensor, codes: Tensor, numbers: Tensor, *,
        seed: Tensor, prediction: Literal["eps", "v", "x0"], weight: Tensor | None = None,
        zeros: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Weighted squared error of the prediction at noise ``seed``; with a hurdle, entropy of zeros.

        ``x0`` [B, G], ``signal``, ``noise``, ``t`` and ``weight`` [B], ``zeros`` bool [B, G]. The noise is
        drawn inside the first and the last operator, and never lies in memory.
        """
        assert isinstance(self.leave, nn.Linear), "patches with weights of their own are learnt by `centred`"
        dtype = compute_dtype(x0)
        h = self.tokens.noised(x0, signal, noise, seed, dtype)
        rows = self.rows(t, codes, numbers, dtype)
        h = self.blocks_of(h, rows)
        shift, scale = rows[-2:]
        last, bias = self.leave.weight.to(dtype), self.leave.bias.to(dtype)
        found = denoise_loss(
            h, shift, scale, last, bias, x0, signal, noise,
            seed=seed, prediction=prediction, cell_weight=weight,
        )  # fmt: skip
        terms = {"diffusion": found.loss}
        if self.zero is not None and zeros is not None:
            logit = self.tokens.leave(self.zero(modulate(h, *rows[-2:]))).float()
            terms["zeros"] = F.binary_cross_entropy_with_logits(logit, zeros.float())
        return terms


def compute_dtype(x: Tensor) -> torch.dtype:
    """What autocast computes in on the device of ``x``, or the dtype of ``x``."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
