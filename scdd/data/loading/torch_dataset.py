"""A loader with the face of a PyTorch dataset."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from scdd.data.loader import CellLoader
from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scdd.data.atlas import Atlas


class CellDataset(IterableDataset):
    """Batches of a `CellLoader`, for ``DataLoader(CellDataset(atlas, ...), batch_size=None)``.

    The loader reads ahead on threads of its own, so that ``num_workers=0`` is the fast choice. With worker
    processes each delivers its own share of every epoch, as a rank does; together they meet every cell, in
    up to one more batch a worker than ``len`` says. As with any sampler, ``set_epoch`` changes the order.

    Parameters
    ----------
    atlas : what to read
    options : as of `CellLoader`; ``rank`` and ``world_size`` are those of the training process

    Raises
    ------
    InputError
        As of `CellLoader`; on iteration, if the DataLoader lacks ``batch_size=None``.
    """

    def __init__(self, atlas: Atlas, **options: Any) -> None:
        super().__init__()
        self.loader = CellLoader(atlas, **options)
        self._atlas, self._options = atlas, options
        # In memory that worker processes share, as they may outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __iter__(self) -> Iterator[Any]:
        _refuse_collation(sys._getframe(1).f_locals.get("self"))
        worker = get_worker_info()
        if worker is None or worker.num_workers == 1:
            return iter(self.loader)
        return iter(self._share(worker.id, worker.num_workers))

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``; with workers, before each one of the DataLoader."""
        self.loader.set_epoch(epoch)
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """As of the loader; for use without worker processes, which keep their own place."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As of the loader."""
        self.loader.load_state_dict(state)
        self._epoch.fill_(self.loader.epoch)

    def _share(self, number: int, workers: int) -> CellLoader:
        rank, world_size = self.loader.share
        options = copy.copy(self._options)
        options |= {"rank": rank * workers + number, "world_size": world_size * workers}
        own = CellLoader(self._atlas, **options)
        own.set_epoch(int(self._epoch))
        return own


def _refuse_collation(fetcher: Any) -> None:
    """A DataLoader asks nothing of a dataset before it iterates; what iterates then knows if it collates.

    Torch would say that it cannot collate our batches, or stack what a ``transform`` made of them.
    """
    if getattr(fetcher, "auto_collation", False) and fetcher.collate_fn is default_collate:
        raise InputError(
            "a CellDataset yields whole batches, and this DataLoader would make batches of them: pass "
            "DataLoader(dataset, batch_size=None), and the number of cells as CellDataset(..., batch_size=)"
        )
