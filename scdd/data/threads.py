"""How many threads to work with."""

from __future__ import annotations

import os

import numpy as np

from scdd.errors import InputError


def thread_count(threads: int | None) -> int:
    """``threads`` itself, checked; by default as many as this process may use cores."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or threads < 1:
        raise InputError(f"threads is {threads!r}: give a whole number of at least 1")
    return int(threads)
