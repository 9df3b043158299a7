"""One operator at one size: check it, then time it beside all it is compared with."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from operators.case import Unavailable

from .clock import Spread, peak_bytes, spreads
from .gate import cotangent, gate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from operators.case import Case, Function, Operator, Work

    from .ceilings import Ceilings
    from .clock import Clock

MODES = ("forward", "backward", "training")


def implementations(
    operator: Operator, inputs: dict[str, Any], *, compiled: bool
) -> tuple[dict[str, Function], dict[str, str]]:
    """Every way to compute `operator` by name, and why the others are not to be had."""
    ways: dict[str, Function] = {"scdd": operator.ours, "eager": operator.eager}
    if compiled:
        torch.compiler.reset()
        ways["compile"] = torch.compile(operator.eager)
    missing = {}
    for name, make in operator.baselines.items():
        try:
            ways[name] = make(inputs)
        except Unavailable as reason:
            missing[name] = str(reason)
    return ways, missing


def calls(
    function: Function, inputs: dict[str, Any], modes: tuple[str, ...]
) -> dict[str, Callable[[], object]]:
    """What to time in each mode; a mode that the function has not (no gradients) is left out."""
    found: dict[str, Callable[[], object]] = {}
    wanted = [t for t in inputs.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    detached = {name: t.detach() if isinstance(t, torch.Tensor) else t for name, t in inputs.items()}
    if "forward" in modes:
        found["forward"] = partial(_forward, function, detached)
    if not wanted or modes == ("forward",):
        return found
    outputs = [out for out in function(**inputs) if out.requires_grad]
    cotangents = [cotangent(out) for out in outputs]
    if "backward" in modes:
        found["backward"] = partial(torch.autograd.grad, outputs, wanted, cotangents, retain_graph=True)
    if "training" in modes:
        found["training"] = partial(_training, function, inputs, wanted, cotangents)
    return found


def _forward(function: Function, inputs: dict[str, Any]) -> None:
    with torch.no_grad():
        function(**inputs)


def _training(function: Function, inputs: dict[str, Any], wanted: list[Any], cotangents: list[Any]) -> None:
    outputs = [out for out in function(**inputs) if out.requires_grad]
    torch.autograd.grad(outputs, wanted, cotangents)


def measure(
    operator: Operator, case: Case, dtype: torch.dtype, clock: Clock, ceilings: Ceilings,
    *, compiled: bool, rounds: int, seconds: float,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield a row for each implementation and mode, or one that says what is wrong."""
    wrong = gate(operator, case, dtype, clock.device)
    if wrong:
        yield {"error": wrong}
        return
    inputs = case.inputs(dtype, clock.device)
    ways, missing = implementations(operator, inputs, compiled=compiled)
    for name, reason in missing.items():
        yield {"implementation": name, "unavailable": reason}
    modes = MODES if operator.differentiable else ("forward",)
    work = case.work(dtype.itemsize)
    # one mode after the other: what a backward keeps alive must not crowd the next
    for mode in modes:
        timed = {}
        for name, function in ways.items():
            try:
                if call := calls(function, inputs, (mode,)).get(mode):
                    timed[name] = call
            except torch.OutOfMemoryError:
                yield {"implementation": name, "mode": mode, "unavailable": "out of memory"}
        peaks = {name: peak_bytes(call, clock.device) for name, call in timed.items()}
        for name, spread in spreads(timed, clock, rounds=rounds, seconds=seconds).items():
            row = {"implementation": name, "mode": mode, "peak_bytes": peaks[name]}
            yield row | _times(spread) | _rates(case, work, mode, spread, ceilings)


def _times(spread: Spread) -> dict[str, Any]:
    named = {"p20_us": spread.p20, "p50_us": spread.p50, "p80_us": spread.p80}
    return {name: round(value, 2) for name, value in named.items()} | {"rounds": spread.rounds}


def _rates(case: Case, work: Work, mode: str, spread: Spread, ceilings: Ceilings) -> dict[str, Any]:
    """Bytes, operations and units a second, and what share of this machine's limits that is."""
    forward, backward = mode != "backward", mode != "forward"
    moved = forward * work.forward_bytes + backward * work.backward_bytes
    flops = forward * work.forward_flops + backward * work.backward_flops
    per_s = 1 / (1e-6 * spread.p50)
    row = {
        "bytes": moved,
        "bytes_per_s": round(moved * per_s),
        "of_copy": moved * per_s / ceilings.copy_bytes_per_s,
    }
    if flops:
        row |= {"flops": flops, "flops_per_s": round(flops * per_s)}
        row |= {"of_matmul": flops * per_s / ceilings.matmul_flops_per_s}
    if case.unit:
        row |= {f"{case.unit}_per_s": round(case.units * per_s)}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
