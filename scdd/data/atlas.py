"""An atlas: one or many AnnData objects or files, read by rows, never held whole."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scdd.data import splits
from scdd.data.expression import check_block
from scdd.data.matrix import MemoryMatrix, rows_of
from scdd.data.source import Source, open_source
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SUFFIXES = (".h5ad", ".zarr")


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

    Raises
    ------
    DataFileError
        A file that is missing, truncated or not an AnnData store.
    InputError
        No cells, no genes, duplicated or disjoint gene names, values of another kind.
    """

    def __init__(self, source: Any, *, layer: str = "auto", expression: str = "counts", join: str = "inner"):
        if expression not in ("counts", "log1p", "fractional", "auto"):
            raise InputError(f"expression={expression!r}; choose counts, log1p, fractional or auto")
        if join not in ("inner", "outer"):
            raise InputError(f"join={join!r}; choose inner or outer")
        parts = _parts(source)
        self._sources = [open_source(part, layer=layer, expression=expression) for part in parts]
        kinds = {s.expression for s in self._sources}
        if len(kinds) > 1:
            raise InputError(f"the sources hold different kinds of expression ({', '.join(sorted(kinds))})")
        self.expression = self._sources[0].expression
        self.var_names = _join_genes(self._sources, join)
        self._columns = [_columns(s.var_names, self.var_names) for s in self._sources]
        self._starts = np.cumsum([0, *(len(s.obs) for s in self._sources)])
        self.obs = _join_obs(self._sources)
        self.rows = np.arange(len(self.obs), dtype=np.int64)
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

    def __len__(self) -> int:
        return self.n_obs

    def __repr__(self) -> str:
        size = f"{self.n_obs:,} cells x {self.n_vars:,} genes"
        return f"Atlas({self.name!r}, {size}, {self.layer}: {self.expression})"

    def read(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Cells by their position in this atlas, in the order given, as float32 CSR [len(rows), n_vars]."""
        wanted = self.rows[np.asarray(rows, dtype=np.int64)]
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        pieces, places = [], []
        for number in np.unique(owner):
            here = np.flatnonzero(owner == number)
            pieces.append(self._read_source(int(number), wanted[here] - self._starts[number]))
            places.append(here)
        if not pieces:
            return sparse.csr_matrix((0, self.n_vars), dtype=np.float32)
        if len(pieces) == 1:
            return pieces[0]
        order = np.argsort(np.concatenate(places), kind="stable")
        return sparse.vstack(pieces, format="csr")[order]

    def _read_source(self, number: int, rows: np.ndarray) -> sparse.csr_matrix:
        source, columns = self._sources[number], self._columns[number]
        block = rows_of(source.matrix, rows)
        check_block(block.data, self.expression, source.matrix.place)
        if columns is None:
            return block
        # Placing columns by a selection matrix keeps the block sparse and handles absent genes.
        return sparse.csr_matrix(block @ columns)

    def blocks(self, size: int = 4_096) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
        """The atlas in order, ``size`` cells at a time: positions and their CSR block."""
        for start in range(0, self.n_obs, size):
            rows = np.arange(start, min(start + size, self.n_obs))
            yield rows, self.read(rows)

    def notes(self) -> list[str]:
        """What a user should know of how the atlas was read, in sentences."""
        said = [f"read {self.layer} of {self._sources[0].name} as {self.expression}"]
        union = pd.Index(np.concatenate([s.var_names.astype(str) for s in self._sources])).unique()
        if len(union) > self.n_vars:
            said.append(
                f"{len(self._sources)} files share {self.n_vars:,} genes; "
                f"{len(union) - self.n_vars:,} others are left out, also of the totals of cells"
            )
        if not self.obs.index.is_unique:
            said.append("cell names repeat; call obs_names_make_unique() for a split that can be saved")
        block = self.read(np.arange(min(self.n_obs, 512)))
        if self.expression == "log1p":
            said += _scale_note(np.asarray(block.expm1().sum(1)).ravel())
        empty = int((np.diff(block.indptr) == 0).sum())
        return said + ([f"{empty} of the first {block.shape[0]} cells have no counts"] if empty else [])

    def subset(self, rows: np.ndarray) -> Atlas:
        """The given cells (positions or a boolean mask) as an atlas that shares this one's files."""
        rows = np.asarray(rows)
        positions = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        other = object.__new__(Atlas)
        other.__dict__.update(self.__dict__)
        other.rows = self.rows[positions]
        other.obs = self.obs.iloc[positions]
        return other

    def within_memory(self, limit: int = 1 << 30) -> Atlas:
        """The same cells, held in memory if that takes at most ``limit`` bytes; else the atlas as it is."""
        if self.in_memory is not None:
            return self
        share = self.n_obs / max(len(self._starts) and int(self._starts[-1]), 1)
        if share * sum(source.matrix.nbytes for source in self._sources) > limit:
            return self
        csr = sparse.vstack([block for _, block in self.blocks()], format="csr")
        matrix = MemoryMatrix(csr, f"{self.name}: {self.layer}")
        other = self.subset(np.arange(self.n_obs))
        other._sources = [Source(self.name, self.obs, self.var_names, matrix, self.layer, self.expression)]
        other._columns, other._starts = [None], np.array([0, self.n_obs])
        other.rows = np.arange(self.n_obs, dtype=np.int64)
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
        names, codes = np.unique(column.astype(str).to_numpy(), return_inverse=True)
        return Labels(codes.astype(np.int64), [str(name) for name in names])

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


def _parts(source: Any) -> list[Any]:
    if isinstance(source, (list, tuple)):
        if not source:
            raise InputError("the list of sources is empty")
        return list(source)
    if isinstance(source, (str, Path)):
        path = Path(source)
        inside = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES) if path.is_dir() else []
        if inside and path.suffix not in _SUFFIXES:
            return list(inside)
    return [source]


def _join_genes(sources: list[Source], join: str) -> pd.Index:
    names = sources[0].var_names.astype(str)
    for other in sources[1:]:
        other_names = other.var_names.astype(str)
        names = (
            names[names.isin(other_names)] if join == "inner" else names.append(other_names.difference(names))
        )
    if not len(names):
        raise InputError(
            f"the {len(sources)} sources have zero genes in common; "
            "are some named by symbol and some by Ensembl id?"
        )
    return names


def _columns(own: pd.Index, joined: pd.Index) -> sparse.csr_matrix | None:
    """Selection matrix [own genes, joined genes], or None where the two are the same list."""
    if own.astype(str).equals(joined):
        return None
    target = joined.get_indexer(own.astype(str))
    kept = np.flatnonzero(target >= 0)
    ones = np.ones(len(kept), dtype=np.float32)
    return sparse.csr_matrix((ones, (kept, target[kept])), shape=(len(own), len(joined)))


def _join_obs(sources: list[Source]) -> pd.DataFrame:
    if len(sources) == 1:
        return sources[0].obs
    frames = []
    for number, source in enumerate(sources):
        frame = source.obs.copy()
        for key in frame.select_dtypes("category"):
            frame[key] = frame[key].astype(object)
        key = "source" if not any("source" in s.obs for s in sources) else "atlas_source"
        frame[key] = f"{number}:{source.name}"
        frames.append(frame)
    return pd.concat(frames, join="outer")
