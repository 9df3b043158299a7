"""A packed folder: every cell on its own, about two bytes a stored value, read in any order at full speed.

``name.packed/`` holds ``rows.bin`` (one record a cell, see csrc/packed.hpp), ``offsets.npy`` (where each
begins), ``tables.h5`` (obs and var, as anndata writes them) and ``header.json`` (what it is, and checksums).
It is a copy made by `scdd.data.packed.writing.pack`, and can always be made again from its source.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdd import _csr
from scdd.data.expression import Faults
from scdd.data.formats.matrix import BlockMatrix
from scdd.data.packed.header import (
    HEADER,
    OFFSETS,
    REMEDY,
    ROWS,
    TABLES,
    Header,
    check_size,
    hash_names,
    read_header,
    verify_file,
)
from scdd.errors import DataFileError, InputError

if TYPE_CHECKING:
    from scdd.data.source import Store

_SMALLEST_RECORD = 24


class PackedStore(BlockMatrix):
    """A packed folder, opened: rows are memory-mapped and decoded when they are asked for.

    Fulfils `scdd.data.formats.matrix.RowMatrix`; may be pickled and shared over fork. `open` makes one.

    Attributes
    ----------
    shape : cells, genes
    place : for messages
    nbytes : size as float32 CSR
    header : what was packed
    threads : C++ threads a call
    """

    def __init__(self, path: Path, header: Header, rows: np.ndarray, offsets: np.ndarray):
        self.path, self.header, self.threads = path, header, 1
        self._records, self._offsets = rows, offsets
        self.shape = (header.n_obs, header.n_vars)
        self.place = f"{path.name}: {header.layer}"
        self.nbytes = 8 * header.nnz

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> PackedStore:
        """Open a packed folder; header, sizes and offsets are checked, with ``verify`` every checksum too.

        Raises
        ------
        DataFileError
            The folder is missing, incomplete, damaged or of another version.
        """
        path = Path(path).absolute()
        header = read_header(path)
        for name, sums in header.files.items():
            check_size(path / name, sums.size)
        if verify:
            for name, sums in header.files.items():
                verify_file(path / name, sums)
        offsets = _map_offsets(path / OFFSETS, header)
        return cls(path, header, _map(path / ROWS), offsets)

    @property
    def records(self) -> np.ndarray:
        """All records, uint8 [n], memory-mapped; for C++."""
        return self._records

    @property
    def offsets(self) -> np.ndarray:
        """Where each record begins, int64 [n_obs + 1], memory-mapped; for C++."""
        return self._offsets

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The cells' annotation [n_obs]."""
        return self._table("obs", self.shape[0])

    @cached_property
    def var_names(self) -> pd.Index:
        """Names of the genes [n_vars]."""
        names = pd.Index(self._table("var", self.shape[1]).index)
        if hash_names(names) != self.header.genes:
            raise DataFileError(f"{self.path / TABLES} holds other genes than {HEADER} says; {REMEDY}")
        return names

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start:stop``, float32."""
        return self.rows(np.arange(start, stop, dtype=np.int64))[0]

    def rows(self, rows: np.ndarray, *, threads: int | None = None) -> tuple[sparse.csr_matrix, Faults]:
        """Rows in the order given, float32, genes rising; their values were checked on packing."""
        rows = self._rows_inside(rows)
        try:
            parts = _csr.unpack_rows(
                self._records, self._offsets, rows, self.shape[1], threads or self.threads
            )
        except (ValueError, IndexError) as error:
            raise DataFileError(f"{self.path / ROWS} is corrupt: {error}; {REMEDY}") from error
        return sparse.csr_matrix(parts, shape=(len(rows), self.shape[1])), Faults()

    @cached_property
    def source(self) -> _csr.PackedRows:
        """The rows as something that batches are gathered from, in any order."""
        return _csr.PackedRows(self._records, self._offsets, self.shape[1])

    def totals(self, row_ids: np.ndarray | None = None) -> np.ndarray:
        """Sum of each row, float64 [len(row_ids)], from the records' headers: nothing is decoded."""
        rows = None if row_ids is None else self._rows_inside(row_ids)
        try:
            return _csr.packed_totals(self._records, self._offsets, rows)
        except (ValueError, IndexError) as error:
            raise DataFileError(f"{self.path / ROWS} is corrupt: {error}; {REMEDY}") from error

    def _rows_inside(self, row_ids: np.ndarray) -> np.ndarray:
        rows = np.ascontiguousarray(row_ids, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.shape[0]):
            wrong = rows[(rows < 0) | (rows >= self.shape[0])][0]
            raise InputError(f"row {wrong} is not in {self.place}: its rows are 0..{self.shape[0] - 1}")
        return rows

    def _table(self, name: str, length: int) -> pd.DataFrame:
        import h5py
        from anndata.io import read_elem

        try:
            with h5py.File(self.path / TABLES, "r") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                table = read_elem(file[name])
        except Exception as error:  # a damaged file makes h5py and anndata raise almost anything
            fault = f"{type(error).__name__}: {error}"
            raise DataFileError(f"{self.path / TABLES}: {name} cannot be read ({fault}); {REMEDY}") from error
        if not isinstance(table, pd.DataFrame) or len(table) != length:
            raise DataFileError(f"{self.path / TABLES}: {name} does not fit {HEADER}; {REMEDY}")
        return table

    def __repr__(self) -> str:
        return f"PackedStore({self.path.name!r}, {self.shape[0]:,} cells x {self.shape[1]:,} genes)"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "header": self.header, "threads": self.threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        again = PackedStore.open(state["path"])
        if again.header != state["header"]:
            raise DataFileError(f"{state['path']} was packed again since it was opened; open it again")
        self.__dict__.update(again.__dict__)
        self.threads = state["threads"]


def packed_store(path: str | Path) -> Store:
    """A packed folder as an atlas sees it: one matrix, under the name that it had in its source."""
    from scdd.data.source import Store

    packed = PackedStore.open(path)
    names = {"raw/X" if packed.header.layer == "raw/X" else "X": packed.var_names}
    return Store(packed.path.name, packed.obs, {packed.header.layer: lambda: packed}, names)


def _map(path: Path) -> np.ndarray:
    try:
        return np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise DataFileError(f"{path} cannot be mapped into memory ({error}); {REMEDY}") from error


def _map_offsets(path: Path, header: Header) -> np.ndarray:
    """Memory-mapped offsets that rise from 0 to the end of the rows, each record large enough to be one."""
    try:
        offsets = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy parses the header of a damaged file as Python source
        raise DataFileError(f"{path} cannot be read ({type(error).__name__}: {error}); {REMEDY}") from error
    sound = isinstance(offsets, np.ndarray) and offsets.dtype == np.int64 and offsets.dtype.isnative
    if not sound or offsets.shape != (header.n_obs + 1,) or not offsets.flags.aligned:
        raise DataFileError(f"{path} does not hold int64 [{header.n_obs + 1}]; {REMEDY}")
    if offsets[0] != 0 or offsets[-1] != header.files[ROWS].size:
        raise DataFileError(f"{path} does not span {ROWS}; {REMEDY}")
    for start in range(0, header.n_obs, 1 << 20):
        run = offsets[start : start + (1 << 20) + 1]
        if run.min() < 0 or run.max() > offsets[-1]:
            raise DataFileError(f"{path} is corrupt after row {start}: offsets outside {ROWS}; {REMEDY}")
        short = np.flatnonzero(run[1:] < run[:-1] + _SMALLEST_RECORD)
        if len(short):
            raise DataFileError(
                f"{path} is corrupt at row {start + short[0]}: offsets must rise by "
                f"{_SMALLEST_RECORD} or more; {REMEDY}"
            )
    return offsets
