"""Sparse local files that hold, at the same places, the few bytes of remote ones that are needed now."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import sys
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from scdd.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_PUNCH = 3
# Of more files than these only those are there that hold something.
_STANDING = 1_024


class Mirror:
    """One sparse file for each remote object, in a folder of its own that goes with this object.

    It lies where `tempfile` says (``TMPDIR``). What is no longer needed is punched out of the files, so that
    they take the disk space of what `keep` was last told, give or take a file system's block at each end;
    where no holes can be punched, `clear` empties them.

    Parameters
    ----------
    sizes : bytes of each object

    Raises
    ------
    DataFileError
        The folder cannot be made, or the files may not be as long as the objects.
    """

    def __init__(self, sizes: Sequence[int]):
        self._sizes = sizes
        self._standing = len(sizes) <= _STANDING
        self._written: set[int] = set()
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="scdd-remote-"))
            self._finalizer = weakref.finalize(self, _remove, self._folder, os.getpid())
            for number in range(len(sizes)) if self._standing else ():
                self._empty(number)
        except OSError as error:
            raise DataFileError(
                f"no files for what comes of remote ones can be made in {_temporary_folder()} "
                f"({error.strerror or error}); free space there, or set TMPDIR to another folder"
            ) from error

    @property
    def paths(self) -> list[str]:
        """Of the file of each object."""
        return [str(self._path(number)) for number in range(len(self._sizes))]

    def write(self, number: int, offset: int, content: bytes) -> None:
        """Put bytes where they lie in the object.

        Raises
        ------
        DataFileError
            The disk is full or cannot be written.
        """
        try:
            if not self._standing and number not in self._written:
                self._empty(number)
            self._written.add(number)
            with self._path(number).open("r+b", buffering=0) as file:
                view = memoryview(content)
                while view:
                    done = os.pwrite(file.fileno(), view, offset)
                    view, offset = view[done:], offset + done
        except OSError as error:
            raise DataFileError(
                f"{len(content)} bytes of a remote file cannot be kept in {self._folder} "
                f"({error.strerror or error}); free space there, or set TMPDIR to a folder with more"
            ) from error

    def keep(self, spans: Sequence[tuple[int, int, int]]) -> None:
        """Drop all but these: number of the object, first byte and end, in ascending order.

        Others may be written meanwhile, if they are among these.
        """
        punch = _hole_puncher()
        if punch is None:
            return
        kept: dict[int, list[tuple[int, int]]] = {}
        for number, start, stop in spans:
            kept.setdefault(number, []).append((start, stop))
        for number in list(self._written):
            if number not in kept:
                self._drop(number)
                continue
            with self._path(number).open("r+b", buffering=0) as file:
                end = 0
                for start, stop in [*kept[number], (self._sizes[number], 0)]:
                    # A failure leaves the bytes where they are: nothing is wrong but the room that they take.
                    if start > end:
                        punch(file.fileno(), end, start - end)
                    end = max(end, stop)

    def clear(self) -> None:
        """Drop everything."""
        for number in list(self._written):
            self._drop(number)

    def close(self) -> None:
        """Remove the files and their folder."""
        self._finalizer()

    def _drop(self, number: int) -> None:
        self._written.discard(number)
        if self._standing:
            self._empty(number)
        else:
            self._path(number).unlink(missing_ok=True)

    def _empty(self, number: int) -> None:
        # The same inode all the while: others hold it open.
        with self._path(number).open("ab") as file:
            file.truncate(0)
            file.truncate(self._sizes[number])

    def _path(self, number: int) -> Path:
        return self._folder / str(number)


@functools.cache
def _hole_puncher() -> Callable[[int, int, int], bool] | None:
    """``punch(handle, offset, size)``, where the system has it; says whether it did."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return None
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return lambda handle, offset, size: fallocate(handle, _PUNCH, offset, size) == 0


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:  # there is none that can be written
        return "a temporary folder"


def _remove(folder: Path, owner: int) -> None:
    if owner == os.getpid():  # a forked child uses a mirror of its own
        shutil.rmtree(folder, ignore_errors=True)
