"""Generators by name: each makes cells of the asked classes from the train cells of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generators.methods import ours, peers, sanity
from generators.methods.copula import nb_copula

if TYPE_CHECKING:
    from collections.abc import Callable

    from generators.methods.made import Made

METHODS: dict[str, Callable[..., Made]] = {
    **sanity.METHODS,
    "nb_copula": nb_copula,
    **peers.METHODS,
    **ours.METHODS,
}
OURS = tuple(name for name in ours.METHODS if not name.endswith("published"))


def method(name: str) -> Callable[..., Made]:
    """The generator of that name."""
    if name not in METHODS:
        raise SystemExit(f"--methods {name}: choose from {', '.join(METHODS)}")
    return METHODS[name]


def refuse(settings: dict[str, Any], name: str) -> None:
    """Settings that a method left over."""
    if settings:
        raise SystemExit(f"--set: {name} knows no setting {next(iter(settings))!r}")
