"""Memory for batches, used again as soon as nobody holds the batch that lay in it."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import Any

import numpy as np


def _references(buffers: list[np.ndarray], place: int) -> int:
    buffer = buffers[place]
    return sys.getrefcount(buffer)


# Of a buffer that only its pool holds. Counted, since it differs between versions of Python.
_OWN_REFERENCES = _references([np.empty(1, dtype=np.uint8)], 0)


class BufferPool:
    """Hands out arrays; fresh memory would cost a page fault for every 4 KiB of every batch.

    A buffer is free once no array or tensor that shares it is alive, which Python's reference counts say;
    nobody has to give anything back.

    Parameters
    ----------
    pinned : page-locked memory, from which a GPU copies without waiting for the processor; it is PyTorch's to
        use again, which knows when a copy has ended
    kept : buffers that are kept for reuse
    """

    def __init__(self, *, pinned: bool = False, kept: int = 16) -> None:
        self._pinned, self._kept = pinned, kept
        self._start_afresh()
        _pools.add(self)

    def _start_afresh(self) -> None:
        self._buffers: list[np.ndarray] = []
        self._lock = threading.Lock()  # two iterators of one loader run on two threads

    def take(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array, uninitialised."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        if self._pinned:
            return _pinned(size)[:size].view(dtype).reshape(shape)
        with self._lock:
            # With a view of it the buffer is taken, and may be seen by other threads.
            return self._free(size)[:size].view(dtype).reshape(shape)

    def __reduce__(self) -> Any:
        """To another process go the settings alone."""
        return _pool, (self._pinned, self._kept)

    def _free(self, size: int) -> np.ndarray:
        for place in range(len(self._buffers)):
            if _references(self._buffers, place) == _OWN_REFERENCES and size <= self._buffers[place].nbytes:
                # The one used longest ago is tried first, so that a few take turns.
                self._buffers.append(self._buffers.pop(place))
                return self._buffers[-1]
        buffer = np.empty(max(size, 1), dtype=np.uint8)
        if len(self._buffers) >= self._kept:
            self._buffers.pop(0)
        self._buffers.append(buffer)
        return buffer


# After a fork a lock may be held, and buffers be in use, by threads that only the parent has.
_pools: weakref.WeakSet[BufferPool] = weakref.WeakSet()


def _start_all_afresh() -> None:
    for pool in list(_pools):
        pool._start_afresh()


os.register_at_fork(after_in_child=_start_all_afresh)


def _pool(pinned: bool, kept: int) -> BufferPool:
    return BufferPool(pinned=pinned, kept=kept)


def _pinned(size: int) -> np.ndarray:
    import torch

    return torch.empty(max(size, 1), dtype=torch.uint8, pin_memory=True).numpy()
