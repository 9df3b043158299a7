"""Time sampling: the published 100 calls in plain PyTorch against ours, in turns; and say what the cells are worth.

    python bench/sampling.py speed --out bench/results/generators.jsonl
    python bench/sampling.py quality --data pbmc3k.h5ad --out bench/results/generators.jsonl
    python bench/sampling.py table bench/results/generators.jsonl > docs/results/generator_speed.md

`speed` takes one model of published sizes: its weights drive the published sampler and, in the package's own
network, 20 steps of DPM-Solver++. "default" is our smaller default model, counts drawn as well: other mathematics, so
no like for like.
`quality` trains the published formulation, small, on half of real cells and compares what each sampler draws of the
very same weights with the other half. Times are of one process that shares the machine: wall and CPU seconds are
both told, and ratios are medians over rounds in which the ways take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from timing.environment import environment
from training import learnt, ours, published
from training.published import Sizes, Transformer

from scdd.diffusion.samplers import plan, sample
from scdd.diffusion.schedule import NoiseSchedule
from scdd.models.transformer_config import PRESETS
from scdd.models.transformer_net import TransformerDiffusion
from scdd.nn.sampling import Conditioned, prepared_for_sampling

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from scdd.nn.transformer import DiffusionTransformerNet

_STEPS = 20
# of the 100 published calls, which all cost the same, so many are timed
_TIMED = 10


def drawn(
    net: DiffusionTransformerNet, noise: Tensor, *, schedule: NoiseSchedule, prediction: str, sampler: str = "dpm++",
    steps: int = _STEPS, eta: float = 0.0, dtype: torch.dtype = torch.float32, shift: float = 0.0, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Cells by our sampler without conditions; ``shift`` is taken from the time that the network is told."""
    none = torch.empty(len(noise), 0)
    ready = Conditioned(prepared_for_sampling(net, dtype), none.long(), none, dtype)

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, None]:
        return ready(x, t - shift).prediction, None

    chosen = plan(schedule, sampler, steps, prediction, eta=eta)  # type: ignore[arg-type]
    return sample(denoise, schedule, noise, chosen, seed=seed)


def of_published(net: DiffusionTransformerNet, noise: Tensor, **options: Any) -> Tensor:
    """The same of published weights: their t counts from 0 where ours counts from 1."""
    with torch.no_grad():
        return drawn(net, noise, schedule=NoiseSchedule.linear(), prediction="eps", shift=1e-3, **options)


def default_model(noise: Tensor, *, white_box: bool, precision: str) -> Callable[[], Tensor]:
    """Draws counts of cells of one class by an untrained model of our default, in its own 20 steps."""
    config = PRESETS["white_box" if white_box else "attention"]["default"]
    cells, genes = noise.shape
    model = TransformerDiffusion(
        genes, replace(config, precision=precision, device="cpu"), conditions=[1], numbers=1
    ).eval()
    codes, numbers, totals = (
        torch.zeros(cells, 1, dtype=torch.long),
        torch.zeros(cells, 1),
        torch.full((cells,), 2e3),
    )
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        found = model.draw(
            codes, numbers, noise, sampler="dpm++", steps=_STEPS, guidance=0.0, eta=0.0, seed=0
        )
        return model.draw_counts(found.x0, codes, totals, generator)

    return draw


def ways(cells: int, *, white_box: bool) -> dict[str, tuple[float, Callable[[], Tensor]]]:
    """Cells and a call that draws them, by name."""
    torch.manual_seed(0)
    model = Transformer(Sizes(), white_box=white_box)
    net = ours.from_published(model)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(cells, model.sizes.genes, generator=generator)
    wide, narrow = (default_model(noise, white_box=white_box, precision=p) for p in ("32-true", "bf16-mixed"))
    return {
        # as if a tenth of the cells had been drawn whole
        "published, 100 calls": (
            cells * _TIMED / 100,
            partial(published.sample, model, noise, generator, stop=_TIMED),
        ),
        "scdd float32, 20 steps": (cells, partial(of_published, net, noise)),
        "scdd bfloat16, 20 steps": (cells, partial(of_published, net, noise, dtype=torch.bfloat16)),
        "default model float32, 20 steps": (cells, wide),
        "default model bfloat16, 20 steps": (cells, narrow),
    }


def speed(cells: int, rounds: int, *, white_box: bool) -> list[dict[str, Any]]:
    """A row a way: cells a second by the wall and by the processor, and both ratios to the published way."""
    found = ways(cells, white_box=white_box)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, (n, call) in found.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            seen[name].append((n / (time.perf_counter() - wall), n / (time.process_time() - cpu)))
    rows = []
    first = next(iter(seen.values()))
    for name, rates in seen.items():
        ratios = [[ours[k] / theirs[k] for ours, theirs in zip(rates, first, strict=True)] for k in (0, 1)]
        rows.append({
            "bench": "sampling speed", "model": "white_box" if white_box else "dit", "way": name, "cells": cells,
            "cells_per_s": round(median(r[0] for r in rates), 3),
            "cells_per_cpu_s": round(median(r[1] for r in rates), 3),
            "ratio": round(median(ratios[0]), 2), "ratio_cpu": round(median(ratios[1]), 2), "rounds": rounds,
        })  # fmt: skip
    return rows


def quality(data: Path, steps: int, cells: int, seeds: int, weights: Path | None) -> list[dict[str, Any]]:
    """A row a way and seed: MMD to held-out cells and the AUC of telling them apart, in 50 PCs of the train half."""
    import numpy as np
    from sklearn.decomposition import PCA

    from scdd.evaluation.generated.two_sample import classifier_auc, discrepancy, median_distance

    sizes = Sizes(patch=20, width=128, heads=4, depth=2)
    real = learnt.cells(data, sizes.genes)
    model = learnt.small(sizes)
    if weights is not None and weights.exists():
        model.load_state_dict(torch.load(weights))
    else:
        learnt.learn(model, real.train, steps=steps)
        if weights is not None:
            torch.save(model.state_dict(), weights)
    net = ours.from_published(model)
    space = PCA(50, random_state=0).fit(real.train.numpy())
    # one part of the held-out cells to compare with, another to say what real cells score
    held = space.transform(real.test.numpy()).astype(np.float32)
    test, other = held[: len(held) // 2], held[len(held) // 2 :][:cells]
    unit, rows = median_distance(test), []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(cells, sizes.genes, generator=generator)
        made = {
            "published, 100 calls": published.sample(model, noise, generator),
            "scdd float32, 20 steps": of_published(net, noise, seed=seed),
            "scdd bfloat16, 20 steps": of_published(net, noise, dtype=torch.bfloat16, seed=seed),
        }  # fmt: skip
        places = {"real cells": other}
        for name, x in made.items():
            # as the published sampler ends: expression is not negative
            places[name] = space.transform(x.clamp_min(0).numpy()).astype(np.float32)
        rows += [
            {
                "bench": "sampling quality", "model": "white_box", "data": data.stem, "way": name, "seed": seed,
                "cells": len(z), "mmd": discrepancy(z, test, unit=unit).value,
                "auc": classifier_auc(z, test, "random forest", trees=100, seed=seed),
            }
            for name, z in places.items()
        ]  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of all rows."""
    lines = [
        "# Speed of the generators", "",
        "Written by `python bench/sampling.py table bench/results/generators.jsonl`. Ratios are medians over rounds in",
        "which the ways take turns, of one thread where no other number is told. Other guests may share the processor.", "",
    ]  # fmt: skip
    fast = [r for r in rows if r.get("bench") == "sampling speed"]
    if fast:
        first = fast[0]
        lines += [f"## Sampling, {first['device']}, {first['threads']} thread, torch {first['torch']}", "",
                  "| model | way | cells/s | cells/CPU-s | against published, wall | CPU | rounds |",
                  "|---|---|---|---|---|---|---|"]  # fmt: skip
        lines += [
            f"| {r['model']} | {r['way']} | {r['cells_per_s']:.3g} | {r['cells_per_cpu_s']:.3g} | {r['ratio']:.1f}x "
            f"| {r['ratio_cpu']:.1f}x | {r['rounds']} |"
            for r in fast
        ]
        lines += ["", f"Of the published sampler's 100 calls {_TIMED} are timed, since all cost the same; it computes in",
                  "float32. Ours draws in bfloat16 only where a model's precision is bf16."]  # fmt: skip
        lines += ["", "The default model is smaller, and draws counts: not the same mathematics.", ""]
    good = [r for r in rows if r.get("bench") == "sampling quality"]
    if good:
        lines += ["## The same small trained weights, drawn either way", "",
                  f"{good[0]['data']}, {good[0]['cells']} cells against the held-out half in 50 PCs; mean over seeds.",
                  "Width 128, depth 2, trained for a short while: good enough to compare samplers, no more.",
                  "", "| way | MMD² | random-forest AUC | seeds |", "|---|---|---|---|"]  # fmt: skip
        for name in dict.fromkeys(r["way"] for r in good):
            some = [r for r in good if r["way"] == name]
            mmd, auc = (sum(r[k] for r in some) / len(some) for k in ("mmd", "auc"))
            spread = max(r["mmd"] for r in some) - min(r["mmd"] for r in some)
            lines.append(f"| {name} | {mmd:.5f} (range {spread:.5f}) | {auc:.3f} | {len(some)} |")
        lines.append("")
    one = [r for r in rows if r.get("bench") == "one step"]
    if one:
        lines += ["## SCDG in one step: denoised, decoded, counts drawn, written as sparse .h5ad", "",
                  "By `python bench/one_step_throughput.py`.", "",
                  "| data | genes | cells | cells/s, median | best | cells/CPU-s | threads |",
                  "|---|---|---|---|---|---|---|"]  # fmt: skip
        lines += [
            f"| {r['data']} | {r['genes']} | {r['cells']} | {r['cells_per_s']:,} | {r['best_cells_per_s']:,} "
            f"| {r['cells_per_cpu_s']:,} | {r['threads']} |"
            for r in one
        ] + [""]
    steps = [r for r in rows if r.get("operator") == "training_step" and "p50_us" in r]
    if steps:
        lines += ["## A training step of published sizes", "",
                  "By `python bench/training_step.py --no-compile`; algebra is plain PyTorch with our algebra. The default",
                  "model is smaller, and learns counts as well: not the same mathematics.", "",
                  "| case | dtype | way | ms | against published | rounds |", "|---|---|---|---|---|---|"]  # fmt: skip
        base = {(r["case"], r["dtype"]): r["p50_us"] for r in steps if r["implementation"] == "published"}
        lines += [
            f"| {r['case']} | {r['dtype']} | {r['implementation']} | {r['p50_us'] / 1e3:.0f} "
            f"| {base[r['case'], r['dtype']] / r['p50_us']:.2f}x | {r['rounds']} |"
            for r in steps
        ] + ["", "Of a white box of depth 3 the published step multiplies the tokens 45 times by a matrix of 768 x 768, ours 29",
             "times: its operator of sparse coding is one matrix. More than 1.5x is not in that algebra, and norms, gates,",
             "attention and AdamW, which both have, take their share.", ""]  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    fast = verbs.add_parser("speed")
    fast.add_argument("--cells", type=int, default=16, help="a batch, as published")
    fast.add_argument("--rounds", type=int, default=5)
    fast.add_argument("--model", choices=["white_box", "dit"], action="append", help="default: both")
    good = verbs.add_parser("quality")
    good.add_argument("--data", type=Path, required=True)
    good.add_argument("--steps", type=int, default=1500, help="of training")
    good.add_argument("--cells", type=int, default=512)
    good.add_argument("--seeds", type=int, default=3)
    good.add_argument("--weights", type=Path, help="read them here, or write them after training")
    for verb in (fast, good):
        verb.add_argument("--out", type=Path, help="append the lines to this file as well")
    shown = verbs.add_parser("table")
    shown.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.verb == "table":
        print(table([json.loads(line) for name in options.files for line in name.read_text().splitlines()]))
        return 0
    if options.verb == "speed":
        models = options.model or ["white_box", "dit"]
        rows = [r for m in models for r in speed(options.cells, options.rounds, white_box=m == "white_box")]
    else:
        rows = quality(options.data, options.steps, options.cells, options.seeds, options.weights)
    surroundings = environment(torch.device("cpu"))
    lines = [json.dumps(row | surroundings) for row in rows]
    print("\n".join(lines))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a") as file:
            file.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
