"""Time the operators of `scdd.kernels` against PyTorch: first right, then fast.

    python bench/run.py                              # every operator, on the GPU if there is one
    python bench/run.py --operator modulate --shape 512x256 --dtype float32 --device cpu

Each shape is first checked against float64, and no speed is printed for an operator that is wrong. The
implementations then take turns, so that a machine that slows down slows all of them. One JSON line a result.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import torch
from registry import OPERATORS, Operator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from registry import Function
    from torch import Tensor

# Larger than the second-level cache of any GPU, so that every run finds its inputs in main memory.
_CACHE_BYTES = 256 * 2**20
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}


def backward(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of all inputs, from the outputs themselves as cotangents."""
    return torch.autograd.grad(outputs, inputs, [out.detach() for out in outputs])


def gate(operator: Operator, inputs: list[Tensor]) -> list[str]:
    """Name every result whose error is over twice that of PyTorch in the same dtype."""

    def results(function: Function, arguments: list[Tensor]) -> tuple[Tensor, ...]:
        outputs = function(*arguments)
        # the same cotangents for all, so not the outputs: those are rounded, each in its own way
        angles = torch.arange(outputs[0].numel(), device=outputs[0].device).view_as(outputs[0])
        cotangents = [angles.cos().to(inputs[0].dtype).to(out.dtype) for out in outputs]
        return *outputs, *torch.autograd.grad(outputs, arguments, cotangents)

    exact = results(operator.eager, [tensor.detach().double().requires_grad_() for tensor in inputs])
    theirs, ours = results(operator.eager, inputs), results(operator.ours, inputs)
    wrong = []
    for index, truth in enumerate(exact):
        found = (ours[index].double() - truth).norm().item()
        allowed = 2 * (theirs[index].double() - truth).norm().item()
        allowed += 4 * torch.finfo(torch.float32).eps * truth.norm().item()
        # not `found > allowed`, which NaN would pass
        if not found <= allowed:
            wrong.append(f"result {index}: error {found:.3g}, {allowed:.3g} allowed")
    return wrong


class Clock:
    """Microseconds that a call takes on one device."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._flush = torch.empty(_CACHE_BYTES, dtype=torch.int8, device=device)
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def __call__(self, function: Callable[[], object]) -> float:
        """Time one call, with cold caches on a GPU."""
        if not self._cuda:
            start = time.perf_counter()
            function()
            return 1e6 * (time.perf_counter() - start)
        # while the flush runs the launches queue behind it, so that their own cost is not timed
        self._flush.zero_()
        self._events[0].record()
        function()
        self._events[1].record()
        torch.cuda.synchronize()
        return 1e3 * self._events[0].elapsed_time(self._events[1])


def percentiles(
    functions: dict[str, Callable[[], object]], clock: Clock, rounds: int
) -> dict[str, tuple[float, float, float]]:
    """The 20th, 50th and 80th percentile of each function, all taking turns."""
    for function in functions.values():
        for _ in range(5):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(clock(function))
    found = {}
    for name, samples in times.items():
        deciles = quantiles(samples, n=10)
        found[name] = (deciles[1], deciles[4], deciles[7])
    return found


def copy_ceiling(device: torch.device, clock: Clock) -> float:
    """Bytes a second that a plain copy moves, reading and writing counted."""
    source = torch.empty(_COPY_BYTES[device.type], dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    (_, median, _) = percentiles({"copy": lambda: target.copy_(source)}, clock, rounds=20)["copy"]
    return 2 * source.numel() / (1e-6 * median)


def measure(
    operator: Operator, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, clock: Clock,
    *, compiled: bool, rounds: int,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Check one operator at one shape, then time it forward and in training."""
    inputs = operator.make_inputs(shape, dtype, device)
    wrong = gate(operator, inputs)
    if wrong:
        yield {"error": wrong}
        return
    implementations = {"scdd": operator.ours, "eager": operator.eager}
    if compiled:
        torch.compiler.reset()
        implementations["compile"] = torch.compile(operator.eager)
    detached = [tensor.detach() for tensor in inputs]
    modes = {
        "forward": {name: (lambda f=f: f(*detached)) for name, f in implementations.items()},
        "training": {name: (lambda f=f: backward(f(*inputs), inputs)) for name, f in implementations.items()},
    }
    forward, gradient = operator.elements(shape)
    elements = {"forward": forward, "training": forward + gradient}
    for mode, functions in modes.items():
        moved = elements[mode] * dtype.itemsize
        for name, (p20, p50, p80) in percentiles(functions, clock, rounds).items():
            times = {"p20_us": round(p20, 2), "p50_us": round(p50, 2), "p80_us": round(p80, 2)}
            rate = {"bytes": moved, "bytes_per_s": round(moved / (1e-6 * p50))}
            yield {"implementation": name, "mode": mode, **times, **rate}


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a figure means nothing without."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    threads = None if device.type == "cuda" else torch.get_num_threads()
    return {
        "device": name or platform.machine(), "threads": threads,
        "torch": torch.__version__, "triton": triton, "commit": commit(),
    }  # fmt: skip


def commit() -> str | None:
    """Describe the commit that is checked out, with "-dirty" if files differ from it."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=10")
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--operator", choices=[op.name for op in OPERATORS], help="default: all")
    parser.add_argument("--shape", help="one shape, such as 512x256; default: those of the registry")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--no-compile", action="store_true", help="leave out the torch.compile baseline")
    return parser.parse_args()


def main() -> int:
    """Print one JSON line a result; exit 1 if an operator was wrong."""
    options = arguments()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    clock = Clock(device)
    surroundings = environment(device) | {"copy_bytes_per_s": round(copy_ceiling(device, clock))}
    failed = False
    for operator in OPERATORS:
        if options.operator not in {None, operator.name}:
            continue
        shapes = (tuple(map(int, options.shape.split("x"))),) if options.shape else operator.shapes
        for shape in shapes:
            subject = {"operator": operator.name, "shape": shape, "dtype": options.dtype}
            for result in measure(
                operator, shape, dtype, device, clock, compiled=not options.no_compile, rounds=options.rounds
            ):
                failed |= "error" in result
                print(json.dumps(subject | result | surroundings), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
