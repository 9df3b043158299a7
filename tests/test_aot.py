"""Every tile that we ship compiles, within its budget, for every architecture; no GPU needed."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
import zlib

import pytest

pytest.importorskip("triton")

from scdd.kernels import _dispatch
from scdd.kernels.aot import OPERATORS, every_build
from scdd.kernels.aot.machine_code import broken_promises, cost

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(_dispatch.INTERPRET, reason="an interpreted kernel has nothing to compile"),
]

# An interpreted process skips the whole file, and could not build these.
BUILDS = {} if _dispatch.INTERPRET else every_build()

# The operators are dealt in turn, and so the dear ones evenly to processes side by side (pytest -n).
JOBS = sorted(
    ((name, architecture) for name, build in BUILDS.items() for architecture in build.architectures),
    key=lambda job: zlib.crc32(job[0].encode()),
)


@pytest.mark.parametrize(("name", "architecture"), JOBS, ids=[f"{name}-sm{sm}" for name, sm in JOBS])
def test_compiles_within_budget(name, architecture):
    build = BUILDS[name]
    found = cost(build, architecture)
    assert not broken_promises(build, architecture, found), found


def test_every_operator_names_its_builds():
    assert {name.partition("/")[0] for name in BUILDS} == set(OPERATORS)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_build_covers_every_tile_that_ships(operator):
    tiles = importlib.import_module(f"scdd.kernels.{operator}.tiles")
    for entry in tiles.every_tile() if hasattr(tiles, "every_tile") else ():
        parts = entry if isinstance(entry, tuple) else (entry,)
        tile = next(part for part in parts if dataclasses.is_dataclass(part))
        words = [part for part in parts if isinstance(part, str)]
        # the size of an element stands beside the tile
        words += ["fp32" if part == 4 else "f16" for part in parts if part in (2, 4)]
        groups = _by_label(operator, words).values()
        assert any(_covers(builds, tile) for builds in groups), entry


def _by_label(operator, words):
    """Builds by what follows the name of the kernel: those of one tile, whose sizes they may share out."""
    groups = {}
    for name, build in BUILDS.items():
        if name.startswith(f"{operator}/") and all(word in name for word in words):
            groups.setdefault(name.partition("-")[2] or name, []).append(build)
    return groups


def _covers(builds, tile):
    """Whether `builds` are compiled with the warps, stages and sizes of `tile`."""
    sizes = {name: size for name, size in dataclasses.asdict(tile).items() if name != "registers"}
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages") if name in sizes}
    launched = [build for build in builds if all(getattr(build, name) == options[name] for name in options)]
    constants = {value for build in launched for value in build.constants.values()}
    # a size of 0 is one that the tile does not have, of 1 one that takes nothing
    return bool(launched) and {size for size in sizes.values() if size > 1} <= constants


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
        "linear_cross_entropy",
        "--architecture",
        "90",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    builds = [name for name in BUILDS if name.startswith("linear_cross_entropy/")]
    assert all(name in done.stdout for name in builds)
