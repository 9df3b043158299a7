"""One measurement in a fresh process: `python measure.py '{"contender": ..., ...}' FOLDER SECONDS` prints one line of JSON.

Time counts from the first request for a batch to the end of the first whole window after `SECONDS`, or to the end of
that epoch; nothing is left out, so that a loader with a large window pays for filling it. Opening the file is not
counted. A cold run lasts one epoch at most: a second one would find the pages of the first.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from cases import Case, Stream, files_of
from pages import pages

PACKAGES = "scdd annbatch scDataset scvi-tools anndata h5py zarr zarrs numcodecs hdf5plugin scipy numpy torch"


class Usage(NamedTuple):
    """Counters of this process and of the machine."""

    wall: float
    cpu: float  # seconds of all threads of this process
    disk: int  # bytes this process made the disk deliver
    busy: float  # seconds of all cores, of all processes

    @classmethod
    def now(cls) -> Usage:
        """Read them."""
        fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        busy = sum(fields[:3]) + sum(fields[5:8])  # user, nice, system, interrupts, stolen
        lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return cls(
            time.perf_counter(),
            time.process_time(),
            int(lines["read_bytes"]),
            busy / os.sysconf("SC_CLK_TCK"),
        )


def forget_peak() -> None:
    """Count the peak from here: what opening and checking took is over."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    """Most memory that this process has held since, with mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def run(stream: Stream, seconds: float, *, once: bool) -> dict[str, Any]:
    """Draw batches until `seconds` have passed and a window has ended."""
    begin, cells, first, done = Usage.now(), 0.0, 0.0, False
    while not done:
        windows, in_epoch = 0, 0.0
        batches = (
            stream.epoch()
        )  # named, so that it is not closed, and its threads joined, before the clock is read
        for batch in batches:
            first = first or time.perf_counter() - begin.wall
            in_epoch += batch if isinstance(batch, float) else batch.shape[0]
            if in_epoch // stream.window > windows:
                windows = in_epoch // stream.window
                if time.perf_counter() - begin.wall > seconds:
                    done = True
                    break
        cells += in_epoch
        done = done or once or time.perf_counter() - begin.wall > seconds
    return described(stream, begin, Usage.now(), cells) | {"first_batch_s": round(first, 4)}


def described(stream: Stream, begin: Usage, end: Usage, cells: float) -> dict[str, Any]:
    """What is reported of a measurement."""
    wall, cpu = end.wall - begin.wall, end.cpu - begin.cpu
    return {
        "cells": round(cells),
        "wall_s": round(wall, 4),
        "cpu_s": round(cpu, 4),
        "cells_per_s": round(cells / wall, 1),
        "cores": round(cpu / wall, 3),
        "cells_per_cpu_s": round(cells / max(cpu, 1e-9), 1),
        "disk_mb": round((end.disk - begin.disk) / 1e6, 1),
        "other_cores": round(max(0.0, end.busy - begin.busy - cpu) / wall, 2),
        "peak_mb": round(peak_megabytes()),
        "block": stream.block,
        "window": stream.window,
        "note": stream.note,
    }


def opened(case: Case, folder: Path) -> Stream:
    """The contender of a case, with its file opened."""
    from limits import LIMITS
    from peers import PEERS

    if case.contender in PEERS:
        return PEERS[case.contender].open(case.path(folder), case)
    if case.contender in LIMITS:
        return LIMITS[case.contender](case.path(folder), case)
    from ours import OURS

    return OURS[case.contender](folder, case)


def versions() -> str:
    """Of everything that takes part, as this interpreter has it."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES.split():
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    """Measure the case given."""
    case, folder, seconds = Case(**json.loads(sys.argv[1])), Path(sys.argv[2]), float(sys.argv[3])
    begin = time.perf_counter()
    stream = opened(case, folder)
    open_s = time.perf_counter() - begin
    paths = stream.files or (() if case.source == "memory" else (case.path(folder),))
    files = [file for path in paths for file in files_of(path)]
    with pages(files, case.cache) as locked:
        forget_peak()
        result = run(stream, seconds, once=case.cache == "cold")
    result |= {"open_s": round(open_s, 3), "locked_mb": locked, "versions": versions()}
    print(json.dumps(case.as_dict() | result))


if __name__ == "__main__":
    main()
