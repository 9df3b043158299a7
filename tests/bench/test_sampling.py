"""The samplers that are timed draw from the same weights, and the tables say what the rows do."""

import json
import subprocess
import sys
from pathlib import Path

import sampling
import torch
from training import learnt, ours, published
from training.published import Sizes, Transformer

BENCH = Path(__file__).parents[2] / "bench"
SIZES = {"genes": 40, "patch": 10, "width": 32, "heads": 2, "depth": 2}


def model(*, white_box=True):
    torch.manual_seed(0)
    return Transformer(Sizes(**SIZES), white_box=white_box)


def test_our_network_has_the_published_outputs():
    for white_box in (True, False):
        theirs = model(white_box=white_box)
        net, x, t = ours.from_published(theirs), torch.randn(5, 40), torch.tensor([1.0, 20, 300, 700, 999])
        none = torch.empty(5, 0)
        found = net(x, t / 1000, none.long(), none).prediction
        assert torch.allclose(found, theirs(x, t), rtol=1e-4, atol=1e-5)


def test_the_published_sampler_makes_its_calls():
    theirs, times = model(), []
    theirs.register_forward_pre_hook(lambda _, given: times.append(int(given[1][0])))
    noise = torch.randn(3, 40)
    cells = published.sample(theirs, noise, torch.Generator().manual_seed(0))
    assert times == [*range(990, 0, -10), 1]
    assert torch.isfinite(cells).all()
    times.clear()
    published.sample(theirs, noise, torch.Generator().manual_seed(0), stop=7)
    assert len(times) == 7


def test_both_samplers_find_the_cells_that_were_learnt():
    """On one cell, learnt by heart, 100 published calls and 20 of ours end at the same place."""
    theirs = learnt.small(Sizes(**SIZES))
    cell = torch.linspace(-1, 2, 40)
    learnt.learn(theirs, cell.expand(64, -1), steps=400, lr=3e-3)
    noise = torch.randn(16, 40, generator=torch.Generator().manual_seed(1))
    far = (torch.randn(16, 40) - cell).square().mean()
    for found in (
        published.sample(theirs, noise, torch.Generator().manual_seed(0)),
        sampling.of_published(ours.from_published(theirs), noise),
    ):
        assert (found - cell).square().mean() < 0.1 * far


def test_the_default_model_draws_counts():
    noise = torch.randn(6, 100, generator=torch.Generator().manual_seed(1))
    for white_box in (True, False):
        for precision in ("32-true", "bf16-mixed"):
            counts = sampling.default_model(noise, white_box=white_box, precision=precision)()
            assert counts.shape == (6, 100)
            assert torch.equal(counts, counts.round())
            assert counts.sum() > 6 * 1_000


def test_the_table(tmp_path):
    row = {"bench": "sampling speed", "model": "white_box", "way": "ours", "cells_per_s": 4.2, "rounds": 3}
    row |= {
        "cells_per_cpu_s": 5.1,
        "ratio": 21.3,
        "ratio_cpu": 22.4,
        "device": "a CPU",
        "threads": 1,
        "torch": "2",
    }
    good = {"bench": "sampling quality", "data": "pbmc", "way": "ours", "cells": 9, "auc": 0.75}
    one = {"bench": "one step", "data": "pbmc", "cells": 100, "genes": 2000, "threads": 2}
    one |= {"cells_per_s": 11_000, "best_cells_per_s": 12_000, "cells_per_cpu_s": 7_000}
    step = {"operator": "training_step", "case": "white_box L=3 B=16", "rounds": 5}
    steps = [
        {**step, "dtype": dtype, "implementation": way, "p50_us": us}
        for dtype, way, us in (
            ("float32", "scdd", 2e3), ("float32", "published", 3e3),
            ("bfloat16", "scdd", 1e3), ("bfloat16", "published", 1.2e3),
        )
    ]  # fmt: skip
    rows = [row, {**good, "mmd": 0.01}, {**good, "mmd": 0.03}, one, *steps]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, BENCH / "sampling.py", "table", path]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| white_box | ours | 4.2 | 5.1 | 21.3x | 22.4x | 3 |" in shown
    assert "| ours | 0.02000 (range 0.02000) | 0.750 | 2 |" in shown
    assert "| pbmc | 2000 | 100 | 11,000 | 12,000 | 7,000 | 2 |" in shown
    assert "| white_box L=3 B=16 | float32 | scdd | 2 | 1.50x | 5 |" in shown
    assert "| white_box L=3 B=16 | bfloat16 | scdd | 1 | 1.20x | 5 |" in shown
