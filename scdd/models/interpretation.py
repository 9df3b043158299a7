"""What the blocks of a white-box transformer do, layer by layer and over diffusion time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from scdd.kernels import coding_rate, subspace_coding_rate

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from scdd.models.transformer_net import CellsToLearn, TransformerDiffusion

# CRATE's own measurement: tokens of length one, precision 0.1 (its code says 0.01 and means the square)
_PRECISION = 0.1


@dataclass(frozen=True)
class Interpretation:
    """One row of ``table`` for every layer and diffusion time.

    ``rate_before``, ``rate_after``: coding rate ``R^c`` of the tokens in the layer's own subspaces, before
    and after its attention (Yu et al. 2023); ``falls``, whether the layer compresses as its derivation says.
    ``rate``, of the tokens as a whole. ``zeros``: share of exact zeros that ISTA leaves. ``gate_mixer`` and
    ``gate_sparse``: mean gates. ``orthogonality``: ``|U_k U_k^T / s - I|_F / sqrt(P)``, mean over heads, s
    the mean squared length of the rows; 0 is an orthonormal basis.
    """

    table: pd.DataFrame

    @property
    def share_falling(self) -> float:
        """In how many (layer, time) cells the coding rate really falls."""
        return float(self.table["falls"].mean())

    def plot(self) -> Figure:
        """Heat maps by layer and time: change of the coding rate, and zeros."""
        from matplotlib.figure import Figure

        shown = {
            "change of coding rate in the layer's subspaces, %": 100
            * (self.table["rate_after"] / self.table["rate_before"] - 1),
            "zeros after ISTA, %": 100 * self.table["zeros"],
        }
        shown = {title: values for title, values in shown.items() if values.notna().any()}
        figure = Figure(figsize=(5.2 * len(shown), 3.2), layout="constrained")
        for axis, (title, values) in zip(
            figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
        ):
            grid = self.table.assign(shown=values).pivot(index="layer", columns="time", values="shown")
            limit = abs(grid.to_numpy()).max()
            colours = (
                {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
                if "change" in title
                else {"cmap": "viridis"}
            )
            image = axis.imshow(grid, aspect="auto", **colours)
            axis.set_xticks(range(grid.shape[1]), [f"{time:.2f}" for time in grid.columns], rotation=45)
            axis.set_yticks(range(len(grid)), grid.index)
            axis.set(xlabel="diffusion time (1 is noise)", ylabel="layer", title=title)
            figure.colorbar(image, ax=axis)
        return figure

    def save(self, path: str | Path) -> None:
        """Write the table (``.csv``) or the plot (``.png``, ``.svg``, ``.pdf``)."""
        from scdd.output import atomic_path

        with atomic_path(path) as temporary:
            if str(path).endswith(".csv"):
                self.table.to_csv(temporary, index=False)
            else:
                self.plot().savefig(temporary, format=str(path).rpartition(".")[2], dpi=150)


@torch.no_grad()
def interpret(
    model: TransformerDiffusion, cells: CellsToLearn, times: list[int], *, seed: int
) -> Interpretation:
    """Measure every layer on cells noised to ``times`` (1..T)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(cells.x0.shape, generator=generator)
    rows = []
    for step in times:
        t = torch.full((len(cells.x0),), step)
        x_t = model.schedule.add_noise(cells.x0, noise, t)
        rows += _layers(model, x_t, t / model.schedule.steps, cells)
    return Interpretation(pd.DataFrame(rows))


def _layers(
    model: TransformerDiffusion, x_t: Tensor, t: Tensor, cells: CellsToLearn
) -> list[dict[str, float]]:
    net = model.net
    seen: dict[tuple[int, str], Tensor] = {}
    modulation = net.rows(t, cells.codes, cells.numbers, x_t.dtype)
    net.blocks_of(net.tokens(x_t), modulation, lambda layer, name, x: seen.__setitem__((layer, name), x))
    found = []
    for layer, block in enumerate(net.blocks):
        before, after = (_projected(block.mixer, seen[layer, name]) for name in ("stream", "mixed"))
        rates = [
            subspace_coding_rate(w, eps=_PRECISION, normalise=True).mean().item() for w in (before, after)
        ]
        gates = [net._gate(modulation[6 * layer + at]).mean().item() for at in (2, 5)]
        sparse = seen.get((layer, "sparse"))
        whole = F.normalize(_norm(seen[layer, "stream"]), dim=-1)
        found.append({
            "layer": layer, "time": t[0].item(), "rate_before": rates[0], "rate_after": rates[1],
            "falls": rates[1] < rates[0], "rate": coding_rate(whole, eps=_PRECISION).mean().item(),
            "zeros": float("nan") if sparse is None else (sparse == 0).float().mean().item(),
            "gate_mixer": gates[0], "gate_sparse": gates[1], "orthogonality": _orthogonality(block.mixer),
        })  # fmt: skip
    return found


def _rate(w: Tensor) -> float:
    return subspace_coding_rate(w, eps=_PRECISION, normalise=True).mean().item()


def _norm(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:])


def _projected(mixer: Any, h: Tensor) -> Tensor:
    """Tokens in the subspaces of a layer, [B, N, H, P]."""
    return mixer.project(_norm(h))


def _orthogonality(mixer: Any) -> float:
    bases = mixer.subspaces.weight.unflatten(0, (mixer.heads, -1))
    gram = bases @ bases.mT
    width = gram.shape[-1]
    scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    return ((gram / scale - torch.eye(width)).square().sum((1, 2)).sqrt() / width**0.5).mean().item()
