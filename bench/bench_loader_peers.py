"""The loader against its peers under pytest-benchmark: `pytest bench -k loader` prints the table of bench/loader/run.py.

By default a small atlas, written on first use, and the peers that this interpreter has. `SCDD_BENCH_ATLAS` names the
folder of a large one, `SCDD_BENCH_PEERS` the interpreters of peers: `annbatch=/envs/a/bin/python,scvi=...`.
Nothing fails for being slow; a contender that cannot run here is skipped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

HERE = Path(__file__).parent / "loader"
sys.path.insert(0, str(HERE))  # the contenders are scripts for many interpreters, so no package

import run  # noqa: E402
from report import Results, claims  # noqa: E402
from targets import groups  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cases import Case

ATLAS = os.environ.get("SCDD_BENCH_ATLAS")
PYTHONS = dict(pair.split("=", 1) for pair in os.environ.get("SCDD_BENCH_PEERS", "").split(",") if pair)
SECONDS = 8.0 if ATLAS else 2.0
CASES = [case for group in groups((4096,)) for case in group]


@pytest.fixture(scope="module")
def folder() -> Path:
    if not ATLAS:
        run.quick_atlas(run.QUICK, PYTHONS)
    return Path(ATLAS) if ATLAS else run.QUICK


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[list[dict[str, Any]]]:
    """What has been measured; the table of it is printed in the end."""
    found: list[dict[str, Any]] = []
    yield found
    manager = request.config.pluginmanager.getplugin("capturemanager")
    with manager.global_and_fixture_disabled():
        print("", *claims(Results(found)), sep="\n")


@pytest.mark.parametrize("case", CASES, ids=run.name_of)
def test_loader(benchmark: Any, folder: Path, rows: list[dict[str, Any]], case: Case) -> None:
    measured: list[dict[str, Any]] = []

    def once() -> None:
        measured.append(run.measure(case, folder, SECONDS, PYTHONS))

    try:
        benchmark.pedantic(once, rounds=1, iterations=1)
    except run.Unavailable as error:
        pytest.skip(str(error))
    benchmark.extra_info.update(measured[0])  # the benchmark's own time has the start of a process in it
    rows.append(measured[0] | {"case": case, "round": 1})
