"""Mini-batches of cells: dense or sparse, normalised on the way, in an order that can be resumed."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scdd import _csr
from scdd.data.atlas import Atlas
from scdd.data.formats.stored import default_threads
from scdd.data.loading.ahead import ahead
from scdd.data.loading.batch import BatchMaker, Span, cells_a_call
from scdd.data.loading.buffers import BufferPool
from scdd.data.loading.epoch import Epoch, Schedule
from scdd.data.loading.gather import OUTPUT_TYPES, Rows
from scdd.data.loading.selection import checked_rows, gene_transform, label_codes
from scdd.data.loading.tokens import MAX_GENES, TokenTransform
from scdd.data.loading.vocabulary import GeneVocabulary
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from scdd.data.loading.plan import LoaderPlan
    from scdd.data.preprocess import Preprocessor

_BAD_MIXING = 2.0


class CellLoader:
    """Iterates over the cells of an atlas in batches; each epoch meets each row once.

    ``x = log1p(target_sum * counts / total)`` over chosen genes, with totals over *all* genes; then
    ``(x - mean) / std`` with ``standardise``. Data that is log1p already is passed through.

    An atlas in memory, or one with a packed ``cache``, is shuffled fully. Any other is shuffled by blocks of
    consecutive rows within a window; `plan` says how well that mixes. C++ threads read the next window while
    the present one is cut into batches, and up to ``preload`` batches are ready before they are asked for.
    The order depends on ``seed``, the epoch, the data and the sizes of batch, block and window, and on
    nothing else.

    Parameters
    ----------
    atlas : what to read, or anything that `Atlas` takes
    batch_size : cells a batch, B
    rows : positions (int) or mask (bool) of the cells to use; all by default
    genes : names of the genes wanted, in the order wanted; all of the atlas by default
    preprocessor : chosen genes and their scale, in place of ``genes``
    output : ``"dense"``, ``"csr"`` (sorted, without duplicates) or ``"tokens"`` (`TokenBatch`, for
        DualStream)
    vocabulary, max_genes : of tokens: their genes and scale (by default those of the atlas, unscaled), and
        how many of a cell's highest ranked genes are kept
    dtype : of dense batches: ``"float32"``, ``"float16"`` or ``"bfloat16"`` (a tensor)
    normalise, standardise : see above; ``standardise`` needs a fitted preprocessor
    labels : columns of ``obs`` to deliver as codes; a mapping gives the categories as well, for codes
        that must agree between atlases
    transform : called with each batch, on the thread that made it; what it returns is delivered
    shuffle, seed : see above
    sampler : None, ``"balanced"`` (each epoch as many cells of every class of the first label; small classes
        repeat) or ``"by-class"`` (each batch of one class, every labelled cell once)
    block_size : cells read as one run; by default as the file's chunks lie
    window : cells mixed with each other; by default enough for a variance inflation of 1.25, as memory allows
    memory_limit : bytes for windows and batches together
    drop_last : leave out a last batch that is not full, and cells that cannot be shared out evenly to ranks
    counts : deliver the unnormalised values too
    preload : batches made ahead of their use; 0 makes them when asked for. By default up to 3 for files, as
        memory allows, and 0 in memory
    workers : C++ threads; by default the cores that this process may use
    rank, world_size : which of how many equal shares to deliver; by default those of ``torch.distributed``
    cache : None, a folder for a packed copy of the atlas (written if it is missing or stale), or ``"auto"``:
        the one that lies beside the file, if it is fresh
    pin_memory : batches in page-locked memory, for copies to a GPU

    Raises
    ------
    InputError
        An argument that cannot be used, named with its value and the remedy.
    DataFileError
        A file that is damaged or changes while it is read.
    """

    def __init__(
        self,
        atlas: Atlas | Any,
        *,
        batch_size: int = 512,
        rows: np.ndarray | None = None,
        genes: Sequence[str] | pd.Index | None = None,
        preprocessor: Preprocessor | None = None,
        output: str = "dense",
        dtype: str = "float32",
        normalise: bool = True,
        standardise: bool = False,
        labels: Sequence[str] | Mapping[str, Sequence[str]] = (),
        transform: Callable[[Any], Any] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        sampler: str | None = None,
        block_size: int | None = None,
        window: int | None = None,
        memory_limit: int = 1 << 30,
        drop_last: bool = False,
        counts: bool = False,
        preload: int | None = None,
        workers: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        cache: str | Path | None = None,
        pin_memory: bool = False,
        vocabulary: GeneVocabulary | None = None,
        max_genes: int = MAX_GENES,
    ) -> None:
        self.atlas = atlas = Atlas.of(atlas)
        self.workers = default_threads() if workers is None else workers
        rank, world_size = _place_among_ranks(rank, world_size)
        sizes = {"batch_size": batch_size, "block_size": block_size, "window": window}
        _check_sizes(**sizes, workers=self.workers, memory_limit=memory_limit)
        form: dict[str, Any] = {"output": output, "dtype": dtype, "counts": counts}
        _check_choices(**form, seed=seed, standardise=standardise, expression=atlas.expression)
        self.output, self.drop_last, self._finish, self._cache = output, drop_last, transform, cache
        self.transform = gene_transform(
            atlas, genes, preprocessor, normalise=normalise, standardise=standardise
        )
        self.tokens = _tokens(atlas, genes, vocabulary, max_genes) if output == "tokens" else None
        self.codes, self.categories = label_codes(atlas, labels)
        self._direct = _random_access(atlas, cache)
        reading: dict[str, Any] = {"block_size": block_size, "window": window, "memory_limit": memory_limit}
        order: dict[str, Any] = {"shuffle": shuffle, "seed": seed, "sampler": sampler, "drop_last": drop_last}
        share: dict[str, Any] = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
        own: dict[str, Any] = {"workers": self.workers, "random_access": self._direct is not None}
        self._schedule = Schedule.of(
            atlas,
            checked_rows(rows, atlas.n_obs),
            transform=self.transform,
            max_genes=max_genes,
            preload=preload,
            codes=next(iter(self.codes.values()), None),
            **form | reading | order | share | own,
        )
        self.preload = self._schedule.preload
        self._maker = self._batch_maker(pin_memory=pin_memory, **form)
        self._owner, self._memory = os.getpid(), self._schedule.window_memory()
        self._epoch = self._schedule.first
        self._batch = self._resume_at = self._iteration = 0
        self._warn_of_bad_mixing()

    def _batch_maker(self, *, output: str, dtype: str, counts: bool, pin_memory: bool) -> BatchMaker:
        return BatchMaker(
            self.transform,
            output,
            dtype,
            counts,
            self.codes,
            self.workers,
            BufferPool(pinned=pin_memory, kept=2 * (self.preload + self.workers) + 12),
            self.atlas.mean_entries,
            self.tokens,
            cells_a_call(self._schedule.costs.delivered_cell),
        )

    def __len__(self) -> int:
        """Batches of one epoch."""
        return self._epoch.n_batches

    def plan(self) -> LoaderPlan:
        """How rows are read, how much memory that takes and how well batches are mixed."""
        return self._schedule.plan()

    @property
    def share(self) -> tuple[int, int]:
        """``rank`` and ``world_size``."""
        return self._schedule.rank, self._schedule.world_size

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of; goes up by itself at the end of each."""
        return self._epoch.number

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``; a position just loaded for this epoch is kept."""
        if epoch < 0:
            raise InputError(f"epoch={epoch} must not be negative")
        if epoch != self.epoch:
            self._start_epoch(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: the batch after the last one delivered comes next. JSON-able."""
        return {"epoch": self.epoch, "batch": self._batch, "order": self._schedule.settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken; refuses a state of another order."""
        if not isinstance(state, Mapping) or not {"epoch", "batch", "order"} <= state.keys():
            raise InputError(f"{_clipped(state)} is no state of a loader; pass what state_dict() returned")
        for name, value in self._schedule.settings().items():
            if (had := state["order"].get(name)) != value:
                cache = " (cache= is one: with a packed copy rows are read one by one)"
                raise InputError(
                    f"the saved loader had {name}={had}, this one has {name}={value}; make it with the same "
                    f"settings to resume{cache if name in ('block_size', 'window', 'blocks') else ''}"
                )
        epoch, batch = int(state["epoch"]), int(state["batch"])
        # A state taken after the last batch resumes at the next epoch, not with an empty remainder.
        finished = batch >= len(self)
        self._start_epoch(epoch + finished, 0 if finished else batch)

    def __iter__(self) -> Iterator[Any]:
        self._iteration += 1
        return self._deliver(self._iteration)

    def _start_epoch(self, epoch: int, batch: int) -> None:
        self._iteration += 1  # an iterator that is under way no longer says where the loader is
        self._epoch = self._schedule.epoch(epoch)
        self._batch = self._resume_at = batch

    def _deliver(self, iteration: int) -> Iterator[Any]:
        epoch, cancel = self._epoch, _csr.Cancel()
        start, self._resume_at = self._resume_at, 0
        self._reach(iteration, epoch, start)
        batches = ahead(self._batches(epoch, start, cancel), self.preload, stop=cancel.request)
        try:
            for batch in batches:
                start += 1
                # Before the batch is handed over: who takes the last one may never ask for another.
                self._reach(iteration, epoch, start)
                yield batch
        finally:
            batches.close()

    def _reach(self, iteration: int, epoch: Epoch, batch: int) -> None:
        if iteration != self._iteration:
            return
        if batch < epoch.n_batches:
            self._batch = batch
        else:
            self._start_epoch(epoch.number + 1, 0)

    def _batches(self, epoch: Epoch, start: int, cancel: _csr.Cancel) -> Iterator[Any]:
        number, skipped = epoch.locate(start)
        # One span is read while the one before it is cut up; what lies in memory need not be read.
        read_ahead = 0 if self._direct is not None else 1
        spans = ahead(self._spans(epoch, number, cancel), read_ahead, stop=cancel.request)
        try:
            if self._direct is not None and self.preload:
                for batch in self._maker.side_by_side(spans, skipped, self._schedule.batch_size):
                    yield batch if self._finish is None else self._finish(batch)
                return
            for span in spans:
                for batch in self._maker.batches(span, skipped):
                    yield batch if self._finish is None else self._finish(batch)
                skipped = 0
                del span  # or its window would live until the next one is there
        finally:
            spans.close()

    def _spans(self, epoch: Epoch, number: int, cancel: _csr.Cancel) -> Iterator[Span]:
        for row_ids, bounds in epoch.windows(number):
            wanted = self.atlas.rows[row_ids]
            if self._direct is not None:
                yield Span(self._direct, wanted, row_ids, bounds)
                continue
            # Ascending and each once: what a file is read best by.
            distinct, places = np.unique(wanted, return_inverse=True)
            window = self.atlas.store.window(
                distinct, memory=self._window_memory(), threads=self.workers, cancel=cancel
            )
            yield Span(window, places.astype(np.int64), row_ids, bounds)
            del window

    def _window_memory(self) -> _csr.WindowMemory:
        # After a fork its locks may be held by a thread that only the parent has.
        if self._owner != os.getpid():
            self._owner, self._memory = os.getpid(), self._schedule.window_memory()
        return self._memory

    def _warn_of_bad_mixing(self) -> None:
        plan = self._schedule.plan()
        # A window that holds all there is cannot be made larger.
        if plan.variance_inflation > _BAD_MIXING and plan.n_windows > 1:
            warnings.warn(
                f"batches are mixed badly: if the file is sorted, label shares vary up to "
                f"{plan.variance_inflation:.1f} times as much as in batches of random cells ({plan}); raise "
                "memory_limit= or window=, lower batch_size=, or pass cache= for a fully random order",
                stacklevel=3,
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memory": None, "_direct": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._owner, self._memory = os.getpid(), self._schedule.window_memory()
        self._direct = _random_access(self.atlas, self._cache)


def _random_access(atlas: Atlas, cache: str | Path | None) -> Rows | None:
    """What can be gathered from row by row, in any order, at no cost: arrays in memory or a packed cache."""
    direct = atlas.store.random_access
    if direct is not None or cache is None:
        atlas.check_in_memory()
        return direct
    from scdd.data.packed.cache import packed_cache

    packed = packed_cache(atlas, cache)
    return None if packed is None else packed.source


def _tokens(
    atlas: Atlas, genes: Sequence[str] | pd.Index | None, vocabulary: GeneVocabulary | None, max_genes: int
) -> TokenTransform:
    names = vocabulary or GeneVocabulary.unscaled(atlas.var_names if genes is None else genes)
    return TokenTransform.of(names, atlas, max_genes=max_genes)


def _clipped(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."


def _check_sizes(**sizes: int | None) -> None:
    for name, value in sizes.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer))):
            raise InputError(f"{name}={value!r} must be a whole number")
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1")


def _check_choices(
    *, output: str, dtype: str, counts: bool, seed: int, standardise: bool, expression: str
) -> None:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed={seed!r} must be a whole number, 0 or above")
    if output not in ("dense", "csr", "tokens"):
        raise InputError(f"output={output!r}; choose 'dense', 'csr' or 'tokens'")
    if dtype not in OUTPUT_TYPES:
        raise InputError(f"dtype={dtype!r}; choose {', '.join(OUTPUT_TYPES)}")
    if output != "dense" and (standardise or dtype != "float32"):
        named = "standardise=True leaves no zeros" if standardise else f"dtype={dtype!r} is for dense batches"
        raise InputError(f"{named}; pass output='dense'")
    if counts and expression == "log1p":
        raise InputError("counts=True, but the atlas holds log1p values; point it to a layer of counts")


def _place_among_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise InputError(f"rank={rank}, world_size={world_size}; pass both or neither")
    if rank is None or world_size is None:
        # Only asked where somebody has imported it: a loader alone needs no torch.
        torch = sys.modules.get("torch")
        group = getattr(torch, "distributed", None)
        if group is None or not group.is_available() or not group.is_initialized():
            return 0, 1
        return int(group.get_rank()), int(group.get_world_size())
    if not 0 <= rank < world_size:
        raise InputError(f"rank={rank} must lie in 0..world_size-1, and world_size is {world_size}")
    return rank, world_size
