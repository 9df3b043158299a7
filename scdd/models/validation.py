"""Validation cells: held out of a generator's training cells, to judge it by while it is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from scdd.data.splits import SplitRule, split_rows
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from scdd.data.loader import CellLoader
    from scdd.data.loading.batch import CellBatch

DEFAULT_SHARE = 0.1
# Fewer say little and are missed in training; more say hardly more and take time at each evaluation.
FEWEST, MOST = 32, 2_048


class Parts(NamedTuple):
    """Rows to train on (None: all) and to judge by (None: there are none)."""

    train: np.ndarray | None
    validation: np.ndarray | None


def hold_out(n: int, share: float | None, *, codes: np.ndarray | None = None, seed: int = 0) -> Parts:
    """Part ``n`` training cells within each class of ``codes``; two of each are always trained on.

    Parameters
    ----------
    share
        0: nothing is held out. None: a tenth, or nothing where that is fewer than 32 cells. However large
        the share, no more than 2,048 cells are held out, for every evaluation meets them all.

    Notes
    -----
    What is measured before training (genes, their scale, codes of conditions, library sizes) is measured on
    all training cells, those held out here among them: they choose the step to stop at, and are no test
    cells. Whoever compares generators holds test cells out beforehand.
    """
    if share is not None and not 0 <= share <= 0.5:
        raise InputError(f"validation={share}; it is a share of the cells, from 0 (none) to 0.5")
    if share == 0 or (share is None and n * DEFAULT_SHARE < FEWEST):
        return Parts(None, None)
    rule = SplitRule(test=0.0, validation=min(share or DEFAULT_SHARE, MOST / n), seed=seed)
    parts = split_rows(n, rule, codes=codes)
    if len(parts.validation) == 0:
        if share is None:
            return Parts(None, None)
        raise InputError(
            f"validation={share} of {n} cells holds out none, for classes are too small; raise it, or pass 0"
        )
    return Parts(parts.train, parts.validation)


class HeldOutCells:
    """Prepared batches of the held-out cells with their sizes, as often as they are asked for."""

    def __init__(self, loader: CellLoader, rows: np.ndarray, prepare: Callable[[CellBatch], Any]):
        self._loader, self._rows, self._prepare = loader, rows, prepare

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for batch in self._loader:
            # the loader is over these cells alone; labels and codes are those of the whole atlas
            yield self._prepare(batch._replace(row_ids=self._rows[batch.row_ids])), len(batch.row_ids)
