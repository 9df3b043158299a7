"""The tuner tries and writes one entry of a table at a time, and no tile that is wrong."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import tune
from tuning.places import Place, modules
from tuning.rewrite import NotLiteral, rewritten

BENCH = Path(__file__).parents[2] / "bench"
EVERY_PLACE = [Place(module, path) for module in modules() for path in getattr(module, "CANDIDATES", {})]


def named(place):
    return f"{place.module.__name__.split('.')[-2]}-{place}"


@pytest.mark.parametrize("place", EVERY_PLACE, ids=named)
def test_a_candidate_is_of_the_kind_of_what_it_replaces(place):
    shipped = place.entry
    assert place.module.CANDIDATES[place.path]
    for entry in place.module.CANDIDATES[place.path]:
        assert type(entry) is type(shipped)
        if isinstance(shipped, tuple):
            assert len(entry) == len(shipped)
        with place.holding(entry):
            assert place.entry == entry
        assert place.entry == shipped


@pytest.mark.parametrize("place", EVERY_PLACE, ids=named)
def test_writing_a_candidate_changes_its_entry_and_nothing_else(place):
    source = Path(place.module.__file__).read_text()
    for entry in place.module.CANDIDATES[place.path]:
        changed = rewritten(source, place.path, place.entry, entry)
        assert rewritten(source, place.path, place.entry, place.entry) == source
        with place.holding(entry):
            expected = tables(vars(place.module))
        assert tables(executed(changed, place.module.__name__)) == expected
        differing = [
            pair for pair in zip(source.splitlines(), changed.splitlines(), strict=True) if len(set(pair)) > 1
        ]
        assert len(differing) == (entry != place.entry)


def executed(source, name):
    namespace = {"__name__": name, "__package__": name.rpartition(".")[0]}
    exec(compile(source, name, "exec"), namespace)
    return namespace


def tables(namespace):
    # candidates may be derived from a table
    return {
        name: repr(value)
        for name, value in namespace.items()
        if name.strip("_").isupper() and name not in ("CANDIDATES", "TYPE_CHECKING")
    }


def test_an_entry_that_is_computed_is_not_written():
    source = "A = {n: (n, 2 * n) for n in (1, 2)}\nB = {1: (4, 2 * 2)}\n"
    with pytest.raises(NotLiteral, match="not written out"):
        rewritten(source, ("A", 1), (1, 2), (2, 2))
    with pytest.raises(NotLiteral, match="no literal 4"):
        rewritten(source, ("B", 1), (4, 4), (4, 8))
    with pytest.raises(NotLiteral, match="no table C"):
        rewritten(source, ("C",), 1, 2)


@pytest.fixture
def place(tmp_path):
    module = types.ModuleType("scdd.kernels.example.tiles")
    module.__file__ = str(tmp_path / "tiles.py")
    source = "from x import Final\n\n_TABLE: Final = {  # kept\n    (16, 2): (4, 2), (16, 4): (4, 2),\n}\n"
    Path(module.__file__).write_text(source)
    module._TABLE = {(16, 2): (4, 2), (16, 4): (4, 2)}
    return Place(module, ("_TABLE", (16, 4)))


@pytest.mark.parametrize(
    ("ratios", "winner"),
    [
        ({"a": [0.9, 0.95], "b": [0.97, 0.99]}, "a"),
        # within 2 %
        ({"a": [0.985, 0.99]}, None),
        # slower in a case, wrong in a case
        ({"a": [0.5, 1.03], "b": [0.9, math.inf], "c": [0.94, 1.01]}, "c"),
        ({"a": [math.inf]}, None),
        # a case that did not tell it from what is shipped counts as equal
        ({"a": [0.97], "b": [1.0, 1.0]}, None),
    ],
)  # fmt: skip
def test_what_wins(place, ratios, winner):
    found = tune.winners({place: ratios})
    assert found.get(place, (None,))[0] == winner


def test_the_winner_is_written(place):
    assert tune.write({place: ((8, 1), 0.9)}) == []
    text = Path(place.module.__file__).read_text()
    assert (
        text == "from x import Final\n\n_TABLE: Final = {  # kept\n    (16, 2): (4, 2), (16, 4): (8, 1),\n}\n"
    )
    computed = Place(place.module, ("_OTHER",))
    place.module._OTHER = 4
    (left,) = tune.write({computed: (8, 0.9)})
    assert "by hand" in left


_INTERPRETED = """
import argparse, dataclasses, json, sys
from collections import defaultdict
sys.path.insert(0, sys.argv[1])
import torch, tune
from operators import modulate
from scdd.kernels.modulate import tiles
from timing.clock import Clock

tiles.CANDIDATES = {("_TABLE", (32, 4)): ((2, 4), (2, 1), (2, 3)), ("_TABLE", (64, 4)): ((2, 1),)}
operator, case = modulate.OPERATORS[0], modulate._case((5, 32), gated=False)

def wrong_for_one(x, shift, scale):
    (y,) = operator.ours(x, shift, scale)
    return (y * (1.001 if tiles._TABLE[32, 4][1] == 1 else 1),)

settings = argparse.Namespace(rounds=5, seconds=1, warm=False)
ratios = defaultdict(lambda: defaultdict(list))
mutant = dataclasses.replace(operator, ours=wrong_for_one)
for row in tune.tune(mutant, case, torch.float32, Clock(torch.device("cpu")), settings, ratios):
    print(json.dumps(row))
((place, entries),) = ratios.items()
assert place.path == ("_TABLE", (32, 4)) and len(entries) == 3
assert entries[2, 1] == entries[2, 3] == [float("inf")] and 0 < entries[2, 4][0] < float("inf")
assert tiles._TABLE[32, 4] == (2, 8)
"""


def test_candidates_are_gated_then_timed_in_turns(tmp_path):
    script = tmp_path / "tune_one.py"
    script.write_text(_INTERPRETED)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, script, BENCH], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {row["entry"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {"(2, 8)", "(2, 4)", "(2, 1)", "(2, 3)"}
    assert "allowed" in found["(2, 1)"]["error"][0]
    assert found["(2, 3)"]["error"]
    assert found["(2, 8)"]["shipped"]
    assert found["(2, 8)"]["ratio"] == 1
    timed = found["(2, 4)"]
    assert timed["mode"] == "training"
    assert timed["chooser"] == "choose(32, 4)"
    assert timed["tile"] == "Tile(conditions=4, width=32, num_warps=2)"
    assert 0 < timed["p20_us"] <= timed["p50_us"] <= timed["p80_us"]


def test_a_cpu_has_no_tiles():
    done = subprocess.run(
        [sys.executable, BENCH / "tune.py", "--device", "cpu"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "TRITON_INTERPRET=1" in done.stderr


def test_every_operator_with_tiles_has_candidates():
    assert all(module.CANDIDATES for module in modules())
