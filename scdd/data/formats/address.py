"""URLs of remote files: how they are told from paths, and how they are shown."""

from __future__ import annotations

import re
from typing import Any


def is_remote(source: Any) -> bool:
    """Whether a source is named by a URL: ``s3://``, ``gs://``, ``https://``, ``memory://`` and so on."""
    return isinstance(source, str) and "://" in source


def shown(url: str) -> str:
    """A URL without the query, which may hold a signature, and without a password; a path as it is."""
    if not is_remote(url):
        return url
    return re.sub(r"(?<=://)[^/@]*@", "", url.partition("?")[0].partition("#")[0]).rstrip("/")
