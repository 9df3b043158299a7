"""Where the chunks of a stored array lie, so that they can be read without HDF5 or zarr."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scdd.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scdd.data.formats.remote import RemoteFiles

# kind, parameter, bit of the HDF5 filter mask that skips it (-1: none)
Step = tuple[str, int, int]

_DTYPES = (
    "bool",
    "float16",
    "float32",
    "float64",
    *(f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)),
)
_LIBRARIES = {"deflate": "zlib", "gzip": "zlib", "lz4_hdf5": "lz4", "lz4_numcodecs": "lz4"}
# More would take gigabytes of memory for the table alone, or is a length that nothing in the file bears out.
_MOST_CHUNKS = 50_000_000
_LARGEST_CHUNK = 2**31 - 1
_LARGEST_ARRAY = 2**62


class NotDirect(Exception):
    """Only h5py or zarr can read this array; the message is the reason, without a full stop."""


class FileIdentity(NamedTuple):
    """What changes when a file is replaced or written to."""

    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True, eq=False)
class ArrayLayout:
    """Where the chunks of a one-dimensional stored array lie, and how their bytes become elements.

    Chunk ``i`` holds elements ``i * chunk_length`` to ``(i + 1) * chunk_length``; the last one is padded to
    the full length, except where ``chunk_length`` is ``length`` itself (a contiguous dataset).

    Attributes
    ----------
    name : file and dataset, for messages
    paths : absolute local files, or URLs of remote ones
    identities : of each path, taken before its chunk table was read
    file_of_chunk : int32 [n_chunks], into ``paths``; 0 where the chunk is not stored
    offsets : int64 [n_chunks], bytes from the start of the file; -1 where the chunk is not stored and all
        its elements are ``fill_value``
    sizes : int64 [n_chunks], encoded bytes; 0 where the chunk is not stored
    masks : uint32 [n_chunks], HDF5 filter mask; 0 for zarr
    chunk_length, length : elements
    dtype : as stored, with its byte order
    steps : (kind, parameter, mask bit) in the order in which they are undone
    fill_value : of chunks that are not stored
    remote : what reads ``paths`` where they are URLs
    """

    name: str
    paths: tuple[str, ...]
    identities: tuple[FileIdentity, ...]
    file_of_chunk: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    masks: np.ndarray
    chunk_length: int
    length: int
    dtype: np.dtype
    steps: tuple[Step, ...]
    fill_value: float
    remote: RemoteFiles | None = None

    @property
    def n_chunks(self) -> int:
        """Number of chunks, stored or not."""
        return len(self.offsets)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return self.chunk_length * self.dtype.itemsize

    def skips_all(self, chunk: int) -> bool:
        """Whether the bytes of this chunk are its elements: no step, or all of them skipped."""
        mask = int(self.masks[chunk])
        return all(bit >= 0 and mask >> bit & 1 for _, _, bit in self.steps)

    def stored_bytes(self, chunk: int, skip: int = 0, size: int | None = None) -> bytes:
        """``size`` bytes of a stored chunk as it lies, from its byte ``skip`` on; by default all of them."""
        path, start = self.paths[self.file_of_chunk[chunk]], int(self.offsets[chunk]) + skip
        size = int(self.sizes[chunk]) - skip if size is None else size
        if self.remote is not None:
            from scdd.data.formats.remote import Range

            return self.remote.fetch([Range(path, start, start + size)])[0]
        with Path(path).open("rb") as file:
            file.seek(start)
            return file.read(size)


class Chunks(NamedTuple):
    """The table of one array: int32, int64, int64, uint32, each [n_chunks]."""

    file_of_chunk: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    masks: np.ndarray

    @classmethod
    def none_stored(cls, count: int) -> Chunks:
        """A table to be filled in."""
        files, masks = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.uint32)
        return cls(files, np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=np.int64), masks)


def layout_of(
    array: Any,
    *,
    codecs: Mapping[str, str | None],
    crc32c: Callable[[bytes], int] | None = None,
) -> ArrayLayout:
    """Chunk table of a one-dimensional `h5py.Dataset` or `zarr.Array`, local or opened by `remote_root`.

    Parameters
    ----------
    array
        Open for reading only.
    codecs
        Kinds of steps that can be undone, each with the library that does it; None where it is not built.
    crc32c
        Checksum of the index of a zarr shard; by default that of google-crc32c, which zarr depends on.

    Raises
    ------
    NotDirect
        Only h5py or zarr can read it: the layout, a filter, the store, or a codec that is not built.
    DataFileError
        The table points outside its file, or the index of a shard is damaged.
    """
    if type(array).__module__.partition(".")[0] == "zarr":
        from scdd.data.formats.layout_zarr import zarr_layout

        layout = zarr_layout(array, crc32c=crc32c)
    else:
        from scdd.data.formats.layout_hdf5 import hdf5_layout

        layout = hdf5_layout(array)
    _refuse_missing_codecs(layout, codecs)
    _check_places(layout)
    return layout


def file_identity(path: str | Path) -> FileIdentity:
    """Inode, size in bytes and time of the last change."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise DataFileError(f"{path} cannot be read ({error.strerror}); check the path") from error
    return FileIdentity(found.st_ino, found.st_size, found.st_mtime_ns)


def unchanged(layout: ArrayLayout) -> bool:
    """Whether every file of the layout is still the one whose table was read."""
    try:
        return all(
            file_identity(path) == known for path, known in zip(layout.paths, layout.identities, strict=True)
        )
    except DataFileError:
        return False


def checked_dtype(name: str, dtype: Any) -> np.dtype:
    """The dtype, if it is a number of a width that can be read."""
    if getattr(dtype, "name", "") not in _DTYPES:
        raise NotDirect(f"{name} holds {dtype}, not numbers of at most 64 bits")
    return np.dtype(dtype)


def chunk_count(name: str, length: int, chunk_length: int) -> int:
    """Number of chunks; refuses shapes whose table would not fit into memory."""
    if length < 0 or chunk_length < 1:
        raise DataFileError(
            f"{name} is corrupt: {length} elements in chunks of {chunk_length}; write it again"
        )
    count = -(-length // chunk_length)
    if count > _MOST_CHUNKS:
        raise NotDirect(f"{name} has {count:,} chunks, more than {_MOST_CHUNKS:,}")
    return count


def _refuse_missing_codecs(layout: ArrayLayout, codecs: Mapping[str, str | None]) -> None:
    for kind, _, _ in layout.steps:
        if codecs.get(kind) is None:
            library = _LIBRARIES.get(kind, kind)
            raise NotDirect(f"{layout.name} has {kind} chunks, and this build of scdd lacks {library}")


def _check_places(layout: ArrayLayout) -> None:
    """Every chunk lies inside its file, and one without filters has exactly the bytes it needs."""
    if layout.length * layout.dtype.itemsize > _LARGEST_ARRAY:
        raise DataFileError(f"{layout.name} is corrupt: it claims {layout.length} elements; write it again")
    stored = np.flatnonzero(layout.offsets >= 0)
    # Of a raw chunk the file itself bears out the size; of others nothing does before memory is taken.
    if layout.chunk_bytes > _LARGEST_CHUNK and (layout.steps or len(stored) < layout.n_chunks):
        raise NotDirect(f"{layout.name} has compressed or missing chunks of more than 2 GiB")
    file_size = np.array([known.size for known in layout.identities], dtype=np.int64)
    offsets, sizes = layout.offsets[stored], layout.sizes[stored]
    ends = file_size[layout.file_of_chunk[stored]] if len(stored) else file_size[:0]
    # Subtracted, not added: a sum of two hostile numbers could wrap around.
    bad = (sizes <= 0) | (offsets > ends) | (sizes > ends - offsets)
    steps = np.full(len(stored), len(layout.steps))
    for _, _, bit in layout.steps:
        steps -= (layout.masks[stored] >> np.uint32(bit) & 1).astype(int) if bit >= 0 else 0
    bad |= (steps == 0) & (sizes != layout.chunk_bytes)
    if bad.any():
        chunk = int(stored[np.argmax(bad)])
        place = f"{layout.sizes[chunk]} bytes at {layout.offsets[chunk]}"
        path = layout.paths[layout.file_of_chunk[chunk]]
        raise DataFileError(
            f"{layout.name} is corrupt or truncated: chunk {chunk} ({place}) does not lie in {path} "
            f"of {layout.identities[layout.file_of_chunk[chunk]].size} bytes; copy or write the file again"
        )
