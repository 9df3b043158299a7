"""Every tile that we ship compiles, within its budget, for every architecture; no GPU needed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from scdd.kernels import _dispatch
from scdd.kernels.aot import ARCHITECTURES, OPERATORS, every_build
from scdd.kernels.aot.machine_code import broken_promises, cost

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(_dispatch.INTERPRET, reason="an interpreted kernel has nothing to compile"),
]

# An interpreted process skips the whole file, and could not build these.
BUILDS = {} if _dispatch.INTERPRET else every_build()


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda sm: f"sm{sm}")
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
def test_compiles_within_budget(build, architecture):
    if architecture not in build.architectures:
        pytest.skip(f"sm_{architecture} has tiles of its own")
    found = cost(build, architecture)
    assert not broken_promises(build, architecture, found), found


def test_every_operator_names_its_builds():
    assert {name.partition("/")[0] for name in BUILDS} == set(OPERATORS)


@pytest.mark.parametrize(
    ("promise", "word"),
    [
        ({"max_registers": 16}, "registers"),
        ({"narrow_loads": -1}, "under 128 bits"),
        ({"num_warps": 4}, "local"),
        ({"tensor_cores": True}, "tensor-core"),
    ],
)
def test_a_broken_budget_is_reported(promise, word):
    from scdd.kernels.modulate import tiles
    from scdd.kernels.modulate.builds import pair

    # a row of 16384 elements in 4 warps can not stay in registers
    tile = tiles.Tile(conditions=1, width=16_384, num_warps=4)
    build = pair(tile, "fp32", tile.width, gated=True, sum_shift=True)
    build = dataclasses.replace(build[f"bwd-N{tile.width}-fp32-gated-rows"], **promise)
    assert any(word in broken for broken in broken_promises(build, 90, cost(build, 90)))


def test_the_table_can_be_printed():
    command = [
        sys.executable,
        "-P",
        "-m",
        "scdd.kernels.aot",
        "--operator",
        "modulate",
        "--architecture",
        "90",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    builds = [name for name in BUILDS if name.startswith("modulate/")]
    assert all(name in done.stdout for name in builds)
