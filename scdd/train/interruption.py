"""Ctrl-C between two steps, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the state was saved; says where."""


@contextmanager
def noted_interrupts(*, enabled: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed; a second one interrupts at once.

    Only Python's own handling is replaced, and only on the main thread, where alone that can be done.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not (enabled and usual and threading.current_thread() is threading.main_thread()):
        yield lambda: False
        return
    pressed = False

    def note(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
