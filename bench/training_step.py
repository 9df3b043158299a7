"""Time a training step of the diffusion transformers: the published formulation against ours, in turns.

    python bench/training_step.py                         # both models; on a GPU 512 cells in bfloat16
    python bench/training_step.py --model white_box --batch 16 --device cpu

A step is noise, loss, gradients of all weights and AdamW. First the loss and every gradient of each way are held
to the published formulation in float32; nothing that is wrong is timed. One JSON line a way. "default model" is a
step of the package's smaller default, the likelihood of counts included, on as many cells: other mathematics.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from scdd.kernels.noise_patch_embed import patch_noise
from timing.clock import Clock, peak_bytes, spreads
from timing.environment import environment
from training import fused, ours, published
from training.published import Sizes, Transformer

from scdd.models.transformer_config import PRESETS
from scdd.models.transformer_net import CellsToLearn, TransformerDiffusion

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from scdd.nn.transformer import DiffusionTransformerNet

_SEED = 0
# the noise that all ways are given when they are compared
_GATE_SEED = 11


class Batch(NamedTuple):
    """Cells [B, G] and their time [B] with the shares of signal and noise it has."""

    x0: Tensor
    signal: Tensor
    noise: Tensor
    t: Tensor


def make_batch(cells: int, sizes: Sizes, device: torch.device) -> Batch:
    """Draw cells of which most values are zero, as those of log-normalised expression are."""
    generator = torch.Generator().manual_seed(_SEED)
    x0 = torch.relu(torch.randn(cells, sizes.genes, generator=generator) - 0.8)
    t = torch.randint(1, 1000, (cells,), generator=generator)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[t]
    return Batch(*(v.to(device) for v in (x0, alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), t.float())))


def published_loss(model: Transformer, batch: Batch, eps: Tensor | None, dtype: torch.dtype) -> Tensor:
    """As a user writes it: noise by torch.randn, autocast for 16 bits."""
    eps = torch.randn_like(batch.x0) if eps is None else eps
    enabled = dtype != torch.float32
    with torch.autocast(batch.x0.device.type, dtype=dtype if enabled else None, enabled=enabled):
        return published.loss(model, *batch, eps)


def fused_loss(
    model: Transformer, batch: Batch, eps: Tensor | None, dtype: torch.dtype, seed: Tensor
) -> Tensor:
    """On our kernels; the seed moves on by one a step."""
    if eps is not None:
        return fused.loss(model, *batch, eps=eps, dtype=dtype)
    seed += 1
    return fused.loss(model, *batch, seed=seed, dtype=dtype)


def net_loss(
    net: DiffusionTransformerNet, batch: Batch, eps: Tensor | None, dtype: torch.dtype, seed: Tensor
) -> Tensor:
    """By the network that the package trains, which draws its noise itself: that of the gate, if `eps` is given."""
    if eps is None:
        seed += 1
    drawn = torch.full_like(seed, _GATE_SEED) if eps is not None else seed
    none = batch.t.new_empty(len(batch.t), 0)
    enabled = dtype != torch.float32
    with torch.autocast(batch.x0.device.type, dtype=dtype if enabled else None, enabled=enabled):
        terms = net.loss(*batch[:3], batch.t / 1000, none.long(), none, seed=drawn, prediction="eps")
    return terms["diffusion"]


def ways(model: Transformer, collapsed: Transformer, batch: Batch, *, compiled: bool) -> dict[str, tuple]:
    """Each way by name: its model, and its loss ``(eps, dtype) -> scalar``."""
    seed = torch.zeros((), dtype=torch.int64, device=batch.x0.device)
    twin = copy.deepcopy(model)
    net = ours.from_published(model).to(batch.x0.device)
    found = {
        "scdd": (twin, partial(_call, fused_loss, twin, batch, seed=seed)),
        "scdd.nn": (net, partial(_call, net_loss, net, batch, seed=seed.clone())),
        "published": (model, partial(_call, published_loss, model, batch)),
        "algebra": (collapsed, partial(_call, published_loss, collapsed, batch)),
    }
    if compiled:
        twin = copy.deepcopy(collapsed)
        found["compile"] = (twin, partial(_call, torch.compile(published_loss), twin, batch))
    return found


def default_model(batch: Batch, *, white_box: bool) -> tuple[TransformerDiffusion, Callable[..., Tensor]]:
    """The package's default on as many cells of as many genes, of one class."""
    cells, genes = batch.x0.shape
    config = PRESETS["white_box" if white_box else "attention"]["default"]
    counts = batch.x0.round()
    given = CellsToLearn(
        batch.x0, zeros=counts == 0, codes=batch.t.new_zeros(cells, 1).long(), numbers=batch.t.new_zeros(cells, 1),
        counts=counts, totals=counts.sum(1),
    )  # fmt: skip
    module = TransformerDiffusion(genes, config, conditions=[1], numbers=1).to(batch.x0.device)
    generator = torch.Generator().manual_seed(_SEED)

    def loss(eps: Tensor | None, dtype: torch.dtype) -> Tensor:
        enabled = dtype != torch.float32
        with torch.autocast(batch.x0.device.type, dtype=dtype if enabled else None, enabled=enabled):
            return sum(module.loss(given, generator).values(), start=batch.x0.new_zeros(()))

    return module, loss


def _call(loss: Callable[..., Tensor], model: Transformer, batch: Batch, eps: Tensor | None, dtype: torch.dtype,
          **options: Any) -> Tensor:  # fmt: skip
    return loss(model, batch, eps, dtype, **options)


def gate(found: dict[str, tuple], batch: Batch, dtype: torch.dtype) -> list[str]:
    """Name each way whose loss or gradients are over twice as wrong as PyTorch's in the same dtype.

    The truth is the published way in float64. PyTorch's two ways, with a map of attention and without, round
    differently: what the worse of them does is allowed.
    """
    theirs = found["published"][0]
    seed, patch = torch.tensor(_GATE_SEED, device=batch.x0.device), theirs.sizes.patch
    eps = patch_noise(seed, *batch.x0.shape, patch=patch, device=batch.x0.device, dtype=batch.x0.dtype)
    exact = copy.deepcopy(theirs).double()
    value = published.loss(exact, *(v.double() for v in batch), eps.double())
    truth = [value.detach(), *torch.autograd.grad(value, list(exact.parameters()))]
    results = {name: _gradients(*way, eps, dtype) for name, way in found.items()}
    if "scdd.nn" in results:
        value, *gradients = results["scdd.nn"]
        results["scdd.nn"] = [value, *ours.gradients_as_published(theirs, found["scdd.nn"][0], gradients)]
    errors = {name: _distance(result, truth) for name, result in results.items()}
    allowed = 2 * max(errors["published"], errors["algebra"]) + 1e-5
    return [f"{name}: error {e:.3g}, {allowed:.3g} allowed" for name, e in errors.items() if not e <= allowed]


def _gradients(
    model: Transformer, loss: Callable[..., Tensor], eps: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    value = loss(eps, dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [value.detach(), *torch.autograd.grad(value, trained)]


def _distance(found: list[Tensor], truth: list[Tensor]) -> float:
    """Largest relative error among the loss and all gradients."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, truth, strict=True))


def step(loss: Callable[..., Tensor], optimiser: torch.optim.Optimizer, dtype: torch.dtype) -> None:
    """One step of training."""
    optimiser.zero_grad(set_to_none=True)
    loss(None, dtype).backward()
    optimiser.step()


def in_graph(run: Callable[[], None]) -> Callable[[], None]:
    """`run` as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def arguments() -> argparse.Namespace:
    """Read the command line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=["white_box", "dit"], action="append", help="default: both")
    parser.add_argument("--batch", type=int, default=512 if cuda else 16, help="cells a step")
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16" if cuda else "float32")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, help="append the lines to this file as well")
    return parser.parse_args()


def measure(options: argparse.Namespace, *, white_box: bool) -> list[dict[str, Any]]:
    """Rows of one model, or one that says what is wrong."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.manual_seed(_SEED)
    model = Transformer(Sizes(depth=options.depth), white_box=white_box).to(device)
    collapsed = Transformer(Sizes(depth=options.depth, collapsed=True), white_box=white_box).to(device)
    collapsed.load_state_dict(model.state_dict())
    batch = make_batch(options.batch, model.sizes, device)
    found = ways(model, collapsed, batch, compiled=not options.no_compile)
    if wrong := gate(found, batch, dtype):
        return [{"error": wrong}]
    cuda = device.type == "cuda"
    runs = {}
    found["default model"] = default_model(batch, white_box=white_box)
    for name, (module, loss) in found.items():
        optimiser = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True, capturable=cuda)
        runs[name] = partial(step, loss, optimiser, dtype)
    if cuda:
        runs["scdd + graph"] = in_graph(runs["scdd"])
    clock = Clock(device)
    timed = spreads(runs, clock, rounds=options.rounds, seconds=options.seconds)
    rows = []
    for name, spread in timed.items():
        times = {f"{key}_us": round(value, 1) for key, value in spread._asdict().items() if key != "rounds"}
        rows.append({"implementation": name, "mode": "step", **times, "rounds": spread.rounds,
                     "cells_per_s": round(options.batch / (1e-6 * spread.p50), 1),
                     "peak_bytes": peak_bytes(runs[name], device)})  # fmt: skip
    return rows


def main() -> int:
    """Measure what was asked for; 1 if something was wrong."""
    options = arguments()
    surroundings, sound = environment(torch.device(options.device)), True
    for model in options.model or ["white_box", "dit"]:
        subject = {"operator": "training_step", "case": f"{model} L={options.depth} B={options.batch}"}
        for row in measure(options, white_box=model == "white_box"):
            sound &= "error" not in row
            line = json.dumps(subject | {"dtype": options.dtype} | row | surroundings)
            print(line, flush=True)
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                with options.out.open("a") as file:
                    file.write(line + "\n")
    return int(not sound)


if __name__ == "__main__":
    sys.exit(main())
