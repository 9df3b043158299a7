"""Blocks: the runs of cells that are read together, by the chunks of the files that they lie in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Blocks(NamedTuple):
    """Runs of positions that are read together.

    Attributes
    ----------
    edges : int64 [n_blocks + 1], 0 to n_rows: where each begins
    shared : bool [n_blocks], whether the last position of a block lies also in the chunk that the next
        begins with
    """

    edges: np.ndarray
    shared: np.ndarray

    @classmethod
    def apart(cls, edges: np.ndarray) -> Blocks:
        """Blocks that have no chunk in common."""
        return cls(edges, np.zeros(len(edges) - 1, dtype=bool))


class Chunks(NamedTuple):
    """The chunks that rows lie in.

    Attributes
    ----------
    rows : int64 [n], store rows
    number : int64 [n], of the chunk that each begins in
    cut : bool [n], whether it ends in another
    known : bool [n], whether its source has chunks that must be decoded as a whole
    """

    rows: np.ndarray
    number: np.ndarray
    cut: np.ndarray
    known: np.ndarray

    def blocks(self, cells: int, *, parts: bool) -> Blocks:
        """Blocks of about ``cells``.

        Blocks are whole chunks, as many as hold ``cells`` or more; with ``parts`` a chunk is also cut into
        equal parts of about ``cells``. A block never goes on where rows do not ascend: no cell is in it
        twice.
        """
        n = len(self.rows)
        if not n:
            return Blocks.apart(np.zeros(1, dtype=np.int64))
        begins = np.concatenate([[True], np.diff(self.rows) <= 0])
        offset = _since(begins)
        chunk_begins = begins | (np.diff(self.number, prepend=-1) != 0)
        candidates = np.flatnonzero(begins | np.where(self.known, chunk_begins, offset % cells == 0))
        edges = candidates[begins[candidates] | (np.diff(offset[candidates] // cells, prepend=-1) != 0)]
        if parts:
            inner = self.known & ~chunk_begins & _part_begins(chunk_begins, cells)
            edges = np.union1d(edges, np.flatnonzero(inner))
        here, before = edges[1:], edges[1:] - 1
        shared = self.cut[before] & (self.number[here] == self.number[before] + 1)
        return Blocks(np.append(edges, n).astype(np.int64), np.append(shared, False))


def with_the_later(edges: np.ndarray, shared: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Edges moved by one where the last position of a block goes to the next, whose turn comes later.

    Parameters
    ----------
    order : int64 [n_blocks], numbers of the blocks in the order of their turns
    """
    turn = np.empty(len(order), dtype=np.int64)
    turn[order] = np.arange(len(order))
    moved = shared[:-1] & (turn[1:] > turn[:-1]) & (np.diff(edges)[:-1] > 1)
    edges = edges.copy()
    edges[1:-1] -= moved
    return edges


def mean_block(edges: np.ndarray) -> float:
    """Size of the block that a random row lies in: ``sum(l^2) / sum(l)`` over block lengths l."""
    lengths = np.diff(edges).astype(np.float64)
    return float((lengths**2).sum() / max(lengths.sum(), 1.0))


def _since(begins: np.ndarray) -> np.ndarray:
    """How far back the last true element of bool [n] is."""
    places = np.arange(len(begins))
    return places - np.maximum.accumulate(np.where(begins, places, 0))


def _part_begins(group_begins: np.ndarray, cells: int) -> np.ndarray:
    """Where each of the equal parts of about ``cells`` begins that groups are cut into."""
    sizes = np.diff(np.append(np.flatnonzero(group_begins), len(group_begins)))
    n_parts = np.maximum(1, np.round(sizes / cells).astype(np.int64))
    part = _since(group_begins) * np.repeat(n_parts, sizes) // np.repeat(sizes, sizes)
    return group_begins | (np.diff(part, prepend=-1) != 0)
