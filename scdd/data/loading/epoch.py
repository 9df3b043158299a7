"""The cells of each epoch and their order, worked out from what a loader was asked for."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scdd import _csr
from scdd.data.loading.blocks import mean_block
from scdd.data.loading.costs import costs_of, edge_bytes, segment_bytes
from scdd.data.loading.plan import (
    Costs,
    LoaderPlan,
    Sizes,
    choose_preload,
    choose_sizes,
    inflation,
    largest_window,
)
from scdd.data.loading.sampling import BalancedSampler, ClassBatches, in_passes
from scdd.data.loading.shuffle import EpochOrder
from scdd.data.remarks import remark_on_unlabelled
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scdd.data.atlas import Atlas
    from scdd.data.loading.gather import GeneTransform

SAMPLERS = (None, "balanced", "by-class")
# Cells whose order is drawn at one go where any order costs the same.
_FREE_WINDOW = 16_384


class Epoch(NamedTuple):
    """One epoch: which cells, in which batches.

    Attributes
    ----------
    rows : int64, positions in the atlas that ``order`` counts
    order : of all batches but those of one class
    class_batches : positions in ``rows`` of each batch, in place of ``order``
    """

    number: int
    rows: np.ndarray
    order: EpochOrder
    class_batches: list[np.ndarray] | None
    drop_last: bool

    @property
    def n_batches(self) -> int:
        """Batches that are delivered."""
        if self.class_batches is not None:
            return len(self.class_batches)
        size, n = self.order.batch_size, self.order.n_own
        return n // size if self.drop_last else -(-n // size)

    def locate(self, batch: int) -> tuple[int, int]:
        """Number of the window that a batch is in, and its place there."""
        return divmod(batch, self.order.batches_per_window)

    def windows(self, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Cells of each window from number ``first`` on, and where its batches begin in them."""
        size, count = self.order.batch_size, self.order.batches_per_window
        if self.class_batches is None:
            for positions in self.order.windows(first):
                n = len(positions) // size * size if self.drop_last else len(positions)
                if n:
                    yield self.rows[positions[:n]], np.append(np.arange(0, n, size, dtype=np.int64), n)
            return
        for begin in range(first * count, len(self.class_batches), count):
            own = self.class_batches[begin : begin + count]
            yield self.rows[np.concatenate(own)], np.cumsum([0, *map(len, own)])


@dataclass(frozen=True)
class Schedule:
    """Makes an `Epoch` of any number, always the same one."""

    atlas: Atlas
    rows: np.ndarray
    sampler: str | None
    codes: np.ndarray | None
    shuffle: bool
    seed: int
    batch_size: int
    block_size: int | None
    window: int | None
    most: int
    costs: Costs
    preload: int
    workers: int
    random_access: bool
    rank: int
    world_size: int
    drop_last: bool
    source: str
    edge_bytes: int

    @classmethod
    def of(
        cls,
        atlas: Atlas,
        rows: np.ndarray,
        *,
        transform: GeneTransform,
        output: str,
        dtype: str,
        counts: bool,
        max_genes: int,
        workers: int,
        memory_limit: int,
        preload: int | None,
        sampler: str | None,
        codes: np.ndarray | None,
        world_size: int,
        **options: Any,
    ) -> Schedule:
        """Check what was asked for and work out the costs."""
        if sampler not in SAMPLERS:
            raise InputError(f"sampler={sampler!r}; choose None, 'balanced' or 'by-class'")
        if sampler is not None and codes is None:
            raise InputError(f"sampler={sampler!r} needs labels=: the classes are those of the first label")
        if sampler == "by-class" and world_size > 1:
            raise InputError("sampler='by-class' gives one rank all batches; pass rank=0, world_size=1")
        if sampler is not None and codes is not None:
            remark_on_unlabelled(sampler, codes[rows])
        size = min(options["batch_size"], max(len(rows), 1))
        batch = {"output": output, "dtype": dtype, "counts": counts, "batch_size": size}
        costs = costs_of(atlas, transform, max_genes=max_genes, workers=workers, **batch)
        free, most = options["random_access"], _FREE_WINDOW
        if not free:
            most = largest_window(costs.cell, batch_size=options["batch_size"], memory_limit=memory_limit)
            segment = segment_bytes(most * costs.cell, workers)
            scratch = 2 * workers * segment + edge_bytes(atlas, memory_limit)
            costs = costs._replace(scratch=costs.scratch + scratch)
        if atlas.store.in_memory is not None and preload is None:
            preload = 0  # a thread costs more than it hides where nothing is read
        preload = choose_preload(costs, preload, windows=0 if free else 2, memory_limit=memory_limit)
        if options["shuffle"] and sampler != "balanced":
            rows = in_passes(rows, atlas.rows[rows])  # so that a block is a run of the file
        return cls(
            atlas=atlas,
            rows=rows,
            sampler=sampler,
            codes=None if codes is None else codes[rows],
            most=most,
            costs=costs,
            world_size=world_size,
            preload=preload,
            workers=workers,
            source=_source_of(atlas, free),
            edge_bytes=0 if free else edge_bytes(atlas, memory_limit),
            **options,
        )

    def window_memory(self) -> _csr.WindowMemory:
        """Memory for the windows of one loader in one process."""
        return _csr.WindowMemory(segment_bytes(self.most * self.costs.cell, self.workers), self.edge_bytes)

    def epoch(self, number: int) -> Epoch:
        """The cells of epoch ``number`` and their order."""
        rows = self._rows(number)
        sizes = self._sizes(rows)
        order = EpochOrder(
            n_rows=len(rows),
            batch_size=self.batch_size,
            block_size=1,
            window=sizes.window,
            seed=self.seed,
            epoch=number,
            shuffle=self.shuffle,
            blocks=sizes.blocks,
            rank=self.rank,
            world_size=self.world_size,
            even="drop" if self.drop_last else "pad",
        )
        return Epoch(number, rows, order, self._class_batches(number, sizes), self.drop_last)

    @cached_property
    def first(self) -> Epoch:
        """Epoch 0, which the plan and the settings are told from."""
        return self.epoch(0)

    def settings(self) -> dict[str, Any]:
        """What two schedules must share to give the same batches; JSON-able."""
        return dict(self._settings)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        order = self.first.order.settings()
        rows = zlib.crc32(np.ascontiguousarray(self.atlas.rows[self.rows]).tobytes())
        codes = None if self.codes is None or self.sampler is None else zlib.crc32(self.codes.tobytes())
        chosen = {"sampler": self.sampler, "codes": codes, "rows": rows, "drop_last": self.drop_last}
        return {key: value for key, value in order.items() if key not in ("epoch", "rank")} | chosen

    def plan(self) -> LoaderPlan:
        """What the first epoch costs, and how well it mixes."""
        epoch = self.first
        order = epoch.order
        edges = None if order.blocks is None else order.blocks.edges
        window = min(order.batches_per_window * self.batch_size, max(order.n_own, 1))
        windows = 0 if self.random_access else 2
        batches = self.preload + 3
        return LoaderPlan(
            batch_size=self.batch_size,
            block_size=1.0 if edges is None else mean_block(edges),
            window=window,
            variance_inflation=inflation(
                edges, batch_size=self.batch_size, window=window, n_rows=order.n_rows
            )
            if self.shuffle
            else 1.0,
            n_blocks=order.n_rows if edges is None else len(edges) - 1,
            n_windows=order.n_windows,
            cell_bytes=self.costs.cell,
            window_bytes=window * self.costs.cell,
            batch_bytes=self.costs.batch,
            scratch_bytes=self.costs.scratch,
            memory_bytes=windows * window * self.costs.cell + batches * self.costs.batch + self.costs.scratch,
            source=self.source,
        )

    def _rows(self, number: int) -> np.ndarray:
        if self.sampler != "balanced" or self.codes is None:
            return self.rows
        drawn = self.rows[BalancedSampler(self.codes, self.seed).cells(number)]
        return in_passes(drawn, self.atlas.rows[drawn])

    def _sizes(self, rows: np.ndarray) -> Sizes:
        if self.random_access:
            return Sizes(None, self.window or _FREE_WINDOW)
        if not self.shuffle:
            window = min(self.window or max(4 * self.batch_size, 4_096), self.most)
            return Sizes(None, window)
        return choose_sizes(
            self.atlas,
            self.atlas.rows[rows],
            batch_size=self.batch_size,
            block_size=self.block_size,
            window=self.window,
            most=self.most,
        )

    def _class_batches(self, number: int, sizes: Sizes) -> list[np.ndarray] | None:
        if self.sampler != "by-class" or self.codes is None:
            return None
        own = (self.batch_size, sizes.edges, sizes.window, self.seed, number, self.shuffle, self.drop_last)
        return ClassBatches(self.codes, *own).batches()


def _source_of(atlas: Atlas, random_access: bool) -> str:
    if not random_access:
        return f"{len(atlas.store.sources)} file(s), rows decoded from chunks"
    return "in memory" if atlas.store.in_memory is not None else "packed cache"
