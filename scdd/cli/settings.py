"""Settings given as NAME=VALUE: read as the type that the configuration declares."""

from __future__ import annotations

import sys
import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from scdd.errors import InputError

_TRUE, _FALSE = ("true", "yes", "1", "on"), ("false", "no", "0", "off")


def known_settings(*configs: type, prefix: str = "") -> dict[str, Any]:
    """Name -> type of the fields of configurations, those that are configurations themselves left out."""
    found: dict[str, Any] = {}
    for config in configs:
        hints = {field.name: _hint(config, field.type) for field in fields(config)}
        found |= {prefix + f.name: hints[f.name] for f in fields(config) if not is_dataclass(hints[f.name])}
    return found


def _hint(config: type, written: Any) -> Any:
    """The declared type; a word, where its name is known to type checkers alone. The model checks its value."""
    if not isinstance(written, str):
        return written
    try:
        return eval(written, vars(sys.modules[config.__module__]))  # our own source
    except NameError:
        return str


def read_settings(items: list[str], known: dict[str, Any]) -> dict[str, Any]:
    """``["lr=3e-4", "tied=true"]`` as values of the declared types.

    Raises
    ------
    InputError
        No NAME=VALUE, an unknown name (the known ones are listed), a name twice, a value of another type.
    """
    settings: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals:
            raise InputError(f"--set {item!r}: write NAME=VALUE")
        name = name.strip().replace("-", "_")
        if name not in known:
            raise InputError(f"--set {name} is no setting; choose among {', '.join(sorted(known))}")
        if name in settings:
            raise InputError(f"--set {name} is given twice")
        try:
            settings[name] = _read(text.strip(), known[name])
        except ValueError:
            raise InputError(f"--set {item!r}: the value is to be {_said(known[name])}") from None
    return settings


def _read(text: str, kind: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if type(None) in inner and text.lower() in ("none", ""):
            return None
        return _first_that_reads(text, [part for part in inner if part is not type(None)])
    if origin is tuple:
        return tuple(_read(part, inner[0]) for part in text.strip("()").split(",") if part.strip())
    if origin is Literal:
        if text not in inner:
            raise ValueError(text)
        return text
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError(text)
        return text.lower() in _TRUE
    return kind(text)


def _first_that_reads(text: str, kinds: list[Any]) -> Any:
    for kind in kinds:
        try:
            return _read(text, kind)
        except ValueError:
            continue
    raise ValueError(text)


def _said(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join("none" if part is type(None) else _said(part) for part in inner)
    if origin is tuple:
        return "whole numbers with commas between them"
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a word")
