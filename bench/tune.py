"""Time the candidate tiles of every operator in place of those that it ships with.

    python bench/tune.py --out tiles.jsonl                # every operator, on the GPU
    python bench/tune.py --operator modulate --write      # and put what is faster into kernels/modulate/tiles.py
    TRITON_INTERPRET=1 python bench/tune.py --device cpu --operator modulate --case C=512   # tests this program

What a `tiles.py` must have for it:

- Choosers: public functions whose names begin with `choose`. They return a frozen tile, and launchers call them
  through the module (``tiles.choose(...)``) at every launch.
- ``CANDIDATES``: a mapping from a place to the entries that may stand there. A place is a tuple: the name of a
  table of the module, then the keys or positions that lead to one entry of it. ``("_TABLE", (512, 2))`` is
  ``_TABLE[512, 2]``, ``("_FORWARD",)`` the whole of ``_FORWARD``. Entries are what the table holds there: a tile,
  or a tuple of numbers that a chooser makes one of. Whether the shipped entry is among them does not matter.

Nothing else is agreed on. The calls of all choosers are recorded while the operator runs forward and backward; a
candidate is tried where it changes what one of these calls returns, in forward, backward or both, whichever it
decides. So one operator may use the tiles of several.

A candidate is first gated: its results may be off the truth by twice as much as those of the shipped tile. All that
pass take turns, and a row (JSON) tells of each: operator, case, dtype, mode, place, entry, chooser (the recorded
call), tile, p20_us, p50_us, p80_us, ratio (p50 over that of the shipped tile: under 1 is faster), environment.
A place is won by the entry with the least geometric mean of its ratios over all cases that use the place, if that
mean is under 0.98, no case has a ratio over 1.02, and the entry passed the gate in each. `--write` changes the
numbers of the table in `tiles.py` to those of the winners, and nothing else.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from registry import MODULES, operators
from run import jobs, writer
from scdd.kernels._dispatch import INTERPRET
from timing.clock import Clock, Spread, spreads
from timing.environment import environment
from timing.gate import results, standard
from timing.measure import calls as timed_calls
from tuning.places import Call, Place, decided, recorded, trials
from tuning.rewrite import NotLiteral, rewritten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from operators.case import Case, Operator
    from timing.gate import Standard

Ratios = dict[Place, dict[object, list[float]]]
_WINS, _LOSES = 0.98, 1.02


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
    parser.add_argument("--rounds", type=int, default=50, help="calls of each candidate")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for the candidates of one place")
    parser.add_argument(
        "--deadline", type=float, default=float("inf"), help="start none after so many seconds"
    )
    parser.add_argument(
        "--warm", action="store_true", help="only compile what would be timed, into the caches"
    )
    parser.add_argument("--write", action="store_true", help="put the winners into tiles.py")
    parser.add_argument("--out", type=Path, help="append the lines to this file as well")
    options = parser.parse_args()
    if torch.device(options.device).type == "cpu" and not INTERPRET:
        parser.error("there are no tiles to choose on a CPU; set TRITON_INTERPRET=1 to test this program")
    return options


def phases(operator: Operator, inputs: dict[str, Any]) -> dict[str, list[Call]]:
    """The calls of choosers in a forward without gradients, in one with them, and in a backward."""
    with recorded() as forward, torch.no_grad():
        operator.ours(**inputs)
    found = {"forward": list(forward)}
    if operator.differentiable and any(getattr(t, "requires_grad", False) for t in inputs.values()):
        with recorded() as training:
            backward = timed_calls(operator.ours, inputs, ("backward",))["backward"]
        with recorded() as behind:
            backward()
        found |= {"training": list(training), "backward": list(behind)}
    return found


def mode_of(place: Place, entries: Iterable[object], found: dict[str, list[Call]]) -> str:
    """The shortest thing to time in which `entries` decide all that they decide."""
    used = {phase for phase, calls in found.items() for entry in entries if decided(place, entry, calls)}
    if used == {"backward"}:
        return "backward"
    return "training" if "backward" in used or "forward" not in used else "forward"


def passed(
    operator: Operator,
    inputs: dict[str, Any],
    place: Place,
    entries: dict[object, Any],
    allowed: Standard | None,
) -> Iterator[tuple[object, list[str]]]:
    """Each entry with what is wrong with its results; where nothing is `allowed`, it only has to run."""
    for entry in entries:
        try:
            with place.holding(entry):
                found = results(operator.ours, inputs, operator.differentiable)
            yield entry, allowed.wrong(found) if allowed else []
        except Exception as error:
            # most likely more registers or shared memory than there are
            yield entry, [f"{type(error).__name__}: {str(error)[:300]}"]


def under(place: Place, entry: object, call: Callable[[], object]) -> None:
    """Call with another entry."""
    with place.holding(entry):
        call()


def tune(
    operator: Operator,
    case: Case,
    dtype: torch.dtype,
    clock: Clock,
    options: argparse.Namespace,
    ratios: Ratios,
) -> Iterator[dict[str, Any]]:
    """Rows of one case; what goes wrong is a row, too. Adds to `ratios`."""
    inputs = case.inputs(dtype, clock.device)
    found = phases(operator, inputs)
    tried = trials(call for calls in found.values() for call in calls)
    if not tried:
        yield {"skipped": "it has no choice of tiles here"}
        return
    allowed = None if options.warm else standard(operator, case, inputs, dtype, operator.ours)
    for place, entries in tried.items():
        subject = {"place": f"{place.module.__name__}: {place}"}
        sound = []
        for entry, wrong in passed(operator, inputs, place, entries, allowed):
            if wrong:
                ratios[place][entry].append(math.inf)
                yield subject | {"entry": repr(entry), "error": wrong}
            else:
                sound.append(entry)
        if not sound or options.warm:
            continue
        mode = mode_of(place, sound, found)
        call = timed_calls(operator.ours, inputs, (mode,))[mode]
        named = {entry: partial(under, place, entry, call) for entry in [place.entry, *sound]}
        timed = spreads(named, clock, rounds=options.rounds, seconds=options.seconds)
        shipped = entries[sound[0]][0]
        for entry, spread in timed.items():
            chosen, tile = entries.get(entry, (shipped, shipped.tile()))
            ratio = spread.p50 / timed[place.entry].p50
            if entry != place.entry:
                ratios[place][entry].append(ratio)
            yield subject | {"entry": repr(entry), "shipped": entry == place.entry, "mode": mode} | {
                "chooser": str(chosen), "tile": repr(tile)
            } | _times(spread, ratio)  # fmt: skip


def _times(spread: Spread, ratio: float) -> dict[str, Any]:
    times = {f"{name}_us": round(value, 2) for name, value in spread._asdict().items() if name != "rounds"}
    return times | {"rounds": spread.rounds, "ratio": round(ratio, 4)}


def winners(ratios: Ratios) -> dict[Place, tuple[object, float]]:
    """The best entry of each place that is better than what is shipped, and its mean ratio."""
    found = {}
    for place, entries in ratios.items():
        cases = max(map(len, entries.values()))
        # an entry that some case did not tell from the shipped one has no say there, and counts as equal
        means = {
            entry: math.exp(sum(map(math.log, values)) / cases)
            for entry, values in entries.items()
            if max(values) <= _LOSES
        }
        best = min(means, key=means.__getitem__, default=None)
        if best is not None and means[best] < _WINS:
            found[place] = best, means[best]
    return found


def write(won: dict[Place, tuple[object, float]]) -> list[str]:
    """Put the winners into their files; says what could not be."""
    left = []
    for place, (entry, _) in won.items():
        path = Path(str(place.module.__file__))
        try:
            path.write_text(rewritten(path.read_text(), place.path, place.entry, entry))
        except NotLiteral as reason:
            left.append(f"{place.module.__name__}: {place} = {entry!r} is to be written by hand: {reason}")
    return left


def table(ratios: Ratios, won: dict[Place, tuple[object, float]]) -> str:
    """One line a place: what is shipped, the best candidate and its worst and mean ratio."""
    lines = ["| place | shipped | best | ratio in each case | won |", "|---|---|---|---|---|"]
    for place, entries in ratios.items():
        best = won[place][0] if place in won else min(entries, key=lambda entry: max(entries[entry]))
        seen = " ".join(f"{ratio:.3f}" for ratio in entries[best])
        name = place.module.__name__.split(".")[-2]
        won_by = f"{won[place][1]:.3f}" if place in won else ""
        lines.append(f"| {name} {place} | {place.entry!r} | {best!r} | {seen} | {won_by} |")
    return "\n".join(lines)


def main() -> int:
    """Tune all that was asked for; 1 if a case failed as a whole."""
    options, start, sound = arguments(), time.monotonic(), True
    clock, write_row = Clock(torch.device(options.device)), writer(options.out)
    surroundings = environment(clock.device)
    ratios: Ratios = defaultdict(lambda: defaultdict(list))
    for operator, case, dtype in jobs(options):
        subject = {"operator": operator.name, "case": case.label, "dtype": str(dtype).removeprefix("torch.")}
        if time.monotonic() - start > options.deadline:
            write_row(
                subject | {"skipped": f"the deadline of {options.deadline:g} s had passed"} | surroundings
            )
            continue
        try:
            for row in tune(operator, case, dtype, clock, options, ratios):
                write_row(subject | row | surroundings)
        except Exception as error:
            sound = False
            write_row(subject | {"error": [f"{type(error).__name__}: {str(error)[:300]}"]} | surroundings)
    won = winners(ratios)
    print(table(ratios, won))
    if options.write:
        print(*write(won), sep="\n")
    return int(not sound)


if __name__ == "__main__":
    sys.exit(main())
