"""Time the operators of `scdd.kernels` against PyTorch: first right, then fast.

    python bench/run.py                                   # every operator, on the GPU if there is one
    python bench/run.py --operator modulate --case 512 --dtype float32 --device cpu --no-compile

Each case is first checked against a wider dtype, and no speed is printed for an operator that is wrong. The
implementations then take turns, so that a machine that slows down slows all of them. One JSON line a result;
exit status 1 if an operator was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from registry import MODULES, operators
from timing.ceilings import measure as measure_ceilings
from timing.clock import Clock
from timing.environment import environment
from timing.measure import calls, implementations, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from operators.case import Case, Operator


def arguments() -> argparse.Namespace:
    """Read the command line."""
    known = [op.name for op in operators()]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--module", choices=MODULES, action="append", help="may be repeated; default: all")
    parser.add_argument("--operator", choices=known, action="append", help="may be repeated; default: all")
    parser.add_argument("--case", help="only cases whose label holds this")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="default: those of the operator"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--large", action="store_true", help="large cases on a CPU, too")
    parser.add_argument("--rounds", type=int, default=50, help="calls of each implementation")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for one case and mode")
    parser.add_argument("--no-compile", action="store_true", help="leave out the torch.compile baseline")
    parser.add_argument(
        "--deadline", type=float, default=float("inf"), help="start no case after so many seconds"
    )
    parser.add_argument(
        "--warm", action="store_true", help="only compile what would be timed, into the caches"
    )
    parser.add_argument("--out", type=Path, help="append the lines to this file as well")
    return parser.parse_args()


def jobs(options: argparse.Namespace) -> Iterator[tuple[Operator, Case, torch.dtype]]:
    """Every operator, case and dtype that was asked for, in the order in which a deadline should find them.

    On a GPU each operator's large cases in its first dtype come before any other, of all operators.
    """
    found = list(_asked_for(options))
    if torch.device(options.device).type != "cpu":
        found.sort(key=lambda job: (job[1].small, str(job[2]) != f"torch.{job[0].dtypes[0]}"))
    yield from found


def _asked_for(options: argparse.Namespace) -> Iterator[tuple[Operator, Case, torch.dtype]]:
    cpu = torch.device(options.device).type == "cpu"
    for operator in operators(tuple(options.module or MODULES)):
        if options.operator and operator.name not in options.operator:
            continue
        dtypes = (options.dtype,) if options.dtype else (operator.cpu_dtype,) if cpu else operator.dtypes
        for case in operator.cases:
            if (options.case and options.case not in case.label) or (
                cpu and not case.small and not options.large
            ):
                continue
            for dtype in dtypes:
                yield operator, case, getattr(torch, dtype)


def warm(operator: Operator, case: Case, dtype: torch.dtype, device: torch.device, *, compiled: bool) -> None:
    """Compile everything that is to be timed."""
    inputs = case.inputs(dtype, device)
    ways, _ = implementations(operator, inputs, compiled=compiled)
    modes = ("forward", "training") if operator.differentiable else ("forward",)
    for function in ways.values():
        for call in calls(function, inputs, modes).values():
            call()


def timed(
    operator: Operator, case: Case, dtype: torch.dtype, options: argparse.Namespace, clock: Clock,
    ceilings: dict[torch.dtype, Any],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows of one case; what goes wrong is a row, too."""
    if dtype not in ceilings:
        ceilings[dtype] = measure_ceilings(clock.device, dtype, clock)
    limits = {name: round(value) for name, value in ceilings[dtype]._asdict().items()}
    settings = {"compiled": not options.no_compile, "rounds": options.rounds, "seconds": options.seconds}
    try:
        for row in measure(operator, case, dtype, clock, ceilings[dtype], **settings):
            yield row | limits
    except Exception as error:
        # one broken case must not cost a GPU's hour the others
        yield {"error": [f"{type(error).__name__}: {str(error)[:300]}"]}


def writer(path: Path | None) -> Callable[[dict[str, Any]], None]:
    """Print rows, and append them to a file where one is named."""

    def write(row: dict[str, Any]) -> None:
        line = json.dumps(row)
        print(line, flush=True)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(line + "\n")

    return write


def main() -> int:
    """Measure all that was asked for; 1 if an operator was wrong."""
    options, start = arguments(), time.monotonic()
    clock, write = Clock(torch.device(options.device)), writer(options.out)
    surroundings, ceilings, sound = environment(clock.device), {}, True
    for operator, case, dtype in jobs(options):
        subject = {"operator": operator.name, "case": case.label, "dtype": str(dtype).removeprefix("torch.")}
        if time.monotonic() - start > options.deadline:
            write(subject | {"skipped": f"the deadline of {options.deadline:g} s had passed"} | surroundings)
            continue
        if options.warm:
            warm(operator, case, dtype, clock.device, compiled=not options.no_compile)
            continue
        for row in timed(operator, case, dtype, options, clock, ceilings):
            sound &= "error" not in row
            write(subject | row | surroundings)
    return int(not sound)


if __name__ == "__main__":
    sys.exit(main())
