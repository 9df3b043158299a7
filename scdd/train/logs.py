"""The history of a run on disk while it goes on: CSV, and TensorBoard where that is installed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from scdd.errors import DataFileError

if TYPE_CHECKING:
    from types import TracebackType


class Log:
    """One line for every row of the history.

    A ``place`` that ends in .csv is that file. Any other is a folder: ``LABEL.csv`` in it and, where the
    package tensorboard is installed, its events in the folder ``LABEL``. A run that is resumed writes the
    rows it has anew and goes on, so that no step is there twice.
    """

    def __init__(self, place: str | Path | None, label: str, history: list[dict[str, float]]):
        self._file: Any = None
        self._board: Any = None
        self._columns: list[str] = []
        if place is None:
            return
        place = Path(place)
        self._path = place if place.suffix == ".csv" else place / f"{label}.csv"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # a log grows where it lies: half of it is what is wanted of a run that died
            self._file = self._path.open("w", newline="")
        except OSError as error:
            raise self._refusal(error) from error
        for row in history:
            self._write(row)
        if place.suffix != ".csv":
            self._board = _board(place / label, history[-1]["step"] if history else 0)

    def row(self, row: dict[str, float], *, cells_per_second: float) -> None:
        """Add a row; it is on disk when this returns."""
        row = {**row, "cells_per_second": cells_per_second}
        if self._file is not None:
            self._write(row)
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, int(row["step"]))
            self._board.flush()

    def _write(self, row: dict[str, float]) -> None:
        known = dict.fromkeys([*self._columns, *row])
        try:
            if list(known) != self._columns:
                self._widen(list(known))
            csv.DictWriter(self._file, self._columns).writerow(row)
            self._file.flush()
        except OSError as error:
            raise self._refusal(error) from error

    def _widen(self, columns: list[str]) -> None:
        """A row has columns that were unknown: the file is written anew under them."""
        self._file.flush()
        with self._path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self._file.seek(0)
        self._file.truncate()
        self._columns = columns
        writer = csv.DictWriter(self._file, columns)
        writer.writeheader()
        writer.writerows(rows)

    def _refusal(self, error: OSError) -> DataFileError:
        return DataFileError(
            f"the log {self._path} cannot be written ({error.strerror or error}); "
            "free space or choose another place for it"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in (self._file, self._board):
            if part is not None:
                part.close()


def _board(folder: Path, step: float) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=int(step) + 1)
