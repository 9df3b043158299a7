"""Which files a list or a folder holds that are read as one atlas, and which it holds besides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scdd.errors import InputError

_SUFFIXES = (".h5ad", ".zarr")


def parts_of(source: Any) -> list[Any]:
    """The sources that a list or a folder of ``.h5ad`` and ``.zarr`` holds; else the one source itself."""
    if isinstance(source, (list, tuple)):
        if not source:
            raise InputError("the list of sources is empty")
        return list(source)
    return _inside(source, _SUFFIXES) or [source]


def left_out_of(source: Any) -> list[str]:
    """A sentence on the ``.h5`` files of a folder of which other files are read."""
    others = [path.name for path in _inside(source, (".h5",))] if _inside(source, _SUFFIXES) else []
    if not others:
        return []
    listed = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return [
        f"of the folder {source} only .h5ad and .zarr are read, not {listed}: they may hold the same cells; "
        "name all files in a list to read them as one atlas"
    ]


def _inside(source: Any, suffixes: tuple[str, ...]) -> list[Path]:
    path = Path(source) if isinstance(source, (str, Path)) else None
    if path is None or not path.is_dir() or path.suffix in _SUFFIXES:
        return []
    return sorted(inside for inside in path.iterdir() if inside.suffix in suffixes)
