"""A packed copy of an atlas, used in its place: found beside the file, or made where the user wants it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scdd.data.packed.fingerprint import is_fresh, source_paths
from scdd.data.packed.header import SUFFIX
from scdd.data.packed.store import PackedStore
from scdd.data.packed.writing import pack

if TYPE_CHECKING:
    from pathlib import Path

    from scdd.data.atlas import Atlas

log = logging.getLogger("scdd")


def packed_cache(atlas: Atlas, cache: str | Path) -> PackedStore | None:
    """The packed copy of all rows that an atlas's files hold, whichever of them are its cells.

    ``cache="auto"`` is the one that ``scdd pack`` puts beside a file; None if it is not there or not fresh.
    A path is written if nothing fresh lies there.
    """
    whole = atlas.whole()
    if str(cache) != "auto":
        return pack(whole, cache)
    paths = source_paths(whole)
    beside = paths[0].with_suffix(SUFFIX) if len(paths) == 1 else None
    if beside is None or not beside.exists():
        return None
    if is_fresh(beside, whole):
        return PackedStore.open(beside)
    log.warning("%s is not of %s as it is now and is left aside; run `scdd pack` again", beside, whole.name)
    return None
