"""The table, from the rows that were measured."""

from __future__ import annotations

from collections import defaultdict
from math import isnan
from statistics import median
from typing import TYPE_CHECKING, Any

from peers import PEERS
from targets import BATCHES, TARGETS, Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cases import Case

Row = dict[str, Any]


class Results:
    """Rows by case and round."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows: dict[Case, dict[int, Row]] = defaultdict(dict)
        for row in rows:
            self.rows[row["case"]][row["round"]] = row

    def middle(self, case: Case, column: str) -> float:
        """Median over the rounds; NaN if there are none."""
        values = [row[column] for row in self.rows.get(case, {}).values()]
        return median(values) if values else float("nan")

    def ratio(self, ours: Case, peer: Case, column: str) -> float:
        """Median over the rounds in which both ran."""
        a, b = self.rows.get(ours, {}), self.rows.get(peer, {})
        values = [a[k][column] / b[k][column] for k in a.keys() & b.keys()]
        return median(values) if values else float("nan")

    def limit(self, target: Target, batch: int) -> Case | None:
        """The slowest of what bounds a target."""
        found = [target.case(name, batch) for name in target.limits]
        found = [case for case in found if case in self.rows]
        return min(found, key=lambda case: self.middle(case, "cells_per_s"), default=None)


def verdict(found: float, wanted: float) -> str:
    """Met or missed, or that it was not measured."""
    return "not run" if isnan(found) else "met" if found >= wanted else "**missed**"


def claims(results: Results) -> Iterator[str]:
    """One line for each claim of each target."""
    yield "| source | output | cache | batch | ours | cells/s | against | target | ratio | CPU ratio | |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for target in TARGETS:
        for batch in BATCHES:
            ours = target.case(target.ours, batch)
            speed = results.middle(ours, "cells_per_s")
            if isnan(speed) and all(target.case(p, batch) not in results.rows for p in target.ratios):
                continue
            head = f"| {target.source} | {target.output} | {target.cache} | {batch} | {target.ours} | {number(speed)} "
            for peer, wanted in target.ratios.items():
                yield head + against(results, ours, target.case(peer, batch), wanted, f"{wanted:g}x")
            if target.cells_per_s:
                yield f"{head}| cells/s | {number(target.cells_per_s)} | | | {verdict(speed, target.cells_per_s)} |"
            limit = results.limit(target, batch)
            if limit:
                yield head + against(results, ours, limit, target.of_limit, f"{target.of_limit or 0:.0%}")


def against(results: Results, ours: Case, other: Case, wanted: float | None, target: str) -> str:
    """The cells of a line that compare with a peer or with the limit."""
    ratio = results.ratio(ours, other, "cells_per_s")
    cpu = results.ratio(ours, other, "cells_per_cpu_s")
    speed = number(results.middle(other, "cells_per_s"))
    ratios = " | ".join("-" if isnan(value) else f"{value:.2f}" for value in (ratio, cpu))
    met = verdict(ratio, wanted) if wanted else ""
    return f"| {other.contender} {speed} | {target if wanted else ''} | {ratios} | {met} |"


def contenders(results: Results) -> Iterator[str]:
    """One line for each case measured."""
    yield (
        "| source | output | cache | batch | contender | cells/s (least, most) | cores | cells/CPU-s | peak MB "
        "| first batch s | disk MB/s | others' cores | rounds | block / window | |"
    )
    yield "|" + "---|" * 15
    order = lambda case: (case.cache != "warm", case.source, case.output, case.batch, case.contender)  # noqa: E731
    for case in sorted(results.rows, key=order):
        rounds = list(results.rows[case].values())
        speeds = [row["cells_per_s"] for row in rounds]
        disk = median(row["disk_mb"] / row["wall_s"] for row in rounds)
        middle = {k: results.middle(case, k) for k in ("cores", "peak_mb", "first_batch_s", "other_cores")}
        yield (
            f"| {case.source} | {case.output} | {case.cache} | {case.batch} | {case.contender} "
            f"| {number(median(speeds))} ({number(min(speeds))}, {number(max(speeds))}) | {middle['cores']:.2f} "
            f"| {number(results.middle(case, 'cells_per_cpu_s'))} | {number(middle['peak_mb'])} "
            f"| {middle['first_batch_s']:.2f} | {disk:.0f} | {middle['other_cores']:.2f} | {len(rounds)} "
            f"| {rounds[-1]['block']:.0f} / {rounds[-1]['window']:,.0f} | {rounds[-1]['note']} |"
        )


def number(value: float) -> str:
    """Three figures are all that a shared machine can tell."""
    if isnan(value):
        return "-"
    digits = len(str(int(value)))
    return f"{round(value, min(0, 3 - digits)):,.0f}"


def report(rows: list[Row], *, machine: str, atlas: str, seconds: float) -> str:
    """The whole document."""
    results = Results(rows)
    peers = [f"- `{name}`: {peer.what}" for name, peer in PEERS.items()]
    versions = sorted({row["versions"] for row in rows})
    return "\n".join(
        [
            "# Loader benchmark",
            "",
            f"{machine}. {atlas}. Written by `python bench/loader/run.py`; every measurement is in loader.csv.",
            "",
            f"Each measurement is a process of its own that draws batches for {seconds:g} s and to the end of a "
            "window, the first batch included, the opening of the file not. Contenders of one source take turns; "
            "speeds are medians over rounds, ratios are medians of the rounds' own ratios. *CPU ratio* compares "
            "cells per processor second of all threads, which other work on the machine disturbs least. *Cold* "
            "means that the file's pages were dropped from this machine's cache and that one epoch was read at "
            "most. The limit is the slowest of reading the file, decoding each chunk once on all cores, and "
            "copying what a batch holds.",
            "",
            "## Targets",
            "",
            *claims(results),
            "",
            "## Measurements",
            "",
            *contenders(results),
            "",
            "## Contenders",
            "",
            "- `scdd`: blocks of its own choice; `scdd-32`, `-64`, `-512`: blocks as the peer's; `scdd-cache`: "
            "packed cache, single rows in random order",
            *peers,
            "",
            "## Versions",
            "",
            *(f"- {line}" for line in versions),
            "",
        ]
    )
