"""Chunk tables of large files, kept between runs: listing millions of chunks takes seconds."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scdd.data.formats.layout import Chunks

if TYPE_CHECKING:
    from collections.abc import Callable

    from scdd.data.formats.layout import FileIdentity

# Of local files, and of remote ones, where each of the nodes that list the chunks has to be fetched.
_SMALLEST_CACHED, _SMALLEST_REMOTE = 100_000, 1_000


def cached_table(
    key: tuple[str, ...],
    identities: tuple[FileIdentity, ...],
    count: int,
    build: Callable[[], Chunks],
    *,
    remote: bool = False,
) -> Chunks:
    """The table of ``count`` chunks that ``build`` makes, or the same from an earlier run.

    ``key`` is the path and the dataset. A table is used again only if every file has the inode, size and
    time of change (a remote one the size and checksum) that it had then. No failure to read or write the
    cache is ever an error.
    """
    folder = cache_folder() if count > (_SMALLEST_REMOTE if remote else _SMALLEST_CACHED) else None
    if folder is None:
        return build()
    path = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.npz"
    stamp = np.frombuffer(hashlib.sha256(repr(identities).encode()).digest(), dtype=np.uint8)
    chunks = _load(path, stamp, count, len(identities))
    if chunks is None:
        chunks = build()
        _save(path, stamp, chunks)
    return chunks


def cache_folder() -> Path | None:
    """``$SCDD_CACHE``, else scdd's folder of the user's caches; None if ``SCDD_CACHE`` is set but empty."""
    chosen = os.environ.get("SCDD_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "scdd"
    except RuntimeError:  # there is no home
        return None


def _load(path: Path, stamp: np.ndarray, count: int, files: int) -> Chunks | None:
    try:
        with np.load(path, allow_pickle=False) as saved:
            if not np.array_equal(saved["stamp"], stamp):
                return None
            chunks = Chunks(*(saved[field] for field in Chunks._fields))
    except Exception:  # whatever is wrong with a cache, the table can be read anew
        return None
    blank = Chunks.none_stored(count)
    same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(chunks, blank, strict=True))
    sound = same and chunks.offsets.min() >= -1 and chunks.sizes.min() >= 0
    return chunks if sound and 0 <= chunks.file_of_chunk.min() <= chunks.file_of_chunk.max() < files else None


def _save(path: Path, stamp: np.ndarray, chunks: Chunks) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, stamp=stamp, **chunks._asdict())
        temporary.replace(path)
    except Exception:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
