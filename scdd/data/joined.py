"""The matrices of several sources as one: rows one after the other, genes aligned by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scdd import _csr
from scdd.data.expression import check_faults
from scdd.data.formats.matrix import MemoryMatrix, RowMatrix
from scdd.data.loading.blocks import Blocks, Chunks
from scdd.data.loading.gather import MatrixRows, Rows
from scdd.data.remarks import rounds_counts
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scdd.data.source import Source


class JoinedRows:
    """Store rows 0..n-1: those of the first source, then those of the second, and so on.

    Attributes
    ----------
    var_names : genes of the columns
    starts : int64 [sources + 1], store row at which each source begins
    rounded : numbers of the sources of which it has been said that float32 rounds their counts
    """

    def __init__(self, sources: Sequence[Source], var_names: pd.Index) -> None:
        self.sources, self.var_names = list(sources), var_names
        self.starts = np.cumsum([0, *(len(s.obs) for s in sources)])
        self.rounded = {number for number, source in enumerate(sources) if source.rounded}
        self._columns = [columns_of(s.var_names, var_names) for s in sources]

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def mean_entries(self) -> float:
        """Stored entries of an average row, before genes that are not shared are left out."""
        return sum(s.matrix.nbytes for s in self.sources) / 8 / max(int(self.starts[-1]), 1)

    @property
    def decodes_whole_chunks(self) -> bool:
        """Whether the last row of a run costs a whole chunk in any of the sources."""
        return any(s.matrix.decodes_whole_chunks for s in self.sources)

    @property
    def n_empty(self) -> int:
        """Rows without an entry, where the sources know without reading."""
        known = (getattr(s.matrix, "indptr", None) for s in self.sources)
        return sum(int((np.diff(indptr) == 0).sum()) for indptr in known if indptr is not None)

    @property
    def largest_chunk(self) -> int:
        """Decoded bytes of the largest chunk pair, data and indices, of any source."""
        return max((s.matrix.chunk_bytes for s in self.sources), default=0)

    @property
    def in_flight(self) -> int:
        """Bytes of a remote source that lie in memory before they are decoded, at most."""
        matrices = [getattr(s.matrix, "base", s.matrix) for s in self.sources]
        return max((getattr(matrix, "in_flight", 0) for matrix in matrices), default=0)

    @property
    def n_chunks(self) -> int:
        """Entries of all chunk tables."""
        return sum(s.matrix.n_chunks for s in self.sources)

    @property
    def in_memory(self) -> sparse.csr_matrix | None:
        """The whole matrix, where it lies in memory and is of one source and its own genes."""
        matrix = self._only_matrix
        return matrix.csr if isinstance(matrix, MemoryMatrix) else None

    @property
    def random_access(self) -> Rows | None:
        """What any row can be gathered from at no cost: arrays in memory or packed records; else None."""
        matrix = self._only_matrix
        if isinstance(matrix, MemoryMatrix):
            return MatrixRows.of(matrix.csr)
        return getattr(matrix, "source", None)

    @property
    def _only_matrix(self) -> RowMatrix | None:
        own = len(self.sources) == 1 and self._columns[0] is None
        return self.sources[0].matrix if own else None

    def read(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Store rows in the order given, as float32 CSR [len(rows), genes]; values are checked."""
        pieces, places = [], []
        for number, here in self._owners(rows):
            pieces.append(self._read_source(number, rows[here] - self.starts[number]))
            places.append(here)
        if not pieces:
            return sparse.csr_matrix((0, len(self.var_names)), dtype=np.float32)
        if len(pieces) == 1:
            return pieces[0]
        order = np.argsort(np.concatenate(places), kind="stable")
        return sparse.vstack(pieces, format="csr")[order]

    def window(
        self,
        rows: np.ndarray,
        *,
        memory: _csr.WindowMemory,
        threads: int = 1,
        cancel: _csr.Cancel | None = None,
    ) -> _csr.Window:
        """Store rows (ascending, each once) decoded into a window, row ``rows[i]`` at place i."""
        window = _csr.Window(len(rows), len(self.var_names), memory)
        for number, here in self._owners(rows):
            source = self.sources[number]
            faults = source.matrix.fill(
                window,
                rows[here] - self.starts[number],
                here,
                column_of_gene=self._columns[number],
                threads=threads,
                cancel=cancel,
            )
            check_faults(faults, source)
        return window

    def blocks(self, rows: np.ndarray, cells: int, *, parts: bool = False) -> Blocks:
        """Blocks of about ``cells`` of the store ``rows``, by the chunks of the files (`Chunks.blocks`)."""
        return self._chunks(rows).blocks(cells, parts=parts)

    def _chunks(self, rows: np.ndarray) -> Chunks:
        first, cut, known = [self.starts[:-1]], [np.zeros(0, dtype=np.int64)], []
        for source, start in zip(self.sources, self.starts[:-1], strict=True):
            chunks = source.matrix.chunk_rows
            known.append(chunks is not None)
            if chunks is not None:
                first.append(start + chunks.first)
                cut.append(start + chunks.first[chunks.cut] - 1)
        number = np.searchsorted(np.unique(np.concatenate(first)), rows, side="right")
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        return Chunks(rows, number, np.isin(rows, np.concatenate(cut)), np.array(known)[owner])

    def _owners(self, rows: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
        """Each source that owns some of the rows, and the places of these."""
        if len(self.sources) == 1:
            return [(0, np.arange(len(rows), dtype=np.int64))] if len(rows) else []
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        return [(int(number), np.flatnonzero(owner == number)) for number in np.unique(owner)]

    def _read_source(self, number: int, rows: np.ndarray) -> sparse.csr_matrix:
        source, columns = self.sources[number], self._columns[number]
        distinct, places = np.unique(rows, return_inverse=True)
        block, faults = source.matrix.rows(distinct)
        check_faults(faults, source)
        if number not in self.rounded and rounds_counts(source, block, distinct):
            self.rounded.add(number)
        if columns is not None:
            block = _selected(block, columns, len(self.var_names))
        in_order = len(distinct) == len(rows) and bool((places == np.arange(len(rows))).all())
        return block if in_order else block[places]


class JoinedGenes(NamedTuple):
    """Genes of an atlas, and a sentence for each thing that a user should know of how they were joined."""

    names: pd.Index
    notes: list[str]


def join_genes(sources: Sequence[Source], join: str, genes: Iterable[str] | None) -> JoinedGenes:
    """Genes shared by all sources (``"inner"``), of any (``"outer"``), or those given."""
    own = [source.var_names.astype(str) for source in sources]
    if genes is not None:
        return _given_genes(sources, pd.Index(list(genes)).astype(str))
    names = own[0]
    for other in own[1:]:
        names = names[names.isin(other)] if join == "inner" else names.append(other.difference(names))
    alone = [not any(a.isin(b).any() for b in own if b is not a) for a in own]
    if not len(names) or (len(own) > 1 and any(alone)):
        raise InputError(
            f"the {len(sources)} sources have zero genes in common; "
            "are some named by symbol and some by Ensembl id?"
        )
    notes = []
    union = own[0].append(own[1:]).unique() if len(own) > 1 else own[0]
    if len(union) > len(names):
        notes.append(
            f"{len(sources)} files share {len(names):,} genes; "
            f"{len(union) - len(names):,} others are left out, also of the totals of cells"
        )
    if join == "outer" and len(sources) > 1:
        notes += _missing(sources, names)
    return JoinedGenes(names, notes)


def _given_genes(sources: Sequence[Source], names: pd.Index) -> JoinedGenes:
    if not len(names) or names.has_duplicates:
        raise InputError("genes= is empty or names a gene twice")
    if not any(source.var_names.astype(str).isin(names).any() for source in sources):
        raise InputError(f"genes= names {len(names)} genes, e.g. {names[0]!r}, and no source has one of them")
    notes = _missing(sources, names)
    for source in sources:
        others = int((~source.var_names.astype(str).isin(names)).sum())
        if others:
            notes.append(
                f"{others:,} genes of {source.name} are left out, also of the totals of its cells; choose "
                "genes in CellLoader or Preprocessor to keep totals over all"
            )
    return JoinedGenes(names, notes)


def _missing(sources: Sequence[Source], names: pd.Index) -> list[str]:
    notes = []
    for source in sources:
        missing = names[~names.isin(source.var_names.astype(str))]
        if len(missing):
            notes.append(
                f"{source.name} lacks {len(missing):,} genes, e.g. {missing[0]}: they are zero in its cells"
            )
    return notes


def columns_of(own: pd.Index, joined: pd.Index) -> np.ndarray | None:
    """Column int32 [own genes] of each gene among the joined, -1 for none; None where both are one list."""
    own = own.astype(str)
    return None if own.equals(joined) else joined.get_indexer(own).astype(np.int32)


def _selected(block: sparse.csr_matrix, columns: np.ndarray, n_vars: int) -> sparse.csr_matrix:
    rows = np.arange(block.shape[0], dtype=np.int64)
    arrays = (block.data, block.indices, block.indptr.astype(np.int64))
    data, indices, indptr, _ = _csr.gather_csr(*arrays, rows, columns)
    if indptr[-1] <= np.iinfo(np.int32).max:
        indptr = indptr.astype(np.int32)
    return sparse.csr_matrix((data, indices, indptr), shape=(len(rows), n_vars))


def join_obs(sources: Sequence[Source]) -> pd.DataFrame:
    """``obs`` of all sources, categories merged, with a column that says which source a cell is of."""
    if len(sources) == 1:
        return sources[0].obs
    frames = []
    key = "source" if not any("source" in s.obs for s in sources) else "atlas_source"
    for number, source in enumerate(sources):
        frame = source.obs.copy()
        for column in frame.select_dtypes("category"):
            frame[column] = frame[column].astype(object)
        frame[key] = f"{number}:{source.name}"
        frames.append(frame)
    joined = pd.concat(frames, join="outer")
    for column in joined:
        if any(
            isinstance(s.obs.get(column, pd.Series(dtype=object)).dtype, pd.CategoricalDtype) for s in sources
        ):
            joined[column] = joined[column].astype("category")
    return joined
