"""Measure what the blocks of a white-box transformer do, layer by layer and over diffusion time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from scdd.errors import InputError
from scdd.kernels import coding_rate, modulate, subspace_coding_rate
from scdd.models.interpretation_result import Interpretation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scdd.models.transformer_net import CellsToLearn, TransformerDiffusion

TokenForm = Literal["normalised", "raw"]
# numbers in one tensor of a block of cells: tokens of all layers are held at once
_MOST = 2**22
# of these the spread over cells is told too
_RATES = tuple(f"{kind}_{place}" for kind in ("rate", "whole") for place in ("before", "after", "end"))


@torch.no_grad()
def interpret(
    model: TransformerDiffusion,
    cells: CellsToLearn,
    times: Sequence[int],
    *,
    seed: int,
    epsilon: float = 0.1,
    tokens: TokenForm = "normalised",
) -> Interpretation:
    """Measure every layer on cells noised to ``times`` (1..T); see :class:`Interpretation`."""
    if not epsilon > 0:
        raise InputError(f"epsilon={epsilon}; a code has a positive precision, CRATE's is 0.1")
    if tokens not in get_args(TokenForm):
        raise InputError(f"tokens={tokens!r}; choose one of {', '.join(get_args(TokenForm))}")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(cells.x0.shape, generator=generator)
    measure = _Measure(model, epsilon, normalise=tokens == "normalised")
    block = max(1, _MOST // (model.net.tokens.tokens * model.config.shape.width))
    weights = [measure.weights(layer) for layer in range(len(model.net.blocks))]
    rows = []
    for step in times:
        parts = [
            measure.layers(_rows(cells, slice(start, start + block)), noise[start : start + block], step)
            for start in range(0, len(noise), block)
        ]
        for layer, fixed in enumerate(weights):
            each = {name: torch.cat([part[layer][name] for part in parts]) for name in parts[0][layer]}
            time = step / model.schedule.steps
            rows.append({"layer": layer, "time": time, **_over_cells(each), **fixed})
    table = pd.DataFrame(rows).assign(epsilon=epsilon, tokens=tokens)
    return Interpretation(table)


def _rows(cells: CellsToLearn, part: slice) -> CellsToLearn:
    parts: Any = (None if field is None else field[part] for field in cells)
    return type(cells)(*parts)


class _Measure:
    """The measurements of one model."""

    def __init__(self, model: TransformerDiffusion, epsilon: float, *, normalise: bool):
        self.net, self.schedule = model.net, model.schedule
        self.epsilon, self.normalise = epsilon, normalise

    def layers(self, cells: CellsToLearn, noise: Tensor, step: int) -> list[dict[str, Tensor]]:
        """For every layer what is known of single cells, by name, each [B]."""
        net = self.net
        t = torch.full((len(noise),), step)
        x_t = self.schedule.add_noise(cells.x0, noise, t)
        modulation = net.rows(t / self.schedule.steps, cells.codes, cells.numbers, x_t.dtype)
        seen: dict[tuple[int, str], Tensor] = {}
        tokens = net.enter(x_t, t / self.schedule.steps, cells.codes)
        net.blocks_of(tokens, modulation, lambda layer, name, x: seen.__setitem__((layer, name), x))
        found = []
        for layer, block in enumerate(net.blocks):
            own = modulation[6 * layer : 6 * layer + 6]
            streams = seen[layer, "stream"], seen[layer, "mixed"], seen[layer + 1, "stream"]
            gates = net._gate(own[2], "attention"), net._gate(own[5], "token_map")
            given = seen.get((layer, "sparse_input")), seen.get((layer, "sparse"))
            found.append(
                self._rates(block.mixer, own, streams)
                | _sparsity(block.token_map, *given)
                | _gates(block.token_map, *gates)
            )
        return found

    def _rates(
        self, mixer: Any, own: tuple[Tensor, ...], streams: tuple[Tensor, Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """``R^c`` in the subspaces of this layer, and ``R``, of the stream at three places of its block."""
        found = {}
        for place, stream in zip(("before", "after", "end"), streams, strict=True):
            # through the same norm and modulation at each place: those the layer's attention looks through
            z = modulate(stream, own[0], own[1]) if self.normalise else stream
            w, eps, unit = mixer.project(z).double(), self.epsilon, self.normalise
            found[f"rate_{place}"] = subspace_coding_rate(w, eps=eps, normalise=unit)
            found[f"whole_{place}"] = coding_rate(z.double(), eps=eps, normalise=unit)
        return found

    def weights(self, layer: int) -> dict[str, float]:
        """What is known of a layer without cells: orthogonality, threshold, stability of the step."""
        block: Any = self.net.blocks[layer]
        found = orthogonality(block.mixer.subspaces.weight, block.mixer.heads)
        if hasattr(block.token_map, "dictionary"):
            step, atoms = block.token_map.step_size, block.token_map.dictionary.double()
            found["threshold"] = block.token_map.threshold().mean().item()
            found["step_stability"] = step * torch.linalg.matrix_norm(atoms, 2).item() ** 2
        return found


def orthogonality(subspaces: Tensor, heads: int) -> dict[str, float]:
    """How far ``U^T U / s`` is from I within the heads, between them, and in all; s: mean squared length.

    In Frobenius norm over ``sqrt(D)``, so that ``orthogonality^2 = within^2 + between^2``; 0 is an
    orthonormal basis, random directions have about 1. ``subspaces`` [D, D] holds one direction a row.
    """
    gram = (subspaces @ subspaces.mT).double()
    scale = gram.diagonal().mean()
    size = len(gram)
    off = (gram / scale - torch.eye(size, dtype=gram.dtype, device=gram.device)).square()
    within = off.unflatten(0, (heads, -1)).unflatten(2, (heads, -1)).diagonal(dim1=0, dim2=2).sum()
    whole = off.sum()
    named = {"orthogonality": whole, "within": within, "between": (whole - within).clamp_min(0)}
    return {**{n: (v / size).sqrt().item() for n, v in named.items()}, "basis_scale": scale.item()}


def _sparsity(token_map: Any, y: Tensor | None, code: Tensor | None) -> dict[str, Tensor]:
    """Exact zeros; l1 norms a token; and the LASSO's cost a token, before and after the step."""
    if y is None or code is None:
        return {}
    threshold, atoms = token_map.threshold().double(), token_map.dictionary.double()
    y, code = y.double(), code.double()
    # the square dictionary starts from its input, the overcomplete one from zero
    start = y if code.shape == y.shape else torch.zeros_like(code)

    def price(z: Tensor) -> Tensor:
        return (z.abs() * threshold).sum(-1).mean(1)

    def cost(z: Tensor) -> Tensor:
        return 0.5 * (y - z @ atoms.mT).square().sum(-1).mean(1) + price(z)

    return {
        "zeros": (code == 0).double().mean((1, 2)),
        "l1_input": y.abs().sum(-1).mean(1), "l1": code.abs().sum(-1).mean(1),
        "price_before": price(start), "price_after": price(code),
        "cost_before": cost(start), "cost_after": cost(code),
    }  # fmt: skip


def _gates(token_map: Any, mixer: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Mean gate, and the share of gates below zero; a residual-free map has none."""
    gates = {"mixer": mixer} | ({"sparse": second} if getattr(token_map, "residual", True) else {})
    size: Callable[[Tensor], Tensor] = lambda gate: gate.abs().mean(1)  # noqa: E731
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "": lambda gate: gate.mean(1), "_size": size, "_negative": lambda gate: (gate < 0).double().mean(1)
    }  # fmt: skip
    return {f"gate_{name}{kind}": of(gate) for name, gate in gates.items() for kind, of in kinds.items()}


def _over_cells(each: dict[str, Tensor]) -> dict[str, Any]:
    """Means over cells, of rates with their spread; and whether the rate falls, cell paired with cell."""
    cells = len(each["rate_before"])
    found: dict[str, Any] = {"cells": cells}
    for name, values in each.items():
        found[name] = values.mean().item()
        if name in _RATES:
            found[f"{name}_sd"] = _spread(values)
    for name, place in (("change", "after"), ("block_change", "end")):
        change = each[f"rate_{place}"] - each["rate_before"]
        found[name], found[f"{name}_se"] = change.mean().item(), _spread(change) / cells**0.5
    found["falls"] = found["change"] < 0
    found["falls_clearly"] = found["change"] < -2 * found["change_se"]
    found["block_falls"] = found["block_change"] < 0
    return found


def _spread(values: Tensor) -> float:
    return values.std().item() if len(values) > 1 else float("nan")
