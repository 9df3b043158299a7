"""Iteration on another thread, a few items ahead of its consumer."""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

T = TypeVar("T")

_END = object()
# How long a thread that waits for room takes to notice that nobody wants its items any more, in seconds.
_NOTICE = 0.05


def ahead(items: Iterator[T], ready: int, *, stop: Callable[[], None] = lambda: None) -> Generator[T]:
    """Yield from ``items``, which a thread runs up to ``ready`` items ahead; 0 for no thread.

    An exception in the thread is raised here, in its place. Closing this generator, as leaving its loop or
    Ctrl-C does, calls ``stop()``, closes ``items`` and joins the thread.
    """
    if ready < 1:
        yield from items
        return
    fetcher = _Fetcher(items, ready, stop)
    try:
        while (item := fetcher.next()) is not _END:
            yield item
    finally:
        fetcher.close()


class _Fetcher:
    def __init__(self, items: Iterator[Any], ready: int, stop: Callable[[], None]) -> None:
        self._items, self._stop = items, stop
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # Asked for before an item is begun, so that never more than `ready` are made and not yet taken.
        self._room = threading.Semaphore(ready)
        self._unwanted = threading.Event()
        # A daemon, so that a program that ends without closing its loaders does not wait for them; _close_all
        # joins it all the same, since a thread that is inside C++ when Python goes away takes the process
        # with it.
        self._thread = threading.Thread(target=self._run, name="scdd-loader", daemon=True)
        self._thread.start()
        _running.add(self)

    def next(self) -> Any:
        while True:
            try:
                item = self._queue.get(timeout=_NOTICE)
            except queue.Empty:
                # Closed by another thread, at exit: nothing will come any more.
                if self._unwanted.is_set():
                    return _END
                continue
            if isinstance(item, _Failure):
                raise item.error
            self._room.release()
            return item

    def ask_to_stop(self) -> None:
        self._unwanted.set()
        self._stop()

    def close(self) -> None:
        self.ask_to_stop()
        # After a fork the thread is not there to be joined: only the parent has it.
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._may_go_on():
                item = next(self._items, _END)
                self._queue.put(item)
                if item is _END:
                    break
                del item  # or this frame would keep a window alive while it waits for room
        except BaseException as error:
            self._queue.put(_Failure(error))
        finally:
            getattr(self._items, "close", lambda: None)()

    def _may_go_on(self) -> bool:
        while not self._unwanted.is_set():
            if self._room.acquire(timeout=_NOTICE):
                return not self._unwanted.is_set()
        return False


_running: weakref.WeakSet[_Fetcher] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    fetchers = list(_running)
    for fetcher in fetchers:  # all first: one may wait for another
        fetcher.ask_to_stop()
    for fetcher in fetchers:
        fetcher.close()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
