"""An atlas: one or many AnnData objects or files, read by rows, never held whole."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scdd.data import splits
from scdd.data.expression import check_faults, faults_of
from scdd.data.folders import left_out_of, parts_of
from scdd.data.formats.matrix import MemoryMatrix
from scdd.data.joined import JoinedRows, join_genes, join_obs
from scdd.data.remarks import remark_on_blank_labels, rounds_counts
from scdd.data.source import Source, open_source
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class Labels(NamedTuple):
    """Classes of the cells: ``codes`` int64 [n] into ``names``, sorted."""

    codes: np.ndarray
    names: list[str]


class Atlas:
    """Cells by genes, from an AnnData, an ``.h5ad``, a ``.zarr``, a folder of them or a list.

    Parameters
    ----------
    source
        What to read. Several sources become one atlas, genes aligned by name.
    layer
        ``"X"``, ``"raw/X"``, ``"layers/<name>"`` or ``"auto"``: the first that holds ``expression``.
    expression
        ``"counts"`` (whole numbers), ``"fractional"`` (corrected counts), ``"log1p"`` (log-normalised)
        or ``"auto"`` (counts, else log1p). The values are checked, here and on every block read.
    join
        Genes of several sources: ``"inner"`` (shared by all) or ``"outer"`` (absent genes are zero).
    genes
        Or the genes themselves, in the order wanted; a source that lacks one has zeros there (`notes`).

    Raises
    ------
    DataFileError
        A file that is missing, truncated or not an AnnData store.
    InputError
        No cells, no genes, duplicated or disjoint gene names, values of another kind.
    """

    def __init__(
        self,
        source: Any,
        *,
        layer: str = "auto",
        expression: str = "counts",
        join: str = "inner",
        genes: Iterable[str] | None = None,
    ):
        if expression not in ("counts", "log1p", "fractional", "auto"):
            raise InputError(f"expression={expression!r}; choose counts, log1p, fractional or auto")
        if join not in ("inner", "outer"):
            raise InputError(f"join={join!r}; choose inner or outer")
        parts = parts_of(source)
        self._sources = [open_source(part, layer=layer, expression=expression) for part in parts]
        kinds = {s.expression for s in self._sources}
        if len(kinds) > 1:
            raise InputError(f"the sources hold different kinds of expression ({', '.join(sorted(kinds))})")
        self.expression = self._sources[0].expression
        joined = join_genes(self._sources, join, genes)
        self.var_names, self._join_notes = joined
        self._join_notes += left_out_of(source)
        self._store = JoinedRows(self._sources, self.var_names)
        self.obs = self._all_obs = join_obs(self._sources)
        self.rows = np.arange(len(self.obs), dtype=np.int64)
        self._told: set[str] = set()  # shared with all parts of this atlas
        self.name = " + ".join(s.name for s in self._sources[:3])
        self.name += f" + {len(parts) - 3} more" if len(parts) > 3 else ""

    @classmethod
    def of(cls, source: Any, **options: Any) -> Atlas:
        """``source`` itself if it is an atlas already, else an atlas over it."""
        return source if isinstance(source, Atlas) else cls(source, **options)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.rows)

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return len(self.var_names)

    @property
    def shape(self) -> tuple[int, int]:
        """Cells, genes."""
        return self.n_obs, self.n_vars

    @property
    def layer(self) -> str:
        """Which matrix of the first source is read."""
        return self._sources[0].layer

    @property
    def in_memory(self) -> sparse.csr_matrix | None:
        """The whole matrix if it lies in memory, is of one source and all its rows are used in order."""
        matrix = self._sources[0].matrix
        whole = len(self._sources) == 1 and np.array_equal(self.rows, np.arange(matrix.shape[0]))
        return matrix.csr if whole and isinstance(matrix, MemoryMatrix) else None

    @property
    def told(self) -> set[str]:
        """What has been remarked on already, of these cells or of any part of them."""
        return self._told

    @property
    def store(self) -> JoinedRows:
        """Where the rows lie; ``rows`` says which of them are cells of this atlas."""
        return self._store

    @property
    def mean_entries(self) -> float:
        """Stored entries of an average cell."""
        return self._store.mean_entries

    def check_in_memory(self) -> None:
        """Refuse values in memory that are not of this kind; those of files are checked as they are read."""
        matrix = self._store.in_memory
        if matrix is not None:
            every = np.arange(matrix.shape[0])
            check_faults(faults_of(matrix, every), self._sources[0])
            if not self._store.rounded and rounds_counts(self._sources[0], matrix, every):
                self._store.rounded.add(0)
        for source in self._sources:
            if (faults := getattr(source.matrix, "faults", None)) is not None:
                check_faults(faults, source)

    def __len__(self) -> int:
        return self.n_obs

    def __repr__(self) -> str:
        size = f"{self.n_obs:,} cells x {self.n_vars:,} genes"
        return f"Atlas({self.name!r}, {size}, {self.layer}: {self.expression})"

    def read(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Cells by their position in this atlas, in the order given, as float32 CSR [len(rows), n_vars]."""
        return self._store.read(self.rows[np.asarray(rows, dtype=np.int64)])

    def blocks(self, size: int = 4_096) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
        """The atlas in order, ``size`` cells at a time: positions and their CSR block."""
        for start in range(0, self.n_obs, size):
            rows = np.arange(start, min(start + size, self.n_obs))
            yield rows, self.read(rows)

    def notes(self) -> list[str]:
        """What a user should know of how the atlas was read, in sentences."""
        said = [f"read {self.layer} of {self._sources[0].name} as {self.expression}"]
        said += self._join_notes
        said += [note for source in self._sources for note in source.notes]
        for source in self._sources:
            if (why := getattr(source.matrix, "why_indirect", None)) is not None:
                said.append(f"{source.matrix.place} is read slowly, by one thread: {why}")
        if not self.obs.index.is_unique:
            said.append("cell names repeat; call obs_names_make_unique() for a split that can be saved")
        block = self.read(np.arange(min(self.n_obs, 512)))
        if self.expression == "log1p":
            said += _scale_note(np.asarray(block.expm1().sum(1)).ravel())
        empty = self._store.n_empty
        return said + (
            [f"{empty} of the {len(self._store)} cells of the files have no counts"] if empty else []
        )

    def subset(self, rows: np.ndarray) -> Atlas:
        """The given cells (positions or a boolean mask) as an atlas that shares this one's files."""
        rows = np.asarray(rows)
        positions = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        other = object.__new__(Atlas)
        other.__dict__.update(self.__dict__)
        other.rows = self.rows[positions]
        other.obs = self.obs.iloc[positions]
        return other

    def whole(self) -> Atlas:
        """All cells of the files, of which ``subset`` may have taken a part."""
        other = self.subset(np.arange(0))
        other.rows, other.obs = np.arange(len(self._store), dtype=np.int64), self._all_obs
        return other

    def within_memory(self, limit: int = 1 << 30) -> Atlas:
        """The same cells, held in memory if that takes at most ``limit`` bytes; else the atlas as it is."""
        if self.in_memory is not None:
            return self
        if self.n_obs * 8 * self.mean_entries > limit:
            return self
        csr = sparse.vstack([block for _, block in self.blocks()], format="csr")
        matrix = MemoryMatrix(csr, f"{self.name}: {self.layer}")
        other = self.subset(np.arange(self.n_obs))
        own = (self.name, self.obs, self.var_names, matrix, self.layer, self.expression)
        other._sources = [Source(*own, rounded=bool(self._store.rounded))]
        other._store = JoinedRows(other._sources, self.var_names)
        other.rows, other._all_obs = np.arange(self.n_obs, dtype=np.int64), self.obs
        return other

    def column(self, key: str) -> pd.Series:
        """A column of ``obs``."""
        if key not in self.obs:
            known = ", ".join(map(str, self.obs.columns)) or "none"
            raise InputError(f"obs has no column {key!r} in {self.name}; its columns are: {known}")
        return self.obs[key]

    def labels(self, key: str) -> Labels:
        """Class codes and sorted class names of an ``obs`` column; refuses cells without a label."""
        column = self.column(key)
        missing = int(column.isna().sum())
        if missing:
            raise InputError(
                f"obs[{key!r}] has no label for {missing} of {self.n_obs} cells (NaN); "
                "label them or leave them out: atlas.drop_unlabelled(key) (--drop-unlabelled)"
            )
        found, codes = np.unique(column.astype(str).to_numpy(), return_inverse=True)
        names = [str(name) for name in found]
        self.remark_on_labels(key, names, codes)
        return Labels(codes.astype(np.int64), names)

    def remark_on_labels(self, key: str, names: Sequence[str], codes: np.ndarray) -> None:
        """Warn, once a column, of labels such as ``""`` and ``"nan"``, which are classes like others."""
        remark_on_blank_labels(key, names, codes, self._told)

    def drop_unlabelled(self, key: str) -> Atlas:
        """The cells that have a label."""
        return self.subset(self.column(key).notna().to_numpy())

    def drop_rare(self, key: str, min_cells: int) -> Atlas:
        """The cells of classes with at least ``min_cells`` members."""
        column = self.column(key).astype(str)
        return self.subset((column.map(column.value_counts()) >= min_cells).to_numpy(dtype=bool))

    def split(
        self,
        *,
        by: str | None = None,
        label_key: str | None = None,
        test: float | Sequence[str] = 0.2,
        validation: float | Sequence[str] = 0.0,
        seed: int = 0,
    ) -> tuple[Atlas, ...]:
        """Train and test (and, if asked for, validation) parts: ``train, [validation,] test``.

        ``by`` (donor, batch) keeps every group whole in one part; ``test`` may then name the groups.
        Without it cells are drawn at random, within each class of ``label_key`` where given.
        """
        groups = self.column(by).astype(str).to_numpy() if by else None
        codes = self.labels(label_key).codes if label_key and not by else None
        rule = splits.SplitRule(test=test, validation=validation, seed=seed)
        parts = splits.split_rows(self.n_obs, rule, groups=groups, codes=codes, by=by)
        kept = (parts.train, parts.validation, parts.test) if validation else (parts.train, parts.test)
        return tuple(self.subset(rows) for rows in kept)

    def fingerprint(self) -> str:
        """A short hash of the cells, the genes and a sample of values: the same data, the same hash."""
        digest = hashlib.sha256()
        for names in (self.obs.index, self.var_names):
            digest.update(pd.util.hash_array(np.asarray(names, dtype=object)).tobytes())
        digest.update(self.read(np.arange(min(64, self.n_obs))).sum(1).tobytes())
        return digest.hexdigest()[:16]


def _scale_note(totals: np.ndarray) -> list[str]:
    """What the row sums of ``expm1`` say about the scale of log data."""
    middle = float(np.median(totals))
    even = totals.std() < 0.01 * max(middle, 1e-9)
    if even and abs(middle / 1e4 - 1) > 0.01:
        return [f"the log data is scaled to {middle:,.0f} counts a cell, not 10,000; results keep that scale"]
    return []
