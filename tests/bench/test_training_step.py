"""The step that is timed: the fused transformers compute what the published ones do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import table
import torch
import training_step
from scdd.kernels.noise_patch_embed import patch_noise
from training import fused, published
from training.published import Sizes, Transformer

BENCH = Path(__file__).parents[2] / "bench"
SIZES = {"genes": 40, "patch": 10, "width": 64, "heads": 2, "depth": 2}
BOTH = pytest.mark.parametrize("white_box", [True, False], ids=["white_box", "dit"])
# the loss and every gradient are sums of some hundred terms
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def transformer(*, white_box, dtype=torch.float32, collapsed=False):
    torch.manual_seed(0)
    return Transformer(Sizes(**SIZES, collapsed=collapsed), white_box=white_box).to(dtype)


def batch_of(model, dtype=torch.float32):
    return training_step.Batch(
        *(v.to(dtype) for v in training_step.make_batch(3, model.sizes, torch.device("cpu")))
    )


def with_gradients(model, loss):
    names = [name for name, _ in model.named_parameters()]
    return {
        "loss": loss.detach(),
        **dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True)),
    }


def assert_equal(found, wanted, tolerance):
    for name, truth in wanted.items():
        assert truth.norm() > 0, f"{name} has no gradient to compare"
        assert (found[name] - truth).norm() <= tolerance * truth.norm(), name


@BOTH
@DTYPES
def test_fused_with_given_noise(white_box, dtype):
    model = transformer(white_box=white_box, dtype=dtype)
    batch = batch_of(model, dtype)
    eps = torch.randn(batch.x0.shape, dtype=dtype)
    found = with_gradients(model, fused.loss(model, *batch, eps=eps, dtype=dtype))
    assert_equal(found, with_gradients(model, published.loss(model, *batch, eps)), TOLERANCE[dtype])


@BOTH
@DTYPES
def test_fused_with_the_noise_of_a_seed(white_box, dtype):
    model = transformer(white_box=white_box, dtype=dtype)
    batch, seed = batch_of(model, dtype), torch.tensor(23)
    eps = patch_noise(seed, *batch.x0.shape, patch=model.sizes.patch, device=batch.x0.device, dtype=dtype)
    found = with_gradients(model, fused.loss(model, *batch, seed=seed, dtype=dtype))
    assert_equal(found, with_gradients(model, published.loss(model, *batch, eps)), TOLERANCE[dtype])
    other = fused.loss(model, *batch, seed=seed + 1, dtype=dtype)
    assert abs(other - found["loss"]) > 1e-4


@BOTH
@DTYPES
def test_collapsed_is_published(white_box, dtype):
    model, collapsed = (transformer(white_box=white_box, dtype=dtype, collapsed=c) for c in (False, True))
    collapsed.load_state_dict(model.state_dict())
    batch = batch_of(model, dtype)
    eps = torch.randn(batch.x0.shape, dtype=dtype)
    found = with_gradients(collapsed, published.loss(collapsed, *batch, eps))
    assert_equal(found, with_gradients(model, published.loss(model, *batch, eps)), TOLERANCE[dtype])


@BOTH
def test_the_gate_sees_a_wrong_way(white_box):
    model, collapsed = (transformer(white_box=white_box, collapsed=c) for c in (False, True))
    collapsed.load_state_dict(model.state_dict())
    batch = batch_of(model)
    found = training_step.ways(model, collapsed, batch, compiled=False)
    assert training_step.gate(found, batch, torch.float32) == []
    for name in ("scdd", "scdd.nn"):
        module, loss = found[name]
        broken = {**found, name: (module, lambda eps, dtype, loss=loss: 1.001 * loss(eps, dtype))}
        (wrong,) = training_step.gate(broken, batch, torch.float32)
        assert wrong.startswith(f"{name}:")


def test_the_command_writes_json_lines(tmp_path):
    out = tmp_path / "results" / "rows.jsonl"
    command = [sys.executable, BENCH / "training_step.py", "--device", "cpu", "--no-compile", "--rounds", "5"]
    command += ["--model", "white_box", "--batch", "2", "--depth", "1", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["implementation"] for line in lines] == [
        "scdd", "scdd.nn", "published", "algebra", "default model",
    ]  # fmt: skip
    assert all(line["p50_us"] > 0 and line["cells_per_s"] > 0 for line in lines)
    shown = table.table(lines).splitlines()[2:]
    assert len(shown) == 5
    ratio = lines[2]["p50_us"] / lines[0]["p50_us"]
    assert f"| {ratio:.2f}x |" in shown[0]
    assert "| 1.00x |" in shown[2]
