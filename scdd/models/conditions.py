"""The vocabulary of conditions: which values of which ``obs`` columns a generator knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdd.errors import InputError
from scdd.models.condition_fields import Category, Field, Number, fit_field
from scdd.nn.number_codes import STEPS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scdd.data.atlas import Atlas

# Rows kept of training cells where there are numbers: in all, and at least of every combination.
_ROWS, _LEAST = 4_096, 8
# Which training cells a number that is given speaks of: those about this near, in standard deviations.
_NEAR = 0.25


@dataclass(frozen=True)
class Conditions:
    """Conditions, the label first, and what combinations of them training has seen.

    A cell's conditions are int64 codes [F], -1 where one is not given: of a category its place among the
    values, of a number its place on a fine grid. ``seen`` [K, F] lists distinct combinations, ``share``
    float64 [K] how often each occurs. With numbers, ``seen`` is a bounded sample of training cells in each
    combination of categories, and the shares of combinations are still exact.
    """

    fields: tuple[Field, ...]
    seen: np.ndarray
    share: np.ndarray

    @classmethod
    def fit(cls, atlas: Atlas, columns: Sequence[str], *, categorical: Sequence[str] = ()) -> Conditions:
        """Read columns of an atlas; numeric ones are numbers, but for the label and those ``categorical``."""
        if len(set(columns)) != len(columns):
            raise InputError(f"conditions={list(columns)} names a column twice")
        if unknown := [name for name in categorical if name not in columns]:
            raise InputError(f"categorical={unknown[0]!r} is none of the conditions {', '.join(columns)}")
        fields = tuple(
            fit_field(atlas, name, number=number > 0 and name not in categorical)
            for number, name in enumerate(columns)
        )
        conditions = cls(fields, np.empty((0, len(fields)), dtype=np.int64), np.empty(0))
        return cls(fields, *_combinations(conditions.codes_of(atlas), conditions.is_number))

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of ``obs``."""
        return tuple(field.name for field in self.fields)

    @property
    def values(self) -> tuple[tuple[str, ...], ...]:
        """Values of each category; none for a number."""
        return tuple(field.values for field in self.fields)

    @property
    def sizes(self) -> list[int]:
        """Number of values of each column; 0 for a number."""
        return [field.size for field in self.fields]

    @property
    def is_number(self) -> np.ndarray:
        """Which columns are numbers, bool [F]."""
        return np.array([isinstance(field, Number) for field in self.fields], dtype=bool)

    def codes_of(self, atlas: Atlas) -> np.ndarray:
        """Codes int64 [n, F] of all cells of an atlas, which has every column."""
        return self.encode({name: atlas.column(name) for name in self.names}, atlas.n_obs)

    def encode(self, table: Mapping[str, Any], n: int) -> np.ndarray:
        """Codes int64 [n, F] of columns of values (or one value each); -1 where one is absent or missing."""
        unknown = [name for name in table if name not in self.names]
        if unknown:
            raise InputError(f"condition {unknown[0]!r} is unknown; the model knows {', '.join(self.names)}")
        codes = np.full((n, len(self.names)), -1, dtype=np.int64)
        for number, field in enumerate(self.fields):
            if field.name not in table:
                continue
            wanted = table[field.name]
            if np.ndim(wanted) and len(wanted) != n:
                raise InputError(f"condition {field.name!r} has {len(wanted)} values for {n} cells")
            codes[:, number] = field.encode(pd.Series(wanted if np.ndim(wanted) else [wanted]))
        return codes

    def complete(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Fill every -1 from what training has seen that agrees with the codes given.

        A number that is given speaks of the training cells near it. A combination never seen stays
        unconditioned in the columns that were left open, but for the label, which follows its own shares.
        """
        full = codes.copy()
        to_fill = np.flatnonzero((codes < 0).any(1))
        patterns, which = np.unique(self._coarse(codes[to_fill]), axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            here = to_fill[which.ravel() == number]
            weight = self._agreement(pattern)
            if weight.any():
                drawn = self.seen[rng.choice(len(weight), len(here), p=weight / weight.sum())]
                full[here] = np.where(codes[here] < 0, drawn, codes[here])
        unlabelled = np.flatnonzero(full[:, 0] < 0)
        if len(unlabelled):
            shares = np.bincount(self.seen[:, 0], weights=self.share, minlength=self.sizes[0])
            full[unlabelled, 0] = rng.choice(len(shares), len(unlabelled), p=shares / shares.sum())
        return full

    def _coarse(self, codes: np.ndarray) -> np.ndarray:
        """Numbers rounded, so that cells which agree about the same training cells are drawn together."""
        step = int(STEPS * _NEAR / 2)
        coarse = np.where(codes < 0, codes, (codes // step) * step + step // 2)
        return np.where(self.is_number, coarse, codes)

    def _agreement(self, pattern: np.ndarray) -> np.ndarray:
        """Weight [K] of every combination seen that agrees with the codes given in ``pattern`` [F]."""
        asked, number = pattern >= 0, self.is_number
        category = asked & ~number
        weight = np.where((self.seen[:, category] == pattern[category]).all(1), self.share, 0.0)
        near = asked & number
        if not near.any() or not weight.any():
            return weight
        away = (self.seen[:, near] - pattern[near]) / (STEPS * _NEAR)
        far = np.where(self.seen[:, near] < 0, np.inf, away**2 / 2).sum(1)
        closest = far[weight > 0].min()
        # All that agree lack the number: their other columns are still the best that is known.
        return weight if np.isinf(closest) else weight * np.exp(closest - far)

    def decode(self, codes: np.ndarray) -> pd.DataFrame:
        """Codes back to columns; -1 becomes missing."""
        return pd.DataFrame({f.name: f.decode(codes[:, number]) for number, f in enumerate(self.fields)})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        numbers = {field.name: field.to_dict() for field in self.fields if isinstance(field, Number)}
        arrays = {"seen": self.seen.tolist(), "share": self.share.tolist()}
        values = [list(v) for v in self.values]
        return {"names": list(self.names), "values": values, "numbers": numbers, **arrays}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Conditions:
        """Inverse of :meth:`to_dict`; reads states of models that knew no numbers."""
        numbers = state.get("numbers", {})
        fields = tuple(
            Number(name, **numbers[name]) if name in numbers else Category(name, tuple(values))
            for name, values in zip(state["names"], state["values"], strict=True)
        )
        seen = np.asarray(state["seen"], dtype=np.int64)
        return cls(fields, seen, np.asarray(state["share"]))


def _combinations(codes: np.ndarray, is_number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows of codes [n, F] and their shares; with numbers, of a sample in each combination."""
    seen, which, counts = np.unique(codes[:, ~is_number], axis=0, return_inverse=True, return_counts=True)
    if not is_number.any():
        return seen, counts / counts.sum()
    rng, most = np.random.default_rng(0), max(_LEAST, _ROWS // len(seen))
    order = rng.permutation(len(codes))
    order = order[np.argsort(which.ravel()[order], kind="stable")]
    rank = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = order[rank < most]
    weight = (counts / np.minimum(counts, most))[which.ravel()[kept]]
    rows, place = np.unique(codes[kept], axis=0, return_inverse=True)
    share = np.bincount(place.ravel(), weights=weight)
    return rows, share / share.sum()
