"""Chunk tables of zarr v3 arrays in shards, each of which says where its chunks lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scdd.data.formats.layout import Chunks, NotDirect
from scdd.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scdd.data.formats.layout import FileIdentity
    from scdd.data.formats.remote import RemoteFiles

_MISSING = np.uint64(2**64 - 1)


class Shard(NamedTuple):
    """Inner chunks of a shard and its index: two uint64 for each of them, and perhaps a checksum."""

    chunk_length: int
    at_end: bool
    order: str
    checksum: bool


class Shards(NamedTuple):
    """The shard files of an array, whose indexes make up its chunk table."""

    name: str
    shard: Shard
    file_length: int
    paths: tuple[str, ...]
    identities: tuple[FileIdentity, ...]
    numbers: np.ndarray
    crc32c: Callable[[bytes], int]
    remote: RemoteFiles | None

    def table(self, count: int) -> Chunks:
        """Read the index of every shard."""
        shard = self.shard
        inner = self.file_length // shard.chunk_length
        chunks = Chunks.none_stored(count)
        for position, (number, raw) in enumerate(zip(self.numbers, self._read(inner), strict=True)):
            index = self._index(position, inner, raw)
            here = slice(int(number) * inner, min((int(number) + 1) * inner, count))
            index = index[: here.stop - here.start]
            stored = ~(index == _MISSING).all(axis=1)
            if (index[stored] > np.iinfo(np.int64).max).any():
                raise self._corrupt(position, "its index names bytes beyond 2^63")
            chunks.file_of_chunk[here] = np.where(stored, position, 0)
            chunks.offsets[here] = np.where(stored, index[:, 0].astype(np.int64), -1)
            chunks.sizes[here] = np.where(stored, index[:, 1].astype(np.int64), 0)
        return chunks

    def _read(self, inner: int) -> Iterable[bytes]:
        """The index of every shard as it lies; all at once where they have to be fetched."""
        shard = self.shard
        size, spans = 16 * inner + 4 * shard.checksum, []
        for position, known in enumerate(self.identities):
            if known.size < size:
                raise self._corrupt(position, f"{known.size} bytes do not hold its index of {size}")
            start = known.size - size if shard.at_end else 0
            spans.append((self.paths[position], start, start + size))
        if self.remote is None:
            return (_bytes_of(*span) for span in spans)
        from scdd.data.formats.remote import Range

        return self.remote.fetch([Range(*span) for span in spans])

    def _index(self, position: int, inner: int, raw: bytes) -> np.ndarray:
        """Offset and size of each inner chunk, uint64 [inner, 2]."""
        shard = self.shard
        if len(raw) != 16 * inner + 4 * shard.checksum:
            raise self._corrupt(position, "it has become shorter")
        if shard.checksum and self.crc32c(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            raise self._corrupt(position, "the checksum of its index is wrong")
        return np.frombuffer(raw, dtype=f"{shard.order}u8", count=2 * inner).reshape(-1, 2).astype(np.uint64)

    def _corrupt(self, position: int, fault: str) -> DataFileError:
        path = self.paths[position]
        return DataFileError(f"{self.name} is corrupt: shard {path}: {fault}; copy or write the store again")


def _bytes_of(path: str, start: int, stop: int) -> bytes:
    with Path(path).open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def google_crc32c() -> Callable[[bytes], int]:
    """The checksum by google-crc32c, which zarr depends on."""
    try:
        import google_crc32c
    except ImportError as error:
        raise NotDirect("the checksums of zarr shards need google-crc32c") from error
    return google_crc32c.value
