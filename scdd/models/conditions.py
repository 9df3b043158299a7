"""The vocabulary of conditions: which values of which ``obs`` columns a generator knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scdd.data.atlas import Atlas


@dataclass(frozen=True)
class Conditions:
    """Categorical conditions, the label first, and how often each combination was seen in training.

    ``seen`` int64 [K, F] lists the distinct combinations of codes, ``share`` float64 [K] their shares.
    """

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    seen: np.ndarray
    share: np.ndarray

    @classmethod
    def fit(cls, atlas: Atlas, columns: Sequence[str]) -> Conditions:
        """Read the columns of an atlas."""
        if len(set(columns)) != len(columns):
            raise InputError(f"conditions={list(columns)} names a column twice")
        labels = [atlas.labels(name) for name in columns]
        codes = np.stack([label.codes for label in labels], 1)
        seen, counts = np.unique(codes, axis=0, return_counts=True)
        return cls(tuple(columns), tuple(tuple(x.names) for x in labels), seen, counts / counts.sum())

    @property
    def sizes(self) -> list[int]:
        """Number of values of each column."""
        return [len(values) for values in self.values]

    def encode(self, table: Mapping[str, Any], n: int) -> np.ndarray:
        """Codes int64 [n, F] of columns of values (or one value each); -1 where a column is absent."""
        unknown = [name for name in table if name not in self.names]
        if unknown:
            raise InputError(f"condition {unknown[0]!r} is unknown; the model knows {', '.join(self.names)}")
        codes = np.full((n, len(self.names)), -1, dtype=np.int64)
        for field, name in enumerate(self.names):
            if name in table:
                if np.ndim(table[name]) and len(table[name]) != n:
                    raise InputError(f"condition {name!r} has {len(table[name])} values for {n} cells")
                wanted = pd.Series(table[name]) if np.ndim(table[name]) else pd.Series([table[name]] * n)
                codes[:, field] = self._codes(field, wanted.astype(str))
        return codes

    def _codes(self, field: int, wanted: pd.Series) -> np.ndarray:
        codes = pd.Index(self.values[field]).get_indexer(wanted)
        if (codes < 0).any():
            name, bad = self.names[field], wanted[codes < 0].iloc[0]
            known = ", ".join(self.values[field])
            raise InputError(f"condition {name}={bad!r} was not seen in training; choose one of: {known}")
        return codes

    def complete(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Fill every -1 from the combinations seen in training that agree with the codes given.

        A combination never seen stays unconditioned in the columns that were left open.
        """
        full = codes.copy()
        for pattern in np.unique(codes, axis=0):
            here = (codes == pattern).all(1)
            agreeing = ((self.seen == pattern) | (pattern < 0)).all(1)
            if agreeing.any():
                share = self.share[agreeing] / self.share[agreeing].sum()
                full[here] = self.seen[agreeing][rng.choice(int(agreeing.sum()), int(here.sum()), p=share)]
        return full

    def decode(self, codes: np.ndarray) -> pd.DataFrame:
        """Codes back to categorical columns; -1 becomes missing."""
        columns = {
            name: pd.Categorical.from_codes(codes[:, field], categories=list(self.values[field]))
            for field, name in enumerate(self.names)
        }
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        arrays = {"seen": self.seen.tolist(), "share": self.share.tolist()}
        return {"names": list(self.names), "values": [list(v) for v in self.values], **arrays}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Conditions:
        """Inverse of :meth:`to_dict`."""
        values = tuple(tuple(v) for v in state["values"])
        seen = np.asarray(state["seen"], dtype=np.int64)
        return cls(tuple(state["names"]), values, seen, np.asarray(state["share"]))
