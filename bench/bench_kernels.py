"""The operators of `scdd.kernels` under pytest-benchmark: ``pytest bench -k kernels --benchmark-only``.

A front for people; `bench/run.py` measures the same cases with the implementations taking turns, and writes
the rows that are kept. Large cases need a GPU. An operator that is wrong fails here, and is not timed.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from registry import operators
from timing.gate import gate
from timing.measure import MODES, calls, implementations

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _subjects():
    """Every operator and case that this machine can time, and each of its implementations and modes."""
    for operator in operators():
        dtype = operator.dtypes[0] if DEVICE.type == "cuda" else operator.cpu_dtype
        for case in operator.cases:
            if DEVICE.type == "cpu" and not case.small:
                continue
            for mode in MODES if operator.differentiable else MODES[:1]:
                for implementation in ("scdd", "eager", *operator.baselines):
                    name = f"{operator.name}-{case.label.replace(' ', '-')}-{mode}-{implementation}"
                    yield pytest.param(operator, case, getattr(torch, dtype), mode, implementation, id=name)


@cache
def _verdict(operator, case, dtype):
    return tuple(gate(operator, case, dtype, DEVICE))


@pytest.mark.parametrize(("operator", "case", "dtype", "mode", "implementation"), list(_subjects()))
def test_kernels(benchmark, operator, case, dtype, mode, implementation):
    """Time one implementation, if the operator is right."""
    wrong = _verdict(operator, case, dtype)
    assert not wrong, f"{operator.name} is wrong, so it is not timed: {wrong}"
    inputs = case.inputs(dtype, DEVICE)
    ways, missing = implementations(operator, inputs, compiled=False)
    if implementation in missing:
        pytest.skip(missing[implementation])
    found = calls(ways[implementation], inputs, (mode,))
    if mode not in found:
        pytest.skip(f"{operator.name} has no gradients here")
    call = found[mode]

    def run():
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{operator.name} {case.label} {mode}"
    benchmark.extra_info |= {"work": case.work(dtype.itemsize)._asdict()}
    # a fixed number: calibrating to the finest grain would take minutes for every case
    benchmark.pedantic(run, rounds=10, warmup_rounds=2)
