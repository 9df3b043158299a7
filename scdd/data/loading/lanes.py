"""Threads that work on calls side by side, for as long as somebody waits for the results."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Lanes:
    """``count`` threads that take calls in the order given; fewer where the system grants no more.

    Not a ``ThreadPoolExecutor``: those refuse work as soon as the main thread has ended, though another
    thread of the program may still be iterating.
    """

    def __init__(self, count: int, *, name: str) -> None:
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        for _ in range(count):
            # A daemon, as an iteration that nobody has closed must not keep a program from ending.
            thread = threading.Thread(target=_work, args=(self._calls,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if not self._threads:
                    raise
                break
            self._threads.append(thread)

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have ``call(*arguments)`` worked out; what it raises is raised by the future."""
        future: Future[T] = Future()
        self._calls.put((future, call, arguments))
        return future

    def close(self) -> None:
        """Forget what has not been begun, and wait for the rest."""
        try:
            while True:
                self._calls.get_nowait()
        except queue.Empty:
            pass
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            if thread.is_alive():  # after a fork they are not there
                thread.join()


def _work(calls: queue.SimpleQueue[Any]) -> None:
    while (task := calls.get()) is not None:
        future, call, arguments = task
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)
        del task, future, call, arguments  # or their memory would be in use until there is work again
