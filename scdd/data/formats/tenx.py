"""Matrices as 10x Genomics' Cell Ranger and its relatives write them: ``.h5`` and folders of ``.mtx``."""

from __future__ import annotations

import warnings
import zlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdd.data.formats.chosen import ChosenColumns
from scdd.data.formats.matrix import MemoryMatrix, StoredCsr
from scdd.errors import DataFileError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scdd.data.formats.matrix import RowMatrix
    from scdd.data.formats.remote import RemoteFiles

_EXPRESSION = "Gene Expression"
# The rows of features that are read beside id and name, where there are any.
_OPTIONAL = {"feature_type": "feature_types", "genome": "genome"}
_READ_ERRORS = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, OverflowError, zlib.error)


@dataclass(frozen=True)
class Tenx:
    """A 10x matrix of which only the names are in memory so far.

    Attributes
    ----------
    obs : no columns; the barcodes are its index
    var : ``gene_ids``, ``feature_types`` and ``genome`` as far as the file has them; unique symbols are its
        index
    matrix : opens the matrix, cells x genes of ``var``
    notes : what was left out or renamed, in sentences
    """

    obs: pd.DataFrame
    var: pd.DataFrame
    matrix: Callable[[], RowMatrix]
    notes: tuple[str, ...]


def is_tenx_h5(root: Any) -> bool:
    """Whether an open HDF5 file has the group of Cell Ranger 3 and later, or those of older ones."""
    return "obs" not in root and ("features" in _keys(root, "matrix") or bool(_genomes(root)))


def read_tenx_h5(path: Path | RemoteFiles, root: Any) -> Tenx:
    """Names of a 10x ``.h5``; its CSC of features x barcodes is, as it lies, the CSR of cells x features.

    Raises
    ------
    InputError
        Several genome groups, or no gene expression.
    DataFileError
        A part is missing, or its length is not that of the matrix.
    """
    genomes = _genomes(root)
    if len(genomes) > 1:
        raise InputError(
            f"{path} holds {len(genomes)} genomes ({', '.join(genomes)}), each with cells of its own; "
            "read one of them with scanpy.read_10x_h5(path, genome=...) and write it as .h5ad"
        )
    key = genomes[0] if genomes else "matrix"
    try:
        group = root[key]
        shape = tuple(int(n) for n in group["shape"][...])
        barcodes, var = _strings(group["barcodes"]), _features(group)
    except _READ_ERRORS as error:
        detail = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise DataFileError(
            f"{path} is not a complete 10x file: {key} cannot be read ({detail}); copy it again"
        ) from error
    if shape != (len(var), len(barcodes)):
        raise DataFileError(
            f"{path} is corrupt: {key} is {' x '.join(map(str, shape))} "
            f"for {len(var)} features and {len(barcodes)} barcodes; copy it again"
        )
    open_rows = partial(_open_rows, path, group, (len(barcodes), len(var)))
    return _offered(path.name, barcodes, var, open_rows)


def _genomes(root: Any) -> list[str]:
    """Groups that Cell Ranger 1 and 2 wrote, one a genome."""
    parts = {"barcodes", "genes", "data", "indices", "indptr"}
    return [key for key in root if parts <= _keys(root, key)]


def _keys(root: Any, key: str) -> set[str]:
    """What a group holds; nothing if there is no such group."""
    group = root.get(key)
    return set(group) if hasattr(group, "keys") else set()


def _features(group: Any) -> pd.DataFrame:
    """Columns ``name``, ``gene_ids`` and what else there is, one row a feature."""
    if "features" in group:
        found = group["features"]
        columns = {"name": found["name"], "gene_ids": found["id"]}
        columns |= {label: found[key] for key, label in _OPTIONAL.items() if key in found}
    else:
        columns = {"name": group["gene_names"], "gene_ids": group["genes"]}
    return pd.DataFrame({label: _strings(dataset) for label, dataset in columns.items()})


def _strings(dataset: Any) -> np.ndarray:
    return np.asarray(dataset.asstr()[...], dtype=object)


def _open_rows(path: Path | RemoteFiles, group: Any, shape: tuple[int, int]) -> RowMatrix:
    try:
        return StoredCsr(group, shape, f"{path.name}: {group.name.strip('/')}")
    except KeyError as error:
        raise DataFileError(f"{path} is not a complete 10x file ({error.args[0]}); copy it again") from error


def find_mtx(path: Path) -> Path | None:
    """The ``matrix.mtx[.gz]`` that a path is or that lies in a folder, with a sample's prefix or without.

    Raises
    ------
    InputError
        Several samples in one folder.
    """
    if not path.is_dir():
        return path if path.name.endswith(("matrix.mtx", "matrix.mtx.gz")) else None
    found = sorted(p for p in path.iterdir() if p.name.endswith(("matrix.mtx", "matrix.mtx.gz")))
    samples = {p.name.removesuffix(".gz"): p for p in found}
    if len(samples) > 1:
        names = ", ".join(p.name for p in list(samples.values())[:3])
        raise InputError(f"{path} holds {len(samples)} samples; name those to be read: {names}")
    return next(iter(samples.values()), None)


def read_tenx_mtx(matrix: Path) -> Tenx:
    """Read ``matrix.mtx[.gz]`` with ``features.tsv`` (or ``genes.tsv``) and ``barcodes.tsv`` beside it.

    Raises
    ------
    InputError
        No gene expression.
    DataFileError
        A part is missing, truncated, or does not have the length of the matrix.
    """
    prefix = matrix.name[: matrix.name.rindex("matrix.mtx")]
    features = _table(_beside(matrix, prefix, ("features.tsv", "genes.tsv")))
    barcodes = _table(_beside(matrix, prefix, ("barcodes.tsv",)))[0].to_numpy(dtype=object)
    var = pd.DataFrame({"name": features[1 if 1 in features else 0], "gene_ids": features[0]})
    if 2 in features:
        var["feature_types"] = features[2]
    values = _read_mtx(matrix, (len(var), len(barcodes)))
    held = MemoryMatrix(values, f"{matrix.name}: X")
    return _offered(matrix.parent.name or matrix.name, barcodes, var, lambda: held)


def _beside(matrix: Path, prefix: str, names: tuple[str, ...]) -> Path:
    wanted = [matrix.with_name(f"{prefix}{name}{suffix}") for name in names for suffix in ("", ".gz")]
    for path in wanted:
        if path.is_file():
            return path
    parts = " or ".join(f"{prefix}{name}[.gz]" for name in names)
    raise DataFileError(f"{matrix.parent} is not a complete 10x folder: {parts} is missing; copy it again")


def _table(path: Path) -> pd.DataFrame:
    try:
        # A gene may be called NA, and a quotation mark is a character like others.
        table = pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=3)
    except _READ_ERRORS as error:
        raise DataFileError(f"{path} cannot be read ({error}); copy it again") from error
    return table.fillna("")


def _read_mtx(path: Path, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Cells x features, float32."""
    from scipy.io import mminfo, mmread

    try:
        rows, columns, *_, field, _ = mminfo(path)
        if (rows, columns) == shape and field in ("integer", "real", "pattern", "unsigned-integer"):
            return sparse.csr_matrix(mmread(path).T, dtype=np.float32)
    except _READ_ERRORS as error:
        raise DataFileError(f"{path} is truncated or damaged ({error}); copy it again") from error
    if (rows, columns) == shape:
        raise DataFileError(f"{path} holds {field} values, not counts")
    turned = "; it is turned: rows must be features" if (columns, rows) == shape else ""
    raise DataFileError(
        f"{path} is {rows} x {columns} for {shape[0]} features and {shape[1]} barcodes{turned}; "
        "all three files must come from one run"
    )


def _offered(
    name: str, barcodes: np.ndarray, var: pd.DataFrame, open_matrix: Callable[[], RowMatrix]
) -> Tenx:
    """Only gene expression, under unique symbols."""
    types = var["feature_types"] if "feature_types" in var else pd.Series(_EXPRESSION, index=var.index)
    kept, notes = np.flatnonzero(types == _EXPRESSION), []
    if len(var) and not len(kept):
        raise InputError(f"{name} holds {', '.join(types.unique())} but no {_EXPRESSION}")
    if len(kept) < len(var):
        others = types[types != _EXPRESSION].value_counts()
        left = ", ".join(f"{count:,} {kind}" for kind, count in others.items())
        notes.append(f"{name}: only {_EXPRESSION} is read; left out: {left}")
    var = var.assign(name=var["name"].where(var["name"] != "", var["gene_ids"]))
    var = var.iloc[kept].set_index("name").rename_axis(None)
    repeated = int(var.index.duplicated().sum())
    if repeated:
        var.index = _unique(var.index)
        notes.append(f"{name}: {repeated:,} repeated gene symbols got a number (-1, -2, ...), as in scanpy")
    matrix = open_matrix if len(kept) == len(types) else partial(_choose, open_matrix, kept)
    return Tenx(pd.DataFrame(index=pd.Index(barcodes)), var, matrix, tuple(notes))


def _choose(open_matrix: Callable[[], RowMatrix], kept: np.ndarray) -> RowMatrix:
    return ChosenColumns(open_matrix(), kept)


def _unique(index: pd.Index) -> pd.Index:
    from anndata.utils import make_index_unique

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # symbols such as HLA-1 exist; the result is unique all the same
        return make_index_unique(index)
