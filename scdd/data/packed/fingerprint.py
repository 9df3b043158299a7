"""What a packed folder was made from, and whether that has changed since."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdd.data.packed.header import hash_names
from scdd.data.packed.store import PackedStore
from scdd.errors import DataFileError

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas


def is_fresh(path: str | Path, atlas: Atlas) -> bool:
    """Whether a packed folder holds this atlas: the same files unchanged, the same cells, genes and layer."""
    try:
        header = PackedStore.open(path).header
    except DataFileError:
        return False
    told = (header.n_obs, header.layer, header.expression, header.genes)
    if told != (atlas.n_obs, atlas.layer, atlas.expression, hash_names(atlas.var_names)):
        return False
    return header.source == fingerprint(atlas)


def fingerprint(atlas: Atlas) -> dict[str, Any]:
    """What the atlas was read from, as JSON: files as they are told apart, else a hash of the content."""
    rows = np.ascontiguousarray(atlas.rows, dtype=np.int64)
    whole = len(rows) == len(atlas.store) and np.array_equal(rows, np.arange(len(rows)))
    files = [_stat(path) for path in source_paths(atlas)] or _remote_objects(atlas)
    return {
        "name": atlas.name,
        "dataset": [source.layer for source in atlas.store.sources],
        "rows": None if whole else hashlib.sha256(rows.tobytes()).hexdigest(),
        "obs": _hash_table(atlas.obs),
        "files": files,
        "content": None if files else _hash_content(atlas),
    }


def identity(source: dict[str, Any]) -> Any:
    """What stays the same when a source is changed in place."""
    return source.get("name"), [file.get("path") for file in source.get("files", [])]


def source_paths(atlas: Atlas) -> list[Path]:
    """The files and folders that an atlas reads; none where a part of it lies in memory alone."""
    paths = [_path_of(source) for source in atlas.store.sources]
    return [path for path in paths if path is not None] if None not in paths else []


def storable(obs: pd.DataFrame) -> pd.DataFrame:
    """Columns of Python objects become categories of strings; missing entries stay missing."""
    table = obs.copy()
    table.columns, table.index = table.columns.astype(str), table.index.astype(str)
    if table.index.name in table.columns:
        table.index.name = None
    for key in table.columns:
        if table[key].dtype == object or isinstance(table[key].dtype, pd.StringDtype):
            column = table[key]
            table[key] = column.where(column.isna(), column.astype(str)).astype("category")
    return table


def _remote_objects(atlas: Atlas) -> list[dict[str, Any]]:
    """The remote objects that an atlas reads; none where a part is local or not read by its chunks."""
    told = []
    for source in atlas.store.sources:
        matrix = getattr(source.matrix, "base", source.matrix)
        layouts = getattr(matrix, "layouts", None)
        if source.remote is None or layouts is None:
            return []
        identities = {
            path: own for each in layouts for path, own in zip(each.paths, each.identities, strict=True)
        }
        digest = hashlib.sha256(repr(sorted(identities.items())).encode()).hexdigest()
        size = sum(own.size for own in identities.values())
        told.append({"path": source.remote.url, "size": size, "mtime_ns": None, "listing": digest})
    return told


def _path_of(source: Any) -> Path | None:
    """Where an opened source lies: as it says itself, or else from the h5py or zarr array that it reads."""
    if getattr(source, "remote", None) is not None:
        return None
    known = getattr(source, "path", None) or getattr(source.matrix, "path", None)
    array: Any = getattr(source.matrix, "_data", getattr(source.matrix, "_array", None))
    if known is None and hasattr(getattr(array, "file", None), "filename"):
        known = array.file.filename
    if known is None and hasattr(array, "store"):
        known = getattr(array.store, "root", None)
    return None if known is None else Path(known).resolve()


def _stat(path: Path) -> dict[str, Any]:
    """A file by its size, time and inode; a folder by those of every file in it."""
    own = path.stat()
    told = {"path": str(path), "size": own.st_size, "mtime_ns": own.st_mtime_ns, "inode": own.st_ino}
    if not path.is_dir():
        return told
    digest, size = hashlib.sha256(), 0
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        found = file.stat()
        size += found.st_size
        digest.update(f"{file.relative_to(path)}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    # The folder's own time changes with any file that comes or goes, also one that is no part of the store.
    return told | {"size": size, "mtime_ns": None, "listing": digest.hexdigest()}


def _hash_table(obs: pd.DataFrame) -> str:
    """Columns may be changed after opening, names of cells may not: they are hashed with the content."""
    table = storable(obs.reset_index(drop=True))
    digest = hashlib.sha256("\0".join(table.columns).encode())
    if len(table.columns):
        digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def _hash_content(atlas: Atlas) -> str:
    digest = hashlib.sha256(hash_names(atlas.obs.index).encode())
    for _, block in atlas.blocks():
        for part in (block.data, block.indices, block.indptr):
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
