"""One file or AnnData object of an atlas: its cells, its genes and its expression matrix."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdd.data.expression import Expression, Values, look, remedy
from scdd.data.formats.address import is_remote
from scdd.data.formats.matrix import MemoryMatrix, RowMatrix, open_matrix
from scdd.data.formats.tenx import find_mtx, is_tenx_h5, read_tenx_h5, read_tenx_mtx
from scdd.data.remarks import EXACT, remark_on_mask, rounds_counts
from scdd.errors import DataFileError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata

    from scdd.data.formats.remote import RemoteFiles
    from scdd.data.formats.tenx import Tenx


@dataclass(frozen=True)
class Source:
    """One opened part of an atlas.

    ``notes`` are sentences on how it was read; ``rounded``: it has been said that float32 rounds its counts.
    """

    name: str
    obs: pd.DataFrame
    var_names: pd.Index
    matrix: RowMatrix
    layer: str
    expression: Expression
    notes: tuple[str, ...] = ()
    path: Path | None = None
    remote: RemoteFiles | None = None
    rounded: bool = False


@dataclass(frozen=True)
class Store:
    """Where matrices can be found in one file or object, before one of them is chosen."""

    name: str
    obs: pd.DataFrame
    layers: dict[str, Callable[[], RowMatrix]]
    var_names: dict[str, pd.Index] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    remote: RemoteFiles | None = None


def open_source(source: Any, *, layer: str, expression: str) -> Source:
    """Open an AnnData, ``.h5ad``, ``.zarr`` or 10x matrix and choose its expression matrix."""
    store = store_of(source)
    if not len(store.obs):
        raise InputError(f"{store.name} is empty: it has no cells")
    chosen, matrix, kind, values = _choose(store, layer, expression)
    names = store.var_names["raw/X" if chosen == "raw/X" else "X"]
    if not len(names):
        raise InputError(f"{store.name} is empty: {chosen} has no genes")
    if matrix.shape != (len(store.obs), len(names)):
        raise DataFileError(
            f"{store.name} is corrupt: {chosen} is {matrix.shape[0]} x {matrix.shape[1]} "
            f"for {len(store.obs)} cells and {len(names)} genes"
        )
    _refuse_duplicates(store.name, names)
    told = store.notes, _path_of(source), store.remote
    opened = Source(store.name, store.obs, names, matrix, chosen, kind, *told)
    if kind == "counts":
        remark_on_mask(values, store.name, chosen, [name for name in store.layers if name != chosen])
    if kind == "counts" and values.largest >= EXACT:
        row = values.peak
        return replace(opened, rounded=rounds_counts(opened, matrix.read(row, row + 1), np.array([row])))
    return opened


def _path_of(source: Any) -> Path | None:
    if is_remote(source):
        return None
    path = source if isinstance(source, (str, Path)) else source.filename if source.isbacked else None
    return None if path is None else Path(path).resolve()


def store_of(source: Any) -> Store:
    """What lies in a path, URL or AnnData, before a matrix is chosen."""
    if is_remote(source):
        return _store_of_url(source)
    return _store_of_path(Path(source)) if isinstance(source, (str, Path)) else _store_of_anndata(source)


def _choose(store: Store, layer: str, expression: str) -> tuple[str, RowMatrix, Expression, Values]:
    """The first matrix whose values are of the wanted kind."""
    if layer != "auto" and layer not in store.layers:
        meant = f"; did you mean layers/{layer}?" if f"layers/{layer}" in store.layers else ""
        raise InputError(f"layer={layer!r} is not in {store.name}; it has {', '.join(store.layers)}{meant}")
    wanted = ("counts", "log1p") if expression == "auto" else (expression,)
    # Other layers are never taken unasked: spliced counts or a 0/1 mask are whole numbers too.
    names: list[str] = [name for name in ("layers/counts", "X", "raw/X") if name in store.layers]
    names = [layer] if layer != "auto" else names or list(store.layers)[:1]
    seen: dict[str, Values] = {}
    for kind in wanted:
        for name in names:
            matrix = store.layers[name]()
            seen[name] = look(matrix)
            if seen[name].fits(kind):
                return name, matrix, kind, seen[name]  # type: ignore[return-value]
    others = [name for name in store.layers if name not in seen]
    hint = f"; other layers, to be named with --layer: {', '.join(others)}" if others else ""
    found = "; ".join(f"{name} {values.describe(store.obs.index)}" for name, values in seen.items())
    best = next((v for v in seen.values() if v.finite and not v.negative), next(iter(seen.values())))
    raise InputError(f"{store.name} holds no {' or '.join(wanted)}: {found}; {remedy(best, wanted[0])}{hint}")


def _store_of_anndata(adata: anndata.AnnData) -> Store:
    if not hasattr(adata, "obs") or not hasattr(adata, "var_names"):
        raise InputError(f"an atlas is an AnnData, a path or a list of them, not {type(adata).__name__}")
    if adata.isbacked:
        if adata.is_view:
            raise InputError(
                "a view of a backed AnnData cannot be read by rows; call .to_memory() on it first"
            )
        store = _store_of_path(Path(adata.filename))
        return Store(store.name, adata.obs.copy(), store.layers, store.var_names)
    name = "AnnData"
    layers: dict[str, Callable[[], RowMatrix]] = {}
    if adata.X is not None:
        layers["X"] = partial(MemoryMatrix, adata.X, f"{name}: X")
    for key, values in adata.layers.items():
        layers[f"layers/{key}"] = partial(MemoryMatrix, values, f"{name}: layers/{key}")
    names = {"X": pd.Index(adata.var_names)}
    if adata.raw is not None:
        layers["raw/X"] = partial(MemoryMatrix, adata.raw.X, f"{name}: raw/X")
        names["raw/X"] = pd.Index(adata.raw.var_names)
    if not layers:
        raise InputError("the AnnData has neither X nor layers nor raw")
    return Store(name, adata.obs.copy(), layers, names)


def _store_of_path(path: Path) -> Store:
    if path.suffix == ".packed":
        from scdd.data.packed.store import packed_store

        return packed_store(path)
    matrix = find_mtx(path) if path.exists() else None
    if matrix is not None:
        return _store_of_tenx(read_tenx_mtx(matrix), path.resolve().name)
    return _store_of_root(path, _open(path))


def _store_of_url(url: str) -> Store:
    from scdd.data.formats.remote import RemoteFiles
    from scdd.data.formats.remote_root import open_root

    files = RemoteFiles(url)
    return replace(_store_of_root(files, open_root(files)), remote=files)


def _store_of_root(path: Path | RemoteFiles, root: Any) -> Store:
    """What lies in an open h5ad, 10x ``.h5`` or zarr."""
    if hasattr(root, "filename") and is_tenx_h5(root):
        return _store_of_tenx(read_tenx_h5(path, root), path.name)
    try:
        if len(getattr(root.get("obs"), "dtype", None) or ()):
            return _store_of_legacy(path)
        return _store_of_group(path.name, root)
    except (KeyError, AttributeError, ValueError, RuntimeError, TypeError) as error:
        raise DataFileError(
            f"{path} is not a complete AnnData store ({error}); write the file again"
        ) from error


def _store_of_tenx(tenx: Tenx, name: str) -> Store:
    return Store(name, tenx.obs, {"X": tenx.matrix}, {"X": tenx.var.index}, tenx.notes)


def _store_of_legacy(path: Path | RemoteFiles) -> Store:
    """A file of anndata < 0.7, where obs is a record array: few are left and small, so read it whole."""
    import anndata

    if not isinstance(path, Path):
        raise InputError(f"{path} was written by anndata < 0.7; copy it to a local disk and open it there")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = _store_of_anndata(anndata.read_h5ad(path))
    return Store(path.name, store.obs, store.layers, store.var_names)


def _store_of_group(name: str, root: Any) -> Store:
    obs, var = _table(root["obs"]), _table(root["var"])
    has_raw = hasattr(root.get("raw"), "keys") and "var" in root["raw"]  # there may be a raw that is None
    raw_var = _table(root["raw/var"]) if has_raw else None
    paths = ["X"] if "X" in root else []
    paths += [f"layers/{key}" for key in root["layers"]] if "layers" in root else []
    names = {"X": pd.Index(var.index)}
    if raw_var is not None and "X" in root["raw"]:
        paths.append("raw/X")
        names["raw/X"] = pd.Index(raw_var.index)
    if not paths:
        raise ValueError("it has neither X nor layers nor raw")
    layers: dict[str, Callable[[], RowMatrix]] = {
        path: partial(open_matrix, root[path], f"{name}: {path}") for path in paths
    }
    return Store(name, obs, layers, names)


def _table(element: Any) -> pd.DataFrame:
    """An annotation table; hdf5plugin is asked to help where h5py alone lacks a filter."""
    from anndata.io import read_elem

    with warnings.catch_warnings():
        # Old files carry encodings that anndata reads but comments on.
        warnings.simplefilter("ignore")
        try:
            return read_elem(element)
        except OSError as error:
            if "filter" not in str(error) and "plugin" not in str(error):
                raise
            try:
                import hdf5plugin  # noqa: F401  # registers its filters with HDF5
            except ImportError:
                raise DataFileError(
                    f"{element.name} is compressed with a filter that h5py lacks; pip install hdf5plugin"
                ) from error
            return read_elem(element)


def _open(path: Path) -> Any:
    if not path.exists():
        raise DataFileError(f"{path} does not exist; check the path")
    if path.is_dir():
        return _open_zarr(path)
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        detail = str(error).split("(")[-1].rstrip(")")
        raise DataFileError(
            f"{path} is not a readable h5ad file ({detail}); copy or write it again"
        ) from error


def _open_zarr(path: Path) -> Any:
    import zarr

    try:
        return zarr.open_group(str(path), mode="r")
    except Exception as error:
        found = sorted(inside.name for inside in path.glob("*.h5"))
        remedy = (
            f"name its .h5 files ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''}), one or a list"
            if found
            else "name the file or the folder that directly holds it"
        )
        raise DataFileError(
            f"{path} is a folder that holds no atlas: no zarr store, no .h5ad or .zarr "
            f"files, no 10x matrix.mtx; {remedy}"
        ) from error


def _refuse_duplicates(name: str, var_names: pd.Index) -> None:
    if said := duplicated(var_names):
        raise InputError(f"{name} has {said}")


def duplicated(var_names: pd.Index) -> str:
    """What to say of gene names that are there twice; nothing where all are unique."""
    repeated = var_names[var_names.duplicated()].unique()
    if not len(repeated):
        return ""
    return (
        f"{len(repeated)} duplicated gene names, e.g. {repeated[0]!r}; "
        "make them unique first: adata.var_names_make_unique()"
    )
