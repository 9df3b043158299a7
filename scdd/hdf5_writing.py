"""New HDF5 files, on a disk that may run full.

HDF5 cannot get over a write that fails: closing the file fails as well, and at exit, where it tries again,
the process crashes. So it never hears of one here. What the disk no longer takes stays in memory, the file is
closed in good order, and then the error of the disk is raised.
"""

from __future__ import annotations

import io
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class NewFile(NamedTuple):
    """A file that is being written, open; ``check`` raises the OSError of a disk that is full by now."""

    root: Any
    check: Callable[[], None]


@contextmanager
def new_hdf5(path: Path) -> Iterator[NewFile]:
    """An empty HDF5 file to write to; raises OSError, at the latest on closing, if the disk is full."""
    import h5py

    with path.open("w+b", buffering=0) as file:
        disk = _Disk(file.fileno())
        try:
            with h5py.File(path, "w", driver="fileobj", fileobj=disk) as root:
                yield NewFile(root, disk.check)
        except Exception:
            disk.check()  # whatever it was, a full disk comes first
            raise
        disk.check()


class _Disk(io.RawIOBase):
    """The file as HDF5 sees it: every write succeeds and can be read again."""

    def __init__(self, descriptor: int):
        self._descriptor, self._at, self._size = descriptor, 0, 0
        self._error: OSError | None = None
        self._kept: list[tuple[int, bytes]] = []

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset
        return self._at

    def write(self, data: Any) -> int:
        if self._error is None:
            self._try(self._write_all, data)
        if self._error is not None:
            self._kept.append((self._at, bytes(data)))
        self._at += len(data)
        self._size = max(self._size, self._at)
        return len(data)

    def readinto(self, into: Any) -> int:
        into[:] = os.pread(self._descriptor, len(into), self._at).ljust(len(into), b"\0")
        for start, data in self._kept:
            first, last = max(start, self._at), min(start + len(data), self._at + len(into))
            if first < last:
                into[first - self._at : last - self._at] = data[first - start : last - start]
        self._at += len(into)
        return len(into)

    def truncate(self, size: Any = None) -> int:
        self._size = size
        if self._error is None:
            self._try(os.truncate, self._descriptor, size)
        return size

    def _try(self, act: Callable[..., None], *arguments: object) -> None:
        try:
            act(*arguments)
        except OSError as error:
            self._error = error

    def _write_all(self, data: memoryview) -> None:
        done = 0
        while done < len(data):  # the last write before a disk is full may be a part
            done += os.pwrite(self._descriptor, data[done:], self._at + done)
