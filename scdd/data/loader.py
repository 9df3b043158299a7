"""Mini-batches of cells: dense or sparse, normalised on the way, in an order that can be resumed."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scdd.data.expression import check_block
from scdd.data.gather import Arrays
from scdd.data.selection import checked_rows, gene_transform, label_codes
from scdd.data.shuffle import EpochOrder
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    from scipy import sparse

    from scdd.data.atlas import Atlas
    from scdd.data.preprocess import Preprocessor


class CellBatch(NamedTuple):
    """Some cells; every array is the batch's own and is never written again.

    Attributes
    ----------
    x : float32 [B, G], dense or ``csr_matrix``
    row_ids : int64 [B], positions in the atlas
    codes : int64 [B] for each label, into ``CellLoader.categories``; -1 where the label is missing
    totals : float64 [B], sum of each cell's stored values over all genes of the atlas
    counts : float32 [B, G], dense stored values before normalisation, or None if not asked for
    """

    x: np.ndarray | sparse.csr_matrix
    row_ids: np.ndarray
    codes: dict[str, np.ndarray]
    totals: np.ndarray
    counts: np.ndarray | None = None


class Window(NamedTuple):
    """Rows held at once: ``row_ids`` in the order of delivery, and their ``places`` in ``arrays``."""

    row_ids: np.ndarray
    arrays: Arrays
    places: np.ndarray


class CellLoader:
    """Iterates over the cells of an atlas in batches; each epoch meets each row once.

    ``x = log1p(target_sum * counts / total)`` over chosen genes, with totals over *all* genes; then
    ``(x - mean) / std`` with ``standardise``. Data that is log1p already is passed through.

    An atlas in memory is shuffled fully. One on disk is shuffled by blocks of ``block_size`` consecutive
    rows within a window of ``window`` rows; a thread reads the next window while the present one is used.
    The order depends on ``seed``, the epoch, the number of rows and these sizes, and on nothing else.

    Parameters
    ----------
    atlas : what to read
    batch_size : cells a batch, B
    rows : positions (int) or mask (bool) of the cells to use; all by default
    genes : names of the genes wanted, in the order wanted; all of the atlas by default
    preprocessor : chosen genes and their scale, in place of ``genes``
    output : ``"dense"`` or ``"csr"`` (sorted, without duplicates)
    normalise, standardise : see above; ``standardise`` needs a fitted preprocessor
    labels : columns of ``obs`` to deliver as codes; a mapping gives the categories as well, for codes
        that must agree between atlases
    shuffle, seed, block_size, window : see above
    drop_last : leave out a last batch that is not full
    counts : deliver the unnormalised values too
    threads : C++ threads a batch; by default up to four

    Raises
    ------
    InputError
        An argument that cannot be used, named with its value and the remedy.
    """

    def __init__(
        self,
        atlas: Atlas,
        *,
        batch_size: int = 512,
        rows: np.ndarray | None = None,
        genes: Sequence[str] | pd.Index | None = None,
        preprocessor: Preprocessor | None = None,
        output: str = "dense",
        normalise: bool = True,
        standardise: bool = False,
        labels: Sequence[str] | Mapping[str, Sequence[str]] = (),
        shuffle: bool = True,
        seed: int = 0,
        block_size: int = 32,
        window: int = 16_384,
        drop_last: bool = False,
        counts: bool = False,
        threads: int | None = None,
    ) -> None:
        self.threads = min(4, os.cpu_count() or 1) if threads is None else threads
        sizes = {
            "batch_size": batch_size,
            "block_size": block_size,
            "window": window,
            "threads": self.threads,
        }
        for name, value in sizes.items():
            if value < 1:
                raise InputError(f"{name}={value} must be at least 1")
        if seed < 0:
            raise InputError(f"seed={seed} must not be negative")
        if output not in ("dense", "csr"):
            raise InputError(f"output={output!r}; choose 'dense' or 'csr'")
        if output == "csr" and standardise:
            raise InputError("standardise=True leaves no zeros; pass output='dense'")
        if counts and atlas.expression == "log1p":
            raise InputError("counts=True, but the atlas holds log1p values; point it to a layer of counts")
        self.atlas, self.output, self.counts = atlas, output, counts
        self.drop_last = drop_last
        self.transform = gene_transform(
            atlas, genes, preprocessor, normalise=normalise, standardise=standardise
        )
        self.codes, self.categories = label_codes(atlas, labels)
        matrix = atlas.in_memory
        if matrix is not None:  # what is read from files is checked block by block
            check_block(matrix.data, atlas.expression, "the atlas")
        self._in_memory = None if matrix is None else Arrays.of(matrix)
        self._rows = checked_rows(rows, atlas.n_obs)
        if shuffle:
            self._rows = np.sort(self._rows)  # so that a block is a run of the file
        self._order = EpochOrder(
            n_rows=len(self._rows),
            batch_size=batch_size,
            block_size=1 if self._in_memory is not None else block_size,
            window=window,
            seed=seed,
            epoch=0,
            shuffle=shuffle,
        )
        self._batch = self._resume_at = 0

    def __len__(self) -> int:
        """Batches of one epoch."""
        size = self._order.batch_size
        return self._order.n_rows // size if self.drop_last else -(-self._order.n_rows // size)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of; goes up by itself at the end of each."""
        return self._order.epoch

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``; a position just loaded for this epoch is kept."""
        if epoch < 0:
            raise InputError(f"epoch={epoch} must not be negative")
        if epoch != self.epoch:
            self._start_epoch(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: the batch after the last one delivered comes next. JSON-able."""
        return {"epoch": self.epoch, "batch": self._batch, "order": self._order_settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken; refuses a state of another order."""
        for name, value in self._order_settings().items():
            if state["order"].get(name) != value:
                raise InputError(
                    f"the saved loader had {name}={state['order'].get(name)}, this one has {name}={value}; "
                    "make it with the same settings to resume"
                )
        epoch, batch = int(state["epoch"]), int(state["batch"])
        # A state taken after the last batch resumes at the next epoch, not with an empty remainder.
        finished = batch >= len(self)
        self._start_epoch(epoch + finished, 0 if finished else batch)

    def __iter__(self) -> Iterator[CellBatch]:
        start, self._resume_at = self._resume_at, 0
        self._batch = start
        return self._batches(self._order, start)

    def _start_epoch(self, epoch: int, batch: int) -> None:
        self._order = self._order._replace(epoch=epoch)
        self._batch = self._resume_at = batch

    def _order_settings(self) -> dict[str, Any]:
        return {k: v for k, v in self._order._asdict().items() if k != "epoch"} | {
            "drop_last": self.drop_last
        }

    def _batches(self, order: EpochOrder, start: int) -> Iterator[CellBatch]:
        size = order.batch_size
        first_window, skipped = divmod(start, order.batches_per_window)
        for window in self._windows(order.windows(first_window)):
            for begin in range(skipped * size, len(window.row_ids), size):
                if self.drop_last and begin + size > len(window.row_ids):
                    break
                batch = self._make(window, slice(begin, begin + size))
                start += 1
                self._batch = start
                yield batch
            skipped = 0
        self._start_epoch(order.epoch + 1, 0)

    def _windows(self, positions: Iterator[np.ndarray]) -> Iterator[Window]:
        """Windows with their values, one read ahead. Leaving this generator, however, joins the thread."""
        with ThreadPoolExecutor(1, thread_name_prefix="scdd-loader") as reader:
            ahead = reader.submit(self._read, positions)
            while (window := ahead.result()) is not None:
                ahead = reader.submit(self._read, positions)
                yield window

    def _read(self, positions: Iterator[np.ndarray]) -> Window | None:
        wanted = next(positions, None)
        if wanted is None:
            return None
        row_ids = self._rows[wanted]
        if self._in_memory is not None:
            return Window(row_ids, self._in_memory, row_ids)
        # Ascending and each once: what a file is read best by.
        distinct, places = np.unique(row_ids, return_inverse=True)
        return Window(row_ids, Arrays.of(self.atlas.read(distinct)), places.astype(np.int64))

    def _make(self, window: Window, part: slice) -> CellBatch:
        rows, row_ids = window.places[part], window.row_ids[part].copy()
        if self.output == "dense":
            x, totals = self.transform.dense(window.arrays, rows, threads=self.threads)
        else:
            x, totals = self.transform.csr(window.arrays, rows, threads=self.threads)
        counts = self.transform.stored(window.arrays, rows, threads=self.threads) if self.counts else None
        return CellBatch(
            x, row_ids, {name: codes[row_ids] for name, codes in self.codes.items()}, totals, counts
        )
