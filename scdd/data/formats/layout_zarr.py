"""Chunk tables of zarr arrays (v2, v3, v3 sharded), from their metadata and one look at their folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scdd.data.formats.layout import (
    ArrayLayout,
    Chunks,
    NotDirect,
    checked_dtype,
    chunk_count,
    file_identity,
)
from scdd.data.formats.layout_cache import cached_table
from scdd.data.formats.layout_shards import Shard, Shards, google_crc32c
from scdd.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scdd.data.formats.layout import FileIdentity, Step
    from scdd.data.formats.remote import RemoteFiles

# numcodecs' ids; zarr v3 has its own gzip, zstd, blosc and crc32c under the same names.
_KINDS = {"zlib": "deflate", "gzip": "gzip", "zstd": "zstd", "lz4": "lz4_numcodecs", "blosc": "blosc"}


class _Plan(NamedTuple):
    """What the metadata says of the files: their chunk keys, and what lies in each of them.

    ``folder`` and ``prefix`` make up the name of file ``n``: ``f"{folder}/{prefix}{n}"``.
    """

    folder: str
    prefix: str
    file_length: int
    dtype: np.dtype
    steps: tuple[Step, ...]
    shard: Shard | None


def zarr_layout(array: Any, *, crc32c: Callable[[bytes], int] | None = None) -> ArrayLayout:
    """Chunk table of a `zarr.Array`; see `scdd.data.formats.layout.layout_of`."""
    name, remote = _place(array)
    if len(array.shape) != 1:
        raise NotDirect(f"{name} is not one-dimensional")
    metadata, length = array.metadata.to_dict(), int(array.shape[0])
    plan = (_plan_v2 if int(metadata["zarr_format"]) == 2 else _plan_v3)(name, array, metadata)
    n_files = chunk_count(name, length, plan.file_length)
    paths, identities, numbers = _stored(_files(name, plan, n_files, remote))
    chunk_length = plan.shard.chunk_length if plan.shard else plan.file_length
    count = chunk_count(name, length, chunk_length)
    if plan.shard is None:
        chunks = Chunks.none_stored(count)
        chunks.file_of_chunk[numbers] = np.arange(len(paths))
        chunks.offsets[numbers] = 0
        chunks.sizes[numbers] = [known.size for known in identities]
    else:
        shards = Shards(
            name, plan.shard, plan.file_length, paths, identities, numbers, crc32c or google_crc32c(), remote
        )
        key = (name, *paths[:1])
        chunks = cached_table(key, identities, count, lambda: shards.table(count), remote=remote is not None)
    fill = 0.0 if array.fill_value is None else float(array.fill_value)
    known = name, paths, identities
    return ArrayLayout(*known, *chunks, chunk_length, length, plan.dtype, plan.steps, fill, remote)


def _place(array: Any) -> tuple[str, RemoteFiles | None]:
    """Folder of an array: its path, or its URL and what reads it."""
    from zarr.storage import LocalStore

    if type(array).__name__ != "Array":
        raise NotDirect(f"{type(array).__name__} is neither an h5py.Dataset nor a zarr.Array")
    store, inner = array.store_path.store, array.store_path.path
    remote = getattr(store, "remote_files", None)  # of a store that scdd opened
    if remote is not None:
        return f"{remote.url}/{inner}", remote
    if not isinstance(store, LocalStore):
        raise NotDirect(f"{array.store_path} is not in a local folder but in a {type(store).__name__}")
    return os.path.join(os.path.abspath(store.root), inner), None  # noqa: PTH100, PTH118 (keeps links)


def _plan_v2(name: str, array: Any, metadata: Mapping[str, Any]) -> _Plan:
    dtype = checked_dtype(name, array.dtype)
    codecs = [*(metadata.get("filters") or ()), *([metadata["compressor"]] if metadata["compressor"] else ())]
    steps = _steps(name, [(str(codec["id"]), codec) for codec in codecs])
    return _Plan(name, "", int(metadata["chunks"][0]), dtype, steps, None)


def _plan_v3(name: str, array: Any, metadata: Mapping[str, Any]) -> _Plan:
    if metadata.get("storage_transformers"):
        raise NotDirect(f"{name} has storage transformers")
    grid, grid_options = _named(metadata["chunk_grid"])
    if grid != "regular":
        raise NotDirect(f"{name} has a {grid} chunk grid")
    codecs, shard = [_named(codec) for codec in metadata["codecs"]], None
    if codecs[0][0] == "sharding_indexed" and len(codecs) == 1:
        shard = _shard(name, codecs[0][1])
        codecs = [_named(codec) for codec in codecs[0][1]["codecs"]]
    file_length = int(grid_options["chunk_shape"][0])
    if shard and (shard.chunk_length < 1 or file_length % shard.chunk_length):
        raise DataFileError(
            f"{name} is corrupt: shards of {file_length} in chunks of {shard.chunk_length}; write it again"
        )
    folder, prefix = _keys(name, metadata["chunk_key_encoding"])
    dtype = _v3_dtype(name, array.dtype, codecs[0])
    return _Plan(folder, prefix, file_length, dtype, _steps(name, codecs[1:]), shard)


def _shard(name: str, options: Mapping[str, Any]) -> Shard:
    codecs = [_named(codec) for codec in options["index_codecs"]]
    kinds = [kind for kind, _ in codecs]
    if kinds not in (["bytes"], ["bytes", "crc32c"]):
        raise NotDirect(f"{name} encodes the index of its shards by {', '.join(kinds)}")
    order = ">" if codecs[0][1].get("endian") == "big" else "<"
    at_end = options.get("index_location", "end") == "end"
    return Shard(int(options["chunk_shape"][0]), at_end, order, len(kinds) == 2)


def _keys(name: str, encoding: Any) -> tuple[str, str]:
    """Folder and prefix of the files of a v3 array."""
    kind, options = _named(encoding)
    if kind == "v2":
        return name, ""
    if kind != "default":
        raise NotDirect(f"{name} names its chunks by {kind!r}")
    return (name, "c.") if options.get("separator", "/") == "." else (f"{name}/c", "")


def _v3_dtype(name: str, dtype: Any, codec: tuple[str, Mapping[str, Any]]) -> np.dtype:
    dtype, (kind, options) = checked_dtype(name, dtype), codec
    if kind != "bytes":
        raise NotDirect(f"{name} is encoded by {kind!r} before its bytes")
    endian = options.get("endian")
    if endian is None and dtype.itemsize > 1:
        raise NotDirect(f"{name} does not state its byte order")
    return dtype.newbyteorder({"big": ">", "little": "<", None: "="}[getattr(endian, "value", endian)])


def _steps(name: str, codecs: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[Step, ...]:
    """Codecs, given in the order in which they were applied, in the order in which they are undone."""
    steps: list[Step] = []
    for full, options in reversed(codecs):
        kind = full.removeprefix("numcodecs.")
        if kind == "shuffle":
            if int(options.get("elementsize", 4)) > 1:
                steps.append(("shuffle", int(options.get("elementsize", 4)), -1))
        elif full == "crc32c":
            steps.append(("crc32c", 0, -1))
        elif kind in _KINDS and not (kind == "blosc" and options.get("cname") == "snappy"):
            steps.append((_KINDS[kind], 0, -1))
        else:
            raise NotDirect(f"{name} is encoded by {full!r}")
    return tuple(steps)


def _named(value: Any) -> tuple[str, Mapping[str, Any]]:
    """Name and configuration, however briefly the metadata puts them."""
    if isinstance(value, str):
        return value, {}
    return str(value["name"]), value.get("configuration") or {}


def _files(
    name: str, plan: _Plan, count: int, remote: RemoteFiles | None
) -> dict[int, tuple[str, FileIdentity]]:
    """Path and identity of those chunk files that exist, by one listing of their folder."""
    if remote is not None:
        from scdd.data.formats.remote_zarr import stored_objects

        return stored_objects(remote, plan.folder, plan.prefix, count)
    found: dict[int, tuple[str, FileIdentity]] = {}
    try:
        with os.scandir(plan.folder) as entries:
            for entry in entries:
                number = chunk_number(entry.name, plan.prefix)
                if number is not None and number < count and entry.is_file():
                    # DirEntry.stat would do, but has no inode on Windows.
                    found[number] = (entry.path, file_identity(entry.path))
    except FileNotFoundError:
        pass  # no chunk is stored
    except OSError as error:
        raise DataFileError(f"{name} cannot be listed ({error.strerror}); check its permissions") from error
    return found


def chunk_number(name: str, prefix: str) -> int | None:
    """Number of the chunk that a file of this name holds; None where it is another file."""
    number = name.removeprefix(prefix)
    known = name.startswith(prefix) and number.isascii() and number.isdigit()
    return int(number) if known and str(int(number)) == number else None


def _stored(
    found: dict[int, tuple[str, FileIdentity]],
) -> tuple[tuple[str, ...], tuple[FileIdentity, ...], np.ndarray]:
    """Paths, identities and numbers [n] of chunk files, ascending."""
    numbers = sorted(found)
    paths = tuple(found[n][0] for n in numbers)
    return paths, tuple(found[n][1] for n in numbers), np.array(numbers, dtype=np.int64)
