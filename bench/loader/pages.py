"""The page cache before a measurement: all of a file in it and kept there, or none of it.

A kernel may take pages back that nobody has touched for some seconds, even if memory is plentiful. A warm file is
therefore locked by a second process while the measurement runs: `python pages.py FILE...` locks until its input ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SPARE = 4 << 30  # bytes of memory that are not locked


@contextlib.contextmanager
def pages(files: list[Path], cache: str) -> Iterator[float]:
    """Make the files warm or cold; gives the megabytes that are kept in memory until the end."""
    if cache == "cold":
        for path in files:
            drop(path)
        yield 0.0
        return
    for path in files:
        read(path)
    command = [sys.executable, __file__, *map(str, files)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        yield float(keeper.stdout.readline() or 0)


def drop(path: Path) -> None:
    """Take the pages out of the cache of this machine; that of the disk's own host is out of reach."""
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> None:
    """Read all of it once."""
    buffer = bytearray(1 << 22)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def available() -> int:
    """Bytes of memory that could be given out."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def lock(path: Path) -> tuple[mmap.mmap | None, int]:
    """Map a file and lock its pages; nothing if that is not allowed or would leave too little."""
    size = path.stat().st_size
    if not size or size + SPARE > available() or not os.access(path, os.W_OK):
        return None, 0
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size))
    return mapped, 0 if failed else size


def main() -> None:
    """Lock the files named, say how many megabytes, and wait."""
    locked = [lock(Path(name)) for name in sys.argv[1:]]
    print(round(sum(size for _, size in locked) / 1e6, 1), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
