"""Cells as packed gene tokens, in two views that share one set of genes: by rank and by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scdd.data.loading.schedule import TileSchedule, repeat_schedule, tile_schedule
from scdd.data.loading.vocabulary import TARGET_SUM
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scdd.data.atlas import Atlas
    from scdd.data.loading.gather import Rows
    from scdd.data.loading.vocabulary import GeneVocabulary

MAX_GENES = 2_046


class TokenBatch(NamedTuple):
    """Cells end to end: cell ``i`` is ``cu_seqlens[i]:cu_seqlens[i + 1]``, by descending rank score.

    Attributes
    ----------
    genes : int32 [T], tokens: positions in the vocabulary
    values : float32 [T], ``log1p(10^4 x / total)``
    coordinates : float32 [T], ``log2(1 + rank)``, rank 0 first
    cu_seqlens : int32 [B + 1]; a cell without genes has length 0
    row_ids : int64 [B], positions in the atlas
    codes : int64 [B] for each label, -1 where it is missing
    totals : float64 [B], sum of each cell's stored values over all genes
    detected : int32 [B], genes of each cell in the vocabulary, before the cut at ``max_genes``
    schedule : tiles for attention within cells, or None if not asked for
    """

    genes: Any
    values: Any
    coordinates: Any
    cu_seqlens: Any
    row_ids: Any
    codes: dict[str, Any]
    totals: Any
    detected: Any
    schedule: TileSchedule | None = None

    @property
    def truncated(self) -> float:
        """Share of the detected genes that ``max_genes`` cut off."""
        detected = int(self.detected.sum())
        return 1.0 - len(self.genes) / detected if detected else 0.0

    def to_torch(self, device: Any = None) -> TokenBatch:
        """The same with tensors; on a GPU by way of pinned memory, without waiting for the copy."""
        return _to_torch(self, device)

    def two_views(self, *, prefix: int = 0) -> TwoViews:
        """Return `two_views` of this batch."""
        return two_views(self, prefix=prefix)


class TwoViews(NamedTuple):
    """All ``N`` cells as a rank stream, then all as a value stream: ``2N`` sequences for one attention call.

    A segment below ``N`` is of the rank stream, and no tile of ``schedule`` spans both. With a prefix each
    sequence starts with that many slots for learned tokens; slot ``j`` has token ``-1 - j``, the rest 0.

    Attributes
    ----------
    tokens : int32 [2T]
    coordinates : float32 [2T], ``log2(1 + rank)`` in the rank stream, 0 in the value stream
    key_bias : float32 [2T], 0 in the rank stream, ``values`` in the value stream
    cu_seqlens : int32 [2N + 1]
    schedule : tiles of the 2T rows
    """

    tokens: Any
    coordinates: Any
    key_bias: Any
    cu_seqlens: Any
    schedule: TileSchedule

    def to_torch(self, device: Any = None) -> TwoViews:
        """The same with tensors; on a GPU by way of pinned memory, without waiting for the copy."""
        return _to_torch(self, device)


def two_views(batch: TokenBatch, *, prefix: int = 0) -> TwoViews:
    """Both streams of a batch of NumPy arrays, packed, with ``prefix`` free slots in front of each sequence.

    Raises
    ------
    InputError
        ``prefix`` is negative, or both streams together pass 2147483647 rows.
    """
    if prefix < 0:
        raise InputError(f"prefix={prefix} must not be negative")
    n = len(batch.cu_seqlens) - 1
    n_rows = len(batch.genes) + prefix * n
    if 2 * n_rows > np.iinfo(np.int32).max:
        raise InputError(f"two views of {n_rows} tokens pass 2147483647; make batches of fewer cells")
    starts = batch.cu_seqlens + prefix * np.arange(n + 1, dtype=np.int32)
    schedule = None if prefix else batch.schedule
    schedule = tile_schedule(starts) if schedule is None else schedule
    genes, coordinates, values = batch.genes, batch.coordinates, batch.values
    if prefix:
        slots = np.repeat(batch.cu_seqlens[:-1], prefix)
        genes = np.insert(genes, slots, np.tile(np.arange(-1, -1 - prefix, -1, dtype=np.int32), n))
        coordinates, values = np.insert(coordinates, slots, 0), np.insert(values, slots, 0)
    nothing = np.zeros(n_rows, dtype=np.float32)
    return TwoViews(
        np.concatenate([genes, genes]),
        np.concatenate([coordinates, nothing]),
        np.concatenate([nothing, values]),
        np.concatenate([starts, starts[1:] + np.int32(n_rows)]),
        repeat_schedule(schedule, n_segments=n),
    )


@dataclass(frozen=True)
class TokenTransform:
    """How rows of one atlas become tokens; the values `scdd._csr.gather_tokens` is called with.

    Attributes
    ----------
    token_of_gene : int32 [n_vars], -1 for genes that the vocabulary lacks
    gene_scale : float32 [V]
    max_genes : most genes a cell
    target_sum : what cells are scaled to; 0 for none
    log1p : whether ``log(1 + x)`` is taken of values
    logged : whether the atlas holds log1p values
    """

    token_of_gene: np.ndarray
    gene_scale: np.ndarray | None
    max_genes: int = MAX_GENES
    target_sum: float = TARGET_SUM
    log1p: bool = True
    logged: bool = False

    @classmethod
    def of(
        cls,
        vocabulary: GeneVocabulary,
        atlas: Atlas,
        *,
        max_genes: int = MAX_GENES,
        min_coverage: float = 0.5,
    ) -> TokenTransform:
        """The transform of an atlas.

        Raises
        ------
        InputError
            The shared genes are less than ``min_coverage`` of both the atlas's and the vocabulary's, as
            happens when one holds symbols and the other Ensembl ids; ``max_genes`` is below 1.
        """
        if max_genes < 1:
            raise InputError(f"max_genes={max_genes} must be at least 1")
        tokens = vocabulary.genes.get_indexer(atlas.var_names.astype(str)).astype(np.int32)
        shared = int((tokens >= 0).sum())
        if shared < max(min_coverage * min(len(vocabulary), len(tokens)), 1):
            raise InputError(
                f"{atlas.name} shares {shared} of its {len(tokens)} genes with the {len(vocabulary)} of the "
                f"vocabulary (e.g. {atlas.var_names[0]!r}, {vocabulary.genes[0]!r}); rename them to the "
                "vocabulary's kind, or pass a lower min_coverage="
            )
        logged = atlas.expression == "log1p"
        target_sum = 0.0 if logged else TARGET_SUM
        return cls(tokens, vocabulary.scale, max_genes, target_sum, log1p=not logged, logged=logged)

    @property
    def unknown(self) -> float:
        """Share of the atlas's genes that the vocabulary lacks."""
        return float((self.token_of_gene < 0).mean())

    def batch(
        self,
        source: Rows,
        rows: np.ndarray,
        *,
        row_ids: np.ndarray | None = None,
        codes: Mapping[str, np.ndarray] | None = None,
        schedule: bool = True,
        threads: int = 1,
    ) -> TokenBatch:
        """Rows of a source as a batch; ``row_ids`` and ``codes`` [B] are handed through."""
        detected = np.empty(len(rows), dtype=np.int32)
        genes, values, coordinates, cu_seqlens, totals = source.gather_tokens(
            rows,
            self.token_of_gene,
            self.gene_scale,
            max_genes=self.max_genes,
            target_sum=self.target_sum,
            log1p=self.log1p,
            logged=self.logged,
            detected=detected,
            threads=threads,
        )
        ids = rows if row_ids is None else row_ids
        tiles = tile_schedule(cu_seqlens) if schedule else None
        return TokenBatch(
            genes, values, coordinates, cu_seqlens, ids, dict(codes or {}), totals, detected, tiles
        )


def _to_torch(value: Any, device: Any) -> Any:
    """Tensors in place of the arrays within tuples and dicts."""
    import torch

    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(value)
        if device is None or torch.device(device).type == "cpu":
            return tensor
        return tensor.pin_memory().to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: _to_torch(part, device) for name, part in value.items()}
    if isinstance(value, tuple):
        return type(value)(*(_to_torch(part, device) for part in value))
    return value
