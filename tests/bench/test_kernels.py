"""The benchmarks themselves: nothing wrong is timed, and every row says what it must."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from operators import modulate, segment_attention
from operators.case import Unavailable
from registry import operators
from timing.ceilings import Ceilings
from timing.clock import Clock, spreads
from timing.gate import gate
from timing.measure import measure

BENCH = Path(__file__).parents[2] / "bench"
CPU = torch.device("cpu")
CEILINGS = Ceilings(copy_bytes_per_s=1e10, matmul_flops_per_s=1e11)


def rows(operator, case, *, rounds=5):
    settings = {"compiled": False, "rounds": rounds, "seconds": 10}
    return list(measure(operator, case, torch.float32, Clock(CPU), CEILINGS, **settings))


@pytest.fixture
def operator():
    return modulate.OPERATORS[0]


def test_every_name_is_told_apart():
    known = operators()
    assert len({op.name for op in known}) == len(known)
    for op in known:
        labels = [case.label for case in op.cases]
        assert len(set(labels)) == len(labels), op.name
        assert any(case.small for case in op.cases), f"{op.name} has no case for a CPU"


def test_the_same_inputs_every_time(operator):
    case = operator.cases[0]
    first, second = (case.inputs(torch.float32, CPU) for _ in range(2))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        assert first[name].abs().sum() > 0


@pytest.mark.parametrize("wrong", ["forward", "gradient", "nan"])
def test_no_speed_for_an_operator_that_is_wrong(operator, wrong):
    def broken(x, shift, scale):
        (y,) = operator.ours(x, shift, scale)
        if wrong == "forward":
            return (y * 1.001,)
        if wrong == "nan":
            return (torch.where(torch.arange(y.shape[-1]) == 3, torch.nan, y),)
        return (y + (scale - scale.detach())[0].sum(),)

    mutant = dataclasses.replace(operator, ours=broken)
    assert gate(mutant, operator.cases[0], torch.float32, CPU)
    (row,) = rows(mutant, operator.cases[0])
    assert set(row) == {"error"}
    assert not gate(operator, operator.cases[0], torch.float32, CPU)


def test_the_peer_decides_how_much_error_is_allowed():
    (operator,) = segment_attention.OPERATORS
    case = operator.cases[0]
    assert not gate(operator, case, torch.bfloat16, CPU)
    # the weights of any attention in 16 bits are rounded, those of the definition are not
    assert gate(dataclasses.replace(operator, peer=None), case, torch.bfloat16, CPU)


def test_a_row_for_every_implementation_and_mode(operator):
    def refuse(inputs):
        raise Unavailable("no such GPU")

    compared = dataclasses.replace(
        operator, baselines={"twice": lambda inputs: operator.eager, "other": refuse}
    )
    found = rows(compared, operator.cases[0])
    assert found[0] == {"implementation": "other", "unavailable": "no such GPU"}
    measured = {(row["implementation"], row["mode"]) for row in found[1:]}
    modes = ("forward", "backward", "training")
    assert measured == {(way, mode) for way in ("scdd", "eager", "twice") for mode in modes}
    work = operator.cases[0].work(4)
    for row in found[1:]:
        assert 0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"]
        wanted = {
            "forward": work.forward_bytes,
            "backward": work.backward_bytes,
            "training": sum(work[:2]),
        }
        assert row["bytes"] == wanted[row["mode"]]
        share = row["bytes"] / (1e-6 * row["p50_us"]) / CEILINGS.copy_bytes_per_s
        assert row["of_copy"] == pytest.approx(share, rel=0.02, abs=2e-4)


def test_implementations_take_turns():
    order = []
    named = {name: (lambda name=name: order.append(name)) for name in "ab"}
    timed = spreads(named, Clock(CPU), rounds=6, seconds=60)
    assert order == 3 * ["a"] + 3 * ["b"] + 6 * ["a", "b"]
    assert timed["a"].rounds == 6


def test_the_command_writes_json_lines(tmp_path):
    out = tmp_path / "results" / "rows.jsonl"
    command = [sys.executable, BENCH / "run.py", "--device", "cpu", "--no-compile", "--rounds", "5"]
    command += ["--operator", "modulate", "--case", "C=512", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert line["operator"] == "modulate"
        assert {"device", "torch", "triton", "commit", "driver", "date", "p50_us"} <= line.keys()
    assert [json.loads(line) for line in done.stdout.splitlines()] == lines


def test_no_case_starts_after_the_deadline():
    command = [sys.executable, BENCH / "run.py", "--device", "cpu", "--no-compile", "--deadline", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all("deadline" in json.loads(line)["skipped"] for line in done.stdout.splitlines())
