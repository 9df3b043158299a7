"""Uniform samples of fixed size: of every class of an atlas, and of streams of unknown length."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scdd.data.atlas import Atlas
    from scdd.data.preprocess import Preprocessor

Item = TypeVar("Item")
_BLOCK = 1 << 20


class ReservoirCells(NamedTuple):
    """Cells drawn from each class, in the order of classes and then of the atlas.

    Attributes
    ----------
    x : float32 [m, G], as the preprocessor gives them
    rows : int64 [m], positions in the atlas
    codes : int64 [m], into ``names``
    names : classes, sorted
    """

    x: np.ndarray
    rows: np.ndarray
    codes: np.ndarray
    names: list[str]


def class_reservoirs(
    codes: np.ndarray, k: int, *, n_classes: int | None = None, seed: int = 0, block: int = _BLOCK
) -> list[np.ndarray]:
    """Draw ``k`` rows of every class, uniformly and without replacement, in one pass.

    Every row has a 64-bit random key, a function of ``seed`` and its number alone; a class keeps its k
    smallest. So neither ``block`` nor the rows of other classes change what is drawn, and a smaller k
    draws a part of what a larger one does.

    Parameters
    ----------
    codes
        Class of every row, integers [n]; negative: none.
    k
        Rows of each class; classes with fewer give all they have.
    n_classes
        By default one more than the largest code.
    seed
        Non-negative.
    block
        Rows looked at together; it changes memory, never the result.

    Returns
    -------
    list of int64 [at most k]
        Rows of each class, ascending.

    Raises
    ------
    InputError
        Codes that are no integers or not below ``n_classes``; k, seed or block out of range.
    """
    codes = np.asarray(codes)
    if codes.ndim != 1 or (len(codes) and codes.dtype.kind not in "iu"):
        raise InputError(f"codes is {codes.dtype} of shape {codes.shape}: pass integers [n]")
    for name, value, least in (("k", k, 0), ("seed", seed, 0), ("block", block, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(f"{name} is {value!r}: give a whole number of at least {least}")
    largest = int(codes.max(initial=-1))
    n_classes = largest + 1 if n_classes is None else n_classes
    if largest >= n_classes:
        raise InputError(f"codes go up to {largest}: n_classes is {n_classes}, raise it")
    kept, bound = _Kept.empty(), np.full(n_classes, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(codes) if k else 0, block):
        part = codes[start : start + block].astype(np.int64)
        keys = _keys(seed, start, len(part))
        # Most rows of a long atlas are above their class's k-th key already, and fall here.
        here = np.flatnonzero(part >= 0)
        here = here[keys[here] <= bound[part[here]]]
        kept = kept.joined(part[here], keys[here], here + start).smallest(k)
        kept.lower(bound, k)
    ends = np.cumsum(np.bincount(kept.code, minlength=n_classes)) if n_classes else np.zeros(0, int)
    return [np.sort(rows) for rows in np.split(kept.row, ends[:-1])] if n_classes else []


def reservoir_cells(
    atlas: Atlas,
    label_key: str,
    k: int,
    *,
    preprocessor: Preprocessor,
    standardise: bool = False,
    seed: int = 0,
) -> ReservoirCells:
    """Draw ``k`` cells of every class of ``obs[label_key]`` (`class_reservoirs`) and read them, dense.

    Cells without a label are left out.
    """
    column = atlas.column(label_key)
    labelled = column.notna().to_numpy()
    names, found = np.unique(column[labelled].astype(str).to_numpy(), return_inverse=True)
    codes = np.full(atlas.n_obs, -1, dtype=np.int64)
    codes[labelled] = found
    drawn = class_reservoirs(codes, k, n_classes=len(names), seed=seed)
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *drawn])
    # The file is read front to back, whatever the order of classes.
    order = np.argsort(rows, kind="stable")
    x = np.empty((len(rows), preprocessor.n_genes), dtype=np.float32)
    x[order] = preprocessor.transform(atlas, rows[order], standardise=standardise)
    return ReservoirCells(x, rows, codes[rows], [str(name) for name in names])


def sample_stream(items: Iterable[Item], k: int, *, seed: int = 0) -> list[Item]:
    """Draw ``k`` items of a stream of unknown length, uniformly and without replacement.

    A shorter stream is returned whole.

    Algorithm L: the items to skip until the next one is kept are drawn at once, O(k (1 + log(n / k)))
    random numbers for n items.

    References
    ----------
    Li, "Reservoir-sampling algorithms of time complexity O(n(1 + log(N/n)))", ACM TOMS 1994.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 0:
        raise InputError(f"k is {k!r}: give a whole number of at least 0")
    rng, stream = np.random.default_rng(seed), iter(items)
    kept = list(islice(stream, k))
    if len(kept) < k or k == 0:
        return kept
    # log w of the largest of k uniform numbers; 1 - random() is never zero.
    log_w = np.log(1.0 - rng.random()) / k
    while True:
        skip = int(min(np.log(1.0 - rng.random()) / np.log1p(-np.exp(log_w)), 2.0**62))
        following = next(islice(stream, skip, None), stream)
        if following is stream:
            return kept
        kept[rng.integers(k)] = following  # type: ignore[assignment]
        log_w += np.log(1.0 - rng.random()) / k


class _Kept(NamedTuple):
    """Rows kept so far, sorted by class and key."""

    code: np.ndarray
    key: np.ndarray
    row: np.ndarray

    @classmethod
    def empty(cls) -> _Kept:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.int64))

    def joined(self, code: np.ndarray, key: np.ndarray, row: np.ndarray) -> _Kept:
        parts = zip(self, (code, key, row), strict=True)
        return _Kept(*(np.concatenate(pair) for pair in parts))

    def smallest(self, k: int) -> _Kept:
        """The k smallest keys of each class; ties, which hardly ever happen, go to the earlier row."""
        order = np.lexsort((self.row, self.key, self.code))
        code = self.code[order]
        rank = np.arange(len(code)) - np.searchsorted(code, code)
        return _Kept(*(part[order[rank < k]] for part in self))

    def lower(self, bound: np.ndarray, k: int) -> None:
        """Set the bound of each class that has its k rows to the largest of their keys."""
        last = np.searchsorted(self.code, np.arange(len(bound)), side="right") - 1
        full = np.bincount(self.code, minlength=len(bound)) == k
        bound[full] = self.key[last[full]]


def _keys(seed: int, start: int, n: int) -> np.ndarray:
    """Random keys of rows start..start+n-1, uint64 [n]: SplitMix64 at those places of its sequence."""
    origin = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        z = origin + (np.arange(start, start + n, dtype=np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
