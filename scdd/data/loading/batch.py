"""What a loader delivers, and how it is made from rows."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scdd.data.loading.lanes import Lanes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from scdd.data.loading.buffers import BufferPool
    from scdd.data.loading.gather import GeneTransform, Rows
    from scdd.data.loading.tokens import TokenBatch, TokenTransform


_CALL_BYTES = 1 << 25
# Cells that are worth a task of their own on another thread: some hundred microseconds of work.
_SMALLEST_TASK = 128


class CellBatch(NamedTuple):
    """Some cells; every array is the batch's own and is not written again while anybody holds it.

    Attributes
    ----------
    x : [B, G], dense of the loader's dtype (bfloat16: a tensor) or ``csr_matrix`` float32
    row_ids : int64 [B], positions in the atlas
    codes : int64 [B] for each label, into ``CellLoader.categories``; -1 where the label is missing
    totals : float64 [B], sum of each cell's stored values over all genes of the atlas
    counts : float32 [B, G], dense stored values before normalisation, or None if not asked for
    """

    x: Any
    row_ids: np.ndarray
    codes: dict[str, np.ndarray]
    totals: np.ndarray
    counts: np.ndarray | None = None

    @property
    def data(self) -> np.ndarray:
        """Values of a sparse batch, float32 [nnz]."""
        return self.x.data

    @property
    def indices(self) -> np.ndarray:
        """Columns of a sparse batch, int32 [nnz]."""
        return self.x.indices

    @property
    def indptr(self) -> np.ndarray:
        """Where each cell of a sparse batch begins, int32 [B + 1]."""
        return self.x.indptr

    @property
    def size_factors(self) -> np.ndarray:
        """``10^4 / total``, what counts are multiplied by; 0 for a cell without counts."""
        return np.divide(1e4, self.totals, out=np.zeros_like(self.totals), where=self.totals != 0)


class Span(NamedTuple):
    """Rows held at once, and where the batches lie among them.

    Attributes
    ----------
    source : what they are gathered from
    places : int64 [n], row of ``source`` for each cell, in the order of delivery
    row_ids : int64 [n], the cells' positions in the atlas
    bounds : int64 [batches + 1], first cell of each batch
    """

    source: Rows
    places: np.ndarray
    row_ids: np.ndarray
    bounds: np.ndarray


class Group(NamedTuple):
    """Batches ``first:last`` of a span, which are made in one call and share their memory."""

    span: Span
    first: int
    last: int

    @property
    def begin(self) -> int:
        """First cell."""
        return int(self.span.bounds[self.first])

    @property
    def end(self) -> int:
        """Cell after the last."""
        return int(self.span.bounds[self.last])


class Made(NamedTuple):
    """What a group became: ``x(start, stop)`` of some cells, totals [n] and counts [n, G] or None."""

    x: Callable[[int, int], Any]
    totals: np.ndarray
    counts: np.ndarray | None


def cells_a_call(cell_bytes: float) -> int:
    """Cells that are gathered in one call: below, starting threads would cost more than they save.

    Parameters
    ----------
    cell_bytes : of a delivered cell; some tens of megabytes are enough for any number of threads
    """
    return max(1, min(2_048, int(_CALL_BYTES // max(cell_bytes, 1.0))))


@dataclass(frozen=True)
class BatchMaker:
    """Makes batches, several small ones in one pass of C++ where that saves calls.

    Attributes
    ----------
    output : ``"dense"`` or ``"csr"``
    entries : of an average cell, so that buffers are asked for in the right size
    """

    transform: GeneTransform
    output: str
    dtype: str
    counts: bool
    codes: dict[str, np.ndarray]
    threads: int
    pool: BufferPool
    entries: float
    tokens: TokenTransform | None = None
    cells_a_call: int = 2_048

    def batches(self, span: Span, first: int = 0) -> Iterator[CellBatch | TokenBatch]:
        """All batches of a span from number ``first`` on."""
        if self.tokens is not None:
            yield from (self._tokens(span, number) for number in range(first, len(span.bounds) - 1))
            return
        for group in self._groups(span, first, self.cells_a_call):
            yield from self._cut(group, self._made(group, self.threads))

    def side_by_side(self, spans: Iterable[Span], first: int, batch_size: int) -> Iterator[Any]:
        """Batches of all spans, from number ``first`` of the first one on; some groups are made at a time.

        Each by a thread of its own, so that all are at work while batches are cut and orders are drawn. Taken
        together the groups under way are no larger than one of `batches`, but for the one that is cut.
        """
        lanes = min(self.threads, self.cells_a_call // max(batch_size, _SMALLEST_TASK))
        if lanes < 2 or self.tokens is not None:
            for span in spans:
                yield from self.batches(span, first)
                first = 0
            return
        pool = Lanes(lanes, name="scdd-batches")
        under_way: deque[tuple[Group, Future[Made]]] = deque()
        try:
            for group in self._all_groups(spans, first, self.cells_a_call // lanes):
                under_way.append((group, pool.submit(self._made, group, self.threads // lanes)))
                if len(under_way) > lanes:  # one waits, so that no thread does
                    yield from self._cut_next(under_way)
            while under_way:
                yield from self._cut_next(under_way)
        finally:
            pool.close()

    def _cut_next(self, under_way: deque[tuple[Group, Future[Made]]]) -> Iterator[CellBatch]:
        group, made = under_way.popleft()
        return self._cut(group, made.result())

    def _all_groups(self, spans: Iterable[Span], first: int, cells: int) -> Iterator[Group]:
        for span in spans:
            yield from self._groups(span, first, cells)
            first = 0

    def _groups(self, span: Span, first: int, cells: int) -> Iterator[Group]:
        """As many whole batches at a time as ``cells`` hold, but at least one."""
        n = len(span.bounds) - 1
        while first < n:
            last = int(np.searchsorted(span.bounds, span.bounds[first] + cells, side="right")) - 1
            last = min(max(last, first + 1), n)
            yield Group(span, first, last)
            first = last

    def _tokens(self, span: Span, number: int) -> TokenBatch:
        own = slice(int(span.bounds[number]), int(span.bounds[number + 1]))
        row_ids = span.row_ids[own].copy()
        codes = {name: column[row_ids] for name, column in self.codes.items()}
        assert self.tokens is not None
        return self.tokens.batch(
            span.source, span.places[own], row_ids=row_ids, codes=codes, threads=self.threads
        )

    def _made(self, group: Group, threads: int) -> Made:
        span, places = group.span, group.span.places[group.begin : group.end]
        x, totals = self._gather(span.source, places, threads)
        counts = self.transform.stored(span.source, places, threads=threads) if self.counts else None
        return Made(x, totals, counts)

    def _cut(self, group: Group, made: Made) -> Iterator[CellBatch]:
        span, counts = group.span, made.counts
        for number in range(group.first, group.last):
            begin, end = int(span.bounds[number]), int(span.bounds[number + 1])
            row_ids = span.row_ids[begin:end].copy()
            codes = {name: column[row_ids] for name, column in self.codes.items()}
            own = slice(begin - group.begin, end - group.begin)
            yield CellBatch(
                made.x(own.start, own.stop),
                row_ids,
                codes,
                made.totals[own],
                None if counts is None else counts[own],
            )

    def _gather(self, source: Rows, places: np.ndarray, threads: int) -> tuple[Any, np.ndarray]:
        """A function that cuts out the x of one batch, and the totals of all."""
        if self.output == "csr":
            # Cells differ in size; a sixth more than average is rarely too little for many of them.
            room = int(len(places) * self.entries * 7 / 6) + 1024
            rows = self.transform.csr(source, places, threads=threads, pool=self.pool, room=room)
            return rows.matrix, rows.totals
        x, totals = self.transform.dense(source, places, threads=threads, dtype=self.dtype, pool=self.pool)
        if self.dtype == "bfloat16":
            import torch

            tensor = torch.from_numpy(x).view(torch.bfloat16)
            return (lambda start, stop: tensor[start:stop]), totals
        return (lambda start, stop: x[start:stop]), totals
