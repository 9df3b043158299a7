"""One condition of a generator: a column of categories, or one of numbers."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdd.errors import InputError
from scdd.nn.number_codes import STEPS, codes_of_numbers, offsets_of_codes

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas

# An integer column with at most this many values may be meant as categories.
_FEW = 10


@dataclass(frozen=True)
class Category:
    """A column with ``values`` in the order of their codes."""

    name: str
    values: tuple[str, ...]

    @classmethod
    def fit(cls, atlas: Atlas, name: str) -> Category:
        """Read the values of a column; refuses cells without one."""
        return cls(name, tuple(atlas.labels(name).names))

    @property
    def size(self) -> int:
        """Number of values."""
        return len(self.values)

    def encode(self, wanted: pd.Series) -> np.ndarray:
        """Codes int64 [n]; -1 for a missing value."""
        places, found = pd.factorize(wanted)
        known = pd.Index(self.values).get_indexer(pd.Index(found).astype(str))
        if (known < 0).any():
            bad = str(found[int(np.argmax(known < 0))])
            raise InputError(
                f"condition {self.name}={bad!r} was not seen in training; choose one of: "
                f"{', '.join(self.values)}"
            )
        return np.append(known, -1)[places].astype(np.int64)

    def decode(self, codes: np.ndarray) -> pd.Categorical:
        """The values of codes; -1 becomes missing."""
        return pd.Categorical.from_codes(codes, categories=list(self.values))


@dataclass(frozen=True)
class Number:
    """A column of numbers, standardised by the training cells' ``mean`` and ``std``."""

    name: str
    mean: float
    std: float
    low: float
    high: float

    @classmethod
    def fit(cls, atlas: Atlas, name: str) -> Number:
        """Measure a numeric column; NaN is a value that is not given."""
        column = atlas.column(name)
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        known = values[~np.isnan(values)]
        if np.isinf(known).any():
            raise InputError(f"obs[{name!r}] holds infinity; replace it by a number or NaN")
        distinct = len(np.unique(known))
        if distinct < 2:
            raise InputError(
                f"obs[{name!r}] is a number and has {distinct} distinct values; a condition needs two"
            )
        if distinct <= _FEW and column.dtype.kind in "iu":
            warnings.warn(
                f"obs[{name!r}] has {distinct} whole values and is taken as a number; "
                f"if they name groups, pass categorical=[{name!r}]",
                stacklevel=2,
            )
        return cls(name, float(known.mean()), float(known.std()), float(known.min()), float(known.max()))

    @property
    def size(self) -> int:
        """0: what stands for a number where the sizes of conditions are listed."""
        return 0

    @property
    def values(self) -> tuple[str, ...]:
        """A number has no list of values."""
        return ()

    def encode(self, wanted: pd.Series) -> np.ndarray:
        """Codes int64 [n]; -1 for a missing value."""
        plain = wanted.astype(object).where(wanted.notna(), np.nan)
        numbers = pd.to_numeric(plain, errors="coerce").to_numpy(dtype=np.float64)
        bad = (np.isnan(numbers) & wanted.notna().to_numpy()) | np.isinf(numbers)
        if bad.any():
            value = wanted.iloc[int(np.argmax(bad))]
            raise InputError(
                f"condition {self.name}={value!r} is no finite number; the model was trained on "
                f"{self.name} as a number from {self.low:g} to {self.high:g}"
            )
        return codes_of_numbers((numbers - self.mean) / self.std)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The numbers of codes, float64; -1 becomes NaN."""
        # The grid of codes is finer than these decimals, so that a number comes back as it was given.
        decimals = math.floor(-math.log10(self.std / STEPS))
        numbers = np.round(self.mean + self.std * offsets_of_codes(codes) / STEPS, decimals)
        return np.where(codes < 0, np.nan, numbers)

    def n_outside(self, codes: np.ndarray) -> int:
        """How many given codes lie beyond what training has seen."""
        numbers = self.decode(codes)
        return int(((numbers < self.low) | (numbers > self.high)).sum())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {key: value for key, value in asdict(self).items() if key != "name"}


Field = Category | Number


def fit_field(atlas: Atlas, name: str, *, number: bool) -> Field:
    """A condition of a column: a number if it may be one and its dtype is numeric."""
    dtype = atlas.column(name).dtype
    numeric = pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)
    return Number.fit(atlas, name) if number and numeric else Category.fit(atlas, name)
