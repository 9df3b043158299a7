"""A CSC matrix as rows: read once by columns, kept as packed rows in a temporary folder."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse

from scdd import _csr
from scdd.data.expression import Faults, faults_of
from scdd.data.formats.columns import rows_of_columns
from scdd.data.formats.matrix import BlockMatrix
from scdd.data.threads import thread_count
from scdd.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("scdd")

# What the conversion may hold in memory; the packed rows themselves lie on disk.
_MEMORY = 1 << 28


class _Packed(NamedTuple):
    """Records, where each begins, and the block that they were made from."""

    records: np.ndarray
    offsets: np.ndarray
    block: sparse.csr_matrix


class TranscodedRows(BlockMatrix):
    """Rows of a matrix that is stored by columns, from which no row can be read by itself.

    On first use its entries are dealt out to files of row ranges, put in order and packed, in bounded memory;
    ``scdd pack`` does the same once and for all. The temporary folder, about two bytes an entry, goes with
    this object. It cannot be pickled: another process would have to convert anew.
    """

    def __init__(self, group: Any, shape: tuple[int, int], place: str):
        self.shape, self.place = shape, place
        self._group = group
        self.nbytes = 8 * int(group["data"].shape[0])
        self._opened: tuple[np.ndarray, np.ndarray, Faults] | None = None

    @property
    def source(self) -> _csr.PackedRows:
        """The rows as something that batches are gathered from, in any order."""
        records, offsets, _ = self._rows()
        return _csr.PackedRows(records, offsets, self.shape[1])

    @property
    def faults(self) -> Faults:
        """What is wrong with the values."""
        return self._rows()[2]

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows ``start:stop``."""
        return self.rows(np.arange(start, stop, dtype=np.int64))[0]

    def rows(self, rows: np.ndarray, *, threads: int | None = None) -> tuple[sparse.csr_matrix, Faults]:
        """Rows by number, in any order; and what is wrong with their values."""
        records, offsets, _ = self._rows()
        rows = np.ascontiguousarray(rows, dtype=np.int64)
        parts = _csr.unpack_rows(records, offsets, rows, self.shape[1], threads or 1)
        matrix = sparse.csr_matrix(parts, shape=(len(rows), self.shape[1]))
        return matrix, faults_of(matrix, rows)

    def _rows(self) -> tuple[np.ndarray, np.ndarray, Faults]:
        if self._opened is None:
            self._opened = self._convert()
        return self._opened

    def _convert(self) -> tuple[np.ndarray, np.ndarray, Faults]:
        log.warning("%s is stored by columns and is turned; `scdd pack` keeps the result", self.place)
        folder = Path(tempfile.mkdtemp(prefix="scdd-rows-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        blocks = rows_of_columns(
            self._group, self.shape, memory_limit=_MEMORY, place=self.place, folder=folder
        )
        ends, faults, row = [np.zeros(1, dtype=np.int64)], Faults(), 0
        try:
            with (folder / "rows.bin").open("wb") as file:
                for records, offsets, block in _packed(blocks):
                    file.write(records.data)
                    ends.append(offsets[1:] + ends[-1][-1])
                    faults = faults.merge(faults_of(block, np.arange(row, row + block.shape[0])))
                    row += block.shape[0]
        except OSError as error:
            raise DataFileError(
                f"{self.place} cannot be converted to rows in {folder} ({error.strerror or error}); free "
                "space there, or set TMPDIR to a folder with more"
            ) from error
        size = (folder / "rows.bin").stat().st_size
        records = np.memmap(folder / "rows.bin", dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
        return records, np.concatenate(ends), faults

    def __reduce__(self) -> Any:
        raise DataFileError(
            f"{self.place} is stored by columns and cannot be handed to another process; "
            "run `scdd pack` first"
        )


def _packed(blocks: Iterator[sparse.csr_matrix]) -> Iterator[_Packed]:
    for block in blocks:
        arrays = (block.data, block.indices, block.indptr.astype(np.int64), block.shape[1])
        records, offsets = _csr.pack_rows(*arrays, threads=thread_count(None))
        yield _Packed(records, offsets, block)
