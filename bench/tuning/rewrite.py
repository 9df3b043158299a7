"""Put another entry into a table of a source file, changing nothing but its numbers."""

from __future__ import annotations

import ast
import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable


class NotLiteral(Exception):
    """The entry is computed where it stands, so there are no numbers to change."""


def rewritten(source: str, path: tuple[Hashable, ...], before: Any, after: Any) -> str:
    """`source` with `after` where `path` leads to `before`: the name of a table, then keys or places in it."""
    node = _assigned(ast.parse(source), str(path[0]))
    for key in path[1:]:
        node = _item(node, key, path)
    edits = _edits(node, before, after)
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    found = source.encode()
    for (line, column), (last_line, last_column), text in sorted(edits, reverse=True):
        begin, end = starts[line - 1] + column, starts[last_line - 1] + last_column
        found = found[:begin] + text.encode() + found[end:]
    ast.parse(found)
    return found.decode()


def _assigned(tree: ast.Module, name: str) -> ast.expr:
    for statement in tree.body:
        targets = (
            statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = getattr(statement, "value", None)
            if value is not None:
                return value
    raise NotLiteral(f"there is no table {name}")


def _item(node: ast.expr, key: Hashable, path: tuple[Hashable, ...]) -> ast.expr:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "MappingProxyType":
        node = node.args[0]
    if isinstance(node, ast.Tuple) and isinstance(key, int):
        return node.elts[key]
    if isinstance(node, ast.Dict):
        for known, value in zip(node.keys, node.values, strict=True):
            if known is not None and _value(known) == key:
                return value
    raise NotLiteral(f"{path} is not written out")


def _value(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _edits(node: ast.expr, before: Any, after: Any) -> list[tuple[tuple[int, int], tuple[int, int], str]]:
    """What to write instead of what: first and last place, text."""
    if isinstance(node, ast.Tuple) and isinstance(after, tuple):
        parts = zip(node.elts, before, after, strict=True)
        return [edit for part, old, new in parts for edit in _edits(part, old, new)]
    if dataclasses.is_dataclass(after) and isinstance(node, ast.Call):
        return _fields(node, before, after)
    if before == after:
        return []
    if type(_value(node)) is not type(before) or _value(node) != before:
        raise NotLiteral(f"line {node.lineno} has no literal {before!r}")
    return [((node.lineno, node.col_offset), _end(node), repr(after))]


def _fields(node: ast.Call, before: Any, after: Any) -> list[tuple[tuple[int, int], tuple[int, int], str]]:
    """Change arguments by place or by name; add those that are left to their default and differ now."""
    names = [field.name for field in dataclasses.fields(after)]
    written = dict(zip(names, node.args, strict=False)) | {str(k.arg): k.value for k in node.keywords}
    edits = []
    for name in names:
        old, new = getattr(before, name), getattr(after, name)
        if name in written:
            edits += _edits(written[name], old, new)
        elif old != new:
            line, column = _end(node)
            edits.append(((line, column - 1), (line, column - 1), f", {name}={new!r}"))
    return edits


def _end(node: ast.expr) -> tuple[int, int]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset
