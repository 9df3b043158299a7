"""The loader against its peers: prints the table of targets and writes docs/results/loader.md and .csv.

    python bench/loader_atlas.py /data/atlas
    /envs/annbatch/bin/python bench/loader/collection.py /data/atlas/raw.h5ad /data/atlas/annbatch.zarr
    python bench/loader/run.py --atlas /data/atlas --peer-python annbatch=/envs/annbatch/bin/python \
        --peer-python scdataset=/envs/scdd/bin/python --peer-python scvi=/envs/scdd/bin/python

`--quick` takes an atlas of 20,000 cells, written if need be. A run that was broken off goes on where it stopped: what
is in the CSV is not measured again (`--fresh` begins anew).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from cases import Case
from measure import Usage
from peers import PEERS
from report import report
from targets import BATCHES, groups

HERE = Path(__file__).parent
QUICK = Path("/tmp") / "scdd-loader-atlas"
COLUMNS = [
    *("round", *(field.name for field in fields(Case)), "cells_per_s", "cores", "cells_per_cpu_s", "peak_mb"),
    *("first_batch_s", "open_s", "disk_mb", "other_cores", "cells", "wall_s", "cpu_s", "block", "window"),
    *("locked_mb", "note", "versions"),
]
NUMBERS = set(COLUMNS) - {"contender", "source", "output", "cache", "note", "versions"}


class Unavailable(Exception):
    """A contender that cannot run here, and why."""


def interpreter(contender: str, pythons: dict[str, str]) -> str:
    """The Python of a contender."""
    environment = PEERS[contender].environment if contender in PEERS else None
    return pythons.get(environment or "", sys.executable)


def measure(
    case: Case, folder: Path, seconds: float, pythons: dict[str, str], *, timeout: float = 900
) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    if not case.path(folder).exists():
        raise Unavailable(f"{case.path(folder)} does not exist")
    python = interpreter(case.contender, pythons)
    environment = dict(os.environ)
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)  # ours is not theirs
    if case.contender == "limit-copy":  # past the caches, as an output that nobody reads again soon
        environment["GLIBC_TUNABLES"] = "glibc.cpu.x86_non_temporal_threshold=0x100000"
    command = [python, str(HERE / "measure.py"), json.dumps(case.as_dict()), str(folder), str(seconds)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"took more than {timeout:g} s") from error
    if done.returncode:
        raise Unavailable((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def wait_until_idle(patience: float) -> None:
    """Return once the machine is idle for a second, or `patience` seconds have passed."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        before = Usage.now()
        time.sleep(1)
        if Usage.now().busy - before.busy < 0.2:
            return


def stored(path: Path) -> list[dict[str, Any]]:
    """The rows measured so far, each with its case."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = [
            {k: float(v) if k in NUMBERS else v for k, v in row.items()} for row in csv.DictReader(file)
        ]
    for row in rows:
        row["batch"], row["round"] = int(row["batch"]), int(row["round"])
        row["case"] = Case(**{field.name: row[field.name] for field in fields(Case)})
    return rows


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row at once, so that nothing is lost if the next one fails."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(row)


def run_all(
    table: Path, folder: Path, options: argparse.Namespace, pythons: dict[str, str]
) -> dict[str, str]:
    """Measure what is not in the table yet; returns why cases could not run."""
    failed: dict[str, str] = {}
    for cases in groups(tuple(options.batch)):
        done = {(row["case"], row["round"]) for row in stored(table)}
        chosen = [case for case in cases if wanted(case, options)]
        for number in range(1, options.rounds + 1):
            for case in chosen:
                if (case, number) in done or name_of(case) in failed:
                    continue
                wait_until_idle(options.patience)
                try:
                    row = measure(case, folder, options.seconds, pythons)
                except Unavailable as error:
                    failed[name_of(case)] = str(error)
                    print(f"{name_of(case)}: not run: {error}", flush=True)
                    continue
                append(table, row | {"round": number})
                speed = f"{row['cells_per_s']:,.0f} cells/s, {row['cores']:.2f} cores"
                print(
                    f"{name_of(case)}, round {number}: {speed}, others {row['other_cores']:.2f}", flush=True
                )
    return failed


def wanted(case: Case, options: argparse.Namespace) -> bool:
    """Whether the words of its name are asked for."""
    words = set(name_of(case).split())
    return set(options.only) <= words and not words & set(options.without)


def name_of(case: Case) -> str:
    """As printed, and as `--only` looks for."""
    return f"{case.source} {case.output} {case.cache} {case.batch} {case.contender}"


def machine() -> str:
    """What it ran on, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown processor"
    )
    wide = next((word for word in ("avx512f", "avx2") if any(word in line for line in lines)), "no AVX2")
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {model} ({wide}), {gigabytes:.0f} GiB of memory"


def quick_atlas(folder: Path, pythons: dict[str, str]) -> None:
    """Write the small atlas where there is none, and annbatch's collection if there is an annbatch."""
    atlas = HERE.parent / "loader_atlas.py"
    subprocess.run([sys.executable, str(atlas), str(folder), "--cells", "20000"], check=True)
    collection = folder / "annbatch.zarr"
    if "annbatch" in pythons and not collection.exists():
        command = [
            pythons["annbatch"],
            str(HERE / "collection.py"),
            str(folder / "raw.h5ad"),
            str(collection),
        ]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atlas", type=Path, help="folder written by bench/loader_atlas.py")
    parser.add_argument("--quick", action="store_true", help="a small atlas, one round of two seconds")
    parser.add_argument("--peer-python", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument(
        "--only", nargs="+", default=[], help="words that the name of a case must hold, all of them"
    )
    parser.add_argument("--without", nargs="+", default=[], help="words of cases to leave out, any of them")
    parser.add_argument(
        "--patience", type=float, default=0, help="seconds to wait for an idle machine each time"
    )
    parser.add_argument("--out", type=Path, help="path of the results without suffix")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--report", action="store_true", help="only write the table again")
    options = parser.parse_args(given)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (2 if options.quick else 8)
    options.atlas = options.atlas or (QUICK if options.quick else None)
    if options.atlas is None:
        parser.error("--atlas FOLDER (python bench/loader_atlas.py FOLDER writes it) or --quick")
    results = options.atlas if options.quick else HERE.parent.parent / "docs" / "results"
    options.out = options.out or results / "loader"
    return options


def main(given: list[str] | None = None) -> str:
    """Measure, write and print."""
    options = arguments(given)
    pythons = dict(pair.split("=", 1) for pair in options.peer_python)
    table = options.out.with_suffix(".csv")
    table.parent.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        table.unlink(missing_ok=True)
    if options.quick:
        quick_atlas(options.atlas, pythons)
    failed = {} if options.report else run_all(table, options.atlas, options, pythons)
    cells = 20_000 if options.quick else 400_000
    atlas = f"Simulated atlas of {cells:,} cells x 20,000 genes, 1,450 stored a cell (bench/loader_atlas.py)"
    text = report(stored(table), machine=machine(), atlas=atlas, seconds=options.seconds)
    if failed:
        text += "\n".join(["## Not run", "", *(f"- {name}: {why}" for name, why in failed.items()), ""])
    options.out.with_suffix(".md").write_text(text)
    print(text)
    return text


if __name__ == "__main__":
    main()
