"""Stored arrays that grow: values come in any portions, whole chunks go out, compressed by threads."""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future, ThreadPoolExecutor

# Level limits of each codec, by the kind of file.
_LEVELS = {
    ".h5ad": {"gzip": (0, 9), "zstd": (1, 22), "lzf": (0, 22), None: (0, 22)},
    ".zarr": {"gzip": (0, 9), "zstd": (1, 9), "lz4": (0, 9), None: (0, 22)},
}
_ZSTD_FILTER = 32015  # the number that the HDF Group gave to zstd


@dataclass(frozen=True)
class Layout:
    """How the arrays of a matrix are stored; ``chunk`` and ``shard`` in elements."""

    suffix: str
    compression: str | None
    level: int
    shuffle: bool
    chunk: int
    shard: int

    def __post_init__(self) -> None:
        codecs = _LEVELS[self.suffix]
        if self.compression not in codecs:
            known = ", ".join(map(repr, codecs))
            raise InputError(f"compression is {self.compression!r}: {self.suffix} files take {known}")
        least, most = codecs[self.compression]
        if not least <= self.level <= most:
            raise InputError(f"level is {self.level!r}: {self.compression} takes {least} to {most}")
        for name, value in (("chunk_elements", self.chunk), ("shard_elements", self.shard)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise InputError(f"{name} is {value!r}: give a whole number of at least 1")


class _Target(Protocol):
    """Where pieces go: all are of one length but the last, which may be shorter."""

    unit: int

    def put(self, piece: np.ndarray) -> None:
        """Store the next piece; it belongs to the target from now on."""

    def finish(self) -> None:
        """Wait for what is under way; create the array if nothing was ever put."""


class GrowingArray:
    """A one-dimensional stored array, appended to.

    Parameters
    ----------
    parent
        Open HDF5 or zarr group.
    name, dtype
        Of the array.
    layout
        Chunks and compression.
    pool
        Threads that compress.
    depth
        Most pieces under way at a time, so that memory is bounded.
    """

    def __init__(
        self, parent: Any, name: str, dtype: Any, layout: Layout, *, pool: ThreadPoolExecutor, depth: int
    ):
        self.dtype = np.dtype(dtype)
        self._target: _Target
        if layout.suffix == ".zarr":
            self._target = _ZarrTarget(parent, name, self.dtype, layout)
        elif layout.compression == "lzf":
            self._target = _FilteredTarget(parent, name, self.dtype, layout)
        else:
            self._target = _DirectTarget(parent, name, self.dtype, layout, pool, depth)
        self._buffer = np.empty(self._target.unit, self.dtype)
        self._filled = 0

    def append(self, values: np.ndarray) -> None:
        """Add values [n] of this array's dtype; they are copied, so the caller may reuse them."""
        taken = 0
        while taken < len(values):
            n = min(len(self._buffer) - self._filled, len(values) - taken)
            self._buffer[self._filled : self._filled + n] = values[taken : taken + n]
            self._filled += n
            taken += n
            if self._filled == len(self._buffer):
                self._target.put(self._buffer)
                self._buffer, self._filled = np.empty_like(self._buffer), 0

    def finish(self) -> None:
        """Store what is left."""
        if self._filled:
            self._target.put(self._buffer[: self._filled])
        self._target.finish()


class _DirectTarget:
    """Chunks of an HDF5 dataset, encoded by threads outside the library and written in order."""

    def __init__(
        self, parent: Any, name: str, dtype: np.dtype, layout: Layout, pool: ThreadPoolExecutor, depth: int
    ):
        self.unit, self._parent, self._name, self._dtype = layout.chunk, parent, name, dtype
        self._layout, self._pool, self._depth = layout, pool, depth
        self._dataset: Any = None
        self._length = 0
        self._pending: deque[Future[Any]] = deque()
        self._encode = _encoder(layout, dtype.itemsize)

    def put(self, piece: np.ndarray) -> None:
        """Hand a piece to the pool; write those that are done while too many are under way."""
        if self._dataset is None:
            self._create(len(piece))
        chunk = self._dataset.chunks[0]
        self._length += len(piece)
        if len(piece) < chunk:  # HDF5 stores the last chunk whole
            piece = np.concatenate([piece, np.zeros(chunk - len(piece), self._dtype)])
        self._pending.append(self._pool.submit(self._encode, piece))
        while len(self._pending) > self._depth:
            self._store()

    def finish(self) -> None:
        """Write all that is under way."""
        if self._dataset is None:
            self._create(1)
        while self._pending:
            self._store()
        self._dataset.resize((self._length,))

    def _create(self, chunk: int) -> None:
        # A small array gets one chunk of its own size, not one padded to the usual.
        codec = {"gzip": ("gzip", self._layout.level), "zstd": (_ZSTD_FILTER, (self._layout.level,))}
        name, options = codec.get(self._layout.compression or "", (None, None))
        self._dataset = self._parent.create_dataset(
            self._name,
            shape=(0,),
            maxshape=(None,),
            chunks=(chunk,),
            dtype=self._dtype,
            compression=name,
            compression_opts=options,
            shuffle=self._layout.shuffle and name is not None,
            allow_unknown_filter=True,
        )
        self._stored = 0

    def _store(self) -> None:
        encoded = self._pending.popleft().result()
        start = self._stored
        self._stored += self._dataset.chunks[0]
        self._dataset.resize((min(self._stored, self._length),))
        self._dataset.id.write_direct_chunk((start,), encoded, 0)


class _FilteredTarget:
    """An HDF5 dataset whose filter only HDF5 itself can run: one thread."""

    def __init__(self, parent: Any, name: str, dtype: np.dtype, layout: Layout):
        self.unit = layout.chunk
        self._dataset = parent.create_dataset(
            name,
            shape=(0,),
            maxshape=(None,),
            chunks=(layout.chunk,),
            dtype=dtype,
            compression=layout.compression,
            shuffle=layout.shuffle,
        )

    def put(self, piece: np.ndarray) -> None:
        """Write a piece."""
        start = len(self._dataset)
        self._dataset.resize((start + len(piece),))
        self._dataset[start:] = piece

    def finish(self) -> None:
        """Nothing is under way."""


class _ZarrTarget:
    """Shards of a zarr v3 array; zarr compresses the chunks of a shard in threads of its own."""

    def __init__(self, parent: Any, name: str, dtype: np.dtype, layout: Layout):
        self.unit = layout.chunk * max(1, layout.shard // layout.chunk)
        self._parent, self._name, self._dtype, self._layout = parent, name, dtype, layout
        self._array: Any = None

    def put(self, piece: np.ndarray) -> None:
        """Write a shard."""
        if self._array is None:
            self._create(len(piece))
        start = self._array.shape[0]
        self._array.resize((start + len(piece),))
        self._array[start : start + len(piece)] = piece

    def finish(self) -> None:
        """Nothing is under way."""
        if self._array is None:
            self._create(0)

    def _create(self, length: int) -> None:
        # As for HDF5: what fits into less than a chunk or shard is not padded to one.
        chunk = max(1, min(self._layout.chunk, length))
        shard = min(self.unit, -(-max(length, 1) // chunk) * chunk)
        self._array = self._parent.create_array(
            self._name,
            shape=(0,),
            chunks=(chunk,),
            shards=(shard,) if shard > chunk else None,
            dtype=self._dtype,
            compressors=_zarr_codecs(self._layout, self._dtype.itemsize),
            fill_value=0,
        )


def _encoder(layout: Layout, itemsize: int) -> Callable[[np.ndarray], Any]:
    """Return what HDF5's filters of this layout do to a chunk, to be run without the interpreter lock."""
    if layout.compression is None:
        return np.ndarray.tobytes
    compress: Callable[[Any], Any]
    if layout.compression == "gzip":

        def compress(values: Any) -> Any:
            return zlib.compress(values, layout.level)
    else:
        from numcodecs.zstd import Zstd

        compress = Zstd(level=layout.level).encode
    if not layout.shuffle or itemsize == 1:
        return lambda piece: compress(np.ascontiguousarray(piece))
    return lambda piece: compress(np.ascontiguousarray(piece.view(np.uint8).reshape(-1, itemsize).T))


def _zarr_codecs(layout: Layout, itemsize: int) -> list[Any] | None:
    from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

    if layout.compression is None:
        return None
    if layout.compression == "gzip":
        return [GzipCodec(level=layout.level)]
    if layout.compression == "zstd" and not layout.shuffle:
        return [ZstdCodec(level=layout.level, checksum=False)]
    cname: Any = layout.compression
    shuffle: Any = "shuffle" if layout.shuffle and itemsize > 1 else "noshuffle"
    return [BloscCodec(cname=cname, clevel=layout.level, shuffle=shuffle, typesize=itemsize)]
