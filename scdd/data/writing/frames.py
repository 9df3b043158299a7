"""The table of cells, written as it comes: a stored data frame that grows row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scdd.data.writing.files import store_element
from scdd.errors import InputError

if TYPE_CHECKING:
    import numpy as np

# Rows gathered before they are written. HDF5 extends a chunk in place; zarr writes it again whole.
_ROWS = {".h5ad": 1 << 12, ".zarr": 1 << 16}
_CHUNK = 1 << 16


class GrowingFrame:
    """A data frame in an open HDF5 or zarr group, appended to.

    Columns are numbers, booleans, strings or categories; those of the first rows decide. Categories
    are the same in every portion, unused ones included.
    """

    def __init__(self, parent: Any, name: str, suffix: str):
        self._parent, self._name, self._suffix = parent, name, suffix
        self._waiting: list[pd.DataFrame] = []
        self._like: pd.DataFrame | None = None
        self._created = False

    def append(self, frame: pd.DataFrame) -> None:
        """Add rows."""
        if self._like is None:
            self._like = frame.iloc[:0].copy()
        else:
            _same_columns(frame, self._like)
        self._waiting.append(frame)
        if sum(map(len, self._waiting)) >= _ROWS[self._suffix]:
            self._flush()

    def finish(self) -> None:
        """Write what is left."""
        if self._waiting or not self._created:
            self._flush(last=True)

    def _flush(self, *, last: bool = False) -> None:
        rows = pd.concat(self._waiting) if self._waiting else pd.DataFrame()
        self._waiting = []
        if not self._created:
            # a frame that ends here needs no chunk of 65,536 rows: of each column the file holds a whole one
            self._create(rows, chunk=min(_CHUNK, max(len(rows), 1)) if last else _CHUNK)
            return
        group = self._parent[self._name]
        _extend(group[group.attrs["_index"]], rows.index.to_numpy())
        for column in rows:
            values = rows[column]
            if isinstance(values.dtype, pd.CategoricalDtype):
                _extend(group[column]["codes"], values.cat.codes.to_numpy())
            else:
                _extend(group[column], values.to_numpy())

    def _create(self, rows: pd.DataFrame, *, chunk: int) -> None:
        layout: dict[str, Any] = {"chunks": (chunk,)}
        if self._suffix == ".h5ad":
            layout["maxshape"] = (None,)
        store_element(self._parent, self._name, rows, **layout)
        group = self._parent[self._name]
        for column in rows:
            stored = group[column]
            if not hasattr(stored, "resize") and "codes" not in stored:
                raise InputError(
                    f"column {column!r} of obs has dtype {rows[column].dtype}, which cannot be appended to; "
                    "cast it to numbers, strings or categories, or pass obs= whole"
                )
        self._created = True


def _extend(array: Any, values: np.ndarray) -> None:
    start = array.shape[0]
    array.resize((start + len(values),))
    array[start : start + len(values)] = values


def _same_columns(frame: pd.DataFrame, like: pd.DataFrame) -> None:
    if list(frame.columns) != list(like.columns):
        raise InputError(
            f"obs of a block has the columns {list(frame.columns)}, of the first {list(like.columns)}; "
            "give every block the same columns in the same order"
        )
    for column in like:
        if frame[column].dtype != like[column].dtype:
            raise InputError(
                f"column {column!r} of obs changes its dtype or its categories between blocks; "
                "give every block the same, unused categories included"
            )
