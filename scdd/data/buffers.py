"""Memory for batches, used again as soon as nobody holds the batch that lay in it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

# The pool's list, a local variable and the argument of getrefcount hold a free buffer, and nobody else does.
_OWN_REFERENCES = 3


class BufferPool:
    """Hands out arrays; fresh memory would cost a page fault for every 4 KiB of every batch.

    A buffer is free once no array or tensor that shares it is alive, which Python's reference counts say;
    nobody has to give anything back.

    Parameters
    ----------
    pinned : page-locked memory, from which a GPU copies without waiting for the processor
    kept : buffers that are kept for reuse
    """

    def __init__(self, *, pinned: bool = False, kept: int = 16) -> None:
        self._pinned, self._kept = pinned, kept
        self._buffers: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array, uninitialised."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        buffer = self._free(size)
        return buffer[:size].view(dtype).reshape(shape)

    def empty_copy(self) -> BufferPool:
        """A pool of the same settings."""
        return BufferPool(pinned=self._pinned, kept=self._kept)

    def _free(self, size: int) -> np.ndarray:
        for place in range(len(self._buffers)):
            buffer = self._buffers[place]
            if sys.getrefcount(buffer) == _OWN_REFERENCES and size <= buffer.nbytes:
                # The one used longest ago is tried first, so that a few take turns.
                self._buffers.append(self._buffers.pop(place))
                return buffer
        buffer = self._fresh(size)
        if len(self._buffers) >= self._kept:
            self._buffers.pop(0)
        self._buffers.append(buffer)
        return buffer

    def _fresh(self, size: int) -> np.ndarray:
        size = max(size, 1)
        if not self._pinned:
            return np.empty(size, dtype=np.uint8)
        import torch

        return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
