"""Where a tile is written down, which calls it decides, and how another is put there for a while."""

from __future__ import annotations

import importlib.util
import pkgutil
from contextlib import contextmanager
from functools import wraps
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from scdd import kernels

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator
    from types import ModuleType


class Place(NamedTuple):
    """One entry of a table in `tiles.py`: the name of the table, then the keys that lead to the entry."""

    module: ModuleType
    path: tuple[Hashable, ...]

    def __str__(self) -> str:
        return str(self.path[0]) + "".join(f"[{key!r}]" for key in self.path[1:])

    @property
    def entry(self) -> Any:
        """What stands there."""
        found = getattr(self.module, str(self.path[0]))
        for key in self.path[1:]:
            found = found[key]
        return found

    @contextmanager
    def holding(self, entry: object) -> Iterator[None]:
        """Put `entry` there until the end of the block."""
        name = str(self.path[0])
        before = getattr(self.module, name)
        setattr(self.module, name, _replaced(before, self.path[1:], entry))
        try:
            yield
        finally:
            setattr(self.module, name, before)


def _replaced(table: Any, keys: tuple[Hashable, ...], entry: object) -> Any:
    """A copy of `table` with `entry` where `keys` lead."""
    if not keys:
        return entry
    inner = _replaced(table[keys[0]], keys[1:], entry)
    if isinstance(table, tuple):
        return tuple(inner if place == keys[0] else old for place, old in enumerate(table))
    return type(table)({**table, keys[0]: inner})


class Call(NamedTuple):
    """One call of a chooser."""

    module: ModuleType
    chooser: str
    args: tuple[Hashable, ...]
    options: tuple[tuple[str, Hashable], ...]

    def __str__(self) -> str:
        shown = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.options)]
        return f"{self.chooser}({', '.join(shown)})"

    def tile(self) -> object:
        """What the chooser returns at present."""
        return getattr(self.module, self.chooser)(*self.args, **dict(self.options))


def modules() -> list[ModuleType]:
    """The `tiles.py` of every operator that has one."""
    folders = [
        f"{kernels.__name__}.{found.name}" for found in pkgutil.iter_modules(kernels.__path__) if found.ispkg
    ]
    names = [f"{folder}.tiles" for folder in folders if importlib.util.find_spec(f"{folder}.tiles")]
    return [importlib.import_module(name) for name in names]


@contextmanager
def recorded() -> Iterator[dict[Call, None]]:
    """Collect the calls of every chooser, each once, in the order of the first."""
    calls: dict[Call, None] = {}
    with _replacing(lambda module, name, chooser: _recording(calls, module, name, chooser)):
        yield calls


@contextmanager
def _replacing(make: Any) -> Iterator[None]:
    found = [(module, name, getattr(module, name)) for module in modules() for name in _choosers(module)]
    try:
        for module, name, chooser in found:
            setattr(module, name, make(module, name, chooser))
        yield
    finally:
        for module, name, chooser in found:
            setattr(module, name, chooser)


def _choosers(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if name.startswith("choose")
        and isinstance(value, FunctionType)
        and value.__module__ == module.__name__
    ]


def _recording(calls: dict[Call, None], module: ModuleType, name: str, chooser: FunctionType) -> Any:
    @wraps(chooser)
    def recording(*args: Hashable, **options: Hashable) -> object:
        calls[Call(module, name, args, tuple(sorted(options.items())))] = None
        return chooser(*args, **options)

    return recording


def decided(place: Place, entry: object, calls: Iterable[Call]) -> list[Call]:
    """The calls that would return something else with `entry` in `place`."""
    own = [call for call in calls if call.module is place.module]
    before = [call.tile() for call in own]
    with place.holding(entry):
        return [call for call, tile in zip(own, before, strict=True) if call.tile() != tile]


def trials(calls: Iterable[Call]) -> dict[Place, dict[object, tuple[Call, object]]]:
    """The candidates that change any of `calls`: place -> entry -> a call that it decides, and its tile.

    Candidates of one place that come to the same tiles are tried once.
    """
    calls = list(calls)
    found: dict[Place, dict[object, tuple[Call, object]]] = {}
    for module in dict.fromkeys(call.module for call in calls):
        for path, entries in getattr(module, "CANDIDATES", {}).items():
            place, seen = Place(module, path), set()
            for entry in entries:
                if not (changed := decided(place, entry, calls)):
                    continue
                with place.holding(entry):
                    tiles = tuple(call.tile() for call in changed)
                if tiles not in seen:
                    seen.add(tiles)
                    found.setdefault(place, {})[entry] = changed[0], tiles[0]
    return found
