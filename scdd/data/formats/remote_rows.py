"""A CSR matrix in remote files: what rows need is fetched into sparse local files, and decoded from there."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

from scdd import _csr
from scdd.data.expression import Faults
from scdd.data.formats.mirror import Mirror
from scdd.data.formats.ranges import RowBytes, Span, coalesced
from scdd.data.formats.readers import ChunkReader, StoreErrors, array_of
from scdd.data.formats.remote import Range, never
from scdd.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    import numpy as np

    from scdd.data.formats.layout import ArrayLayout, FileIdentity

# Encoded bytes that are fetched at once, and lie in memory until they are in the mirror.
PART = 1 << 26


class _Mirrored(NamedTuple):
    """Sparse files, and the matrix as it would be read from them if they were whole."""

    owner: int
    mirror: Mirror
    rows: _csr.StoredCsr


class RemoteChunkReader(ChunkReader):
    """Reads remote files past HDF5 and zarr; each process and each concurrent call has a mirror of its own.

    Rows are read in parts of some 64 MiB, the next one fetched while one is decoded. After each fetch the
    file system is asked whether the objects are still those that were opened, so that no part can be a
    mixture. Disk space is that of two parts (of all rows asked for where no holes can be punched).
    """

    def __init__(self, data: ArrayLayout, indices: ArrayLayout, indptr: np.ndarray, n_vars: int, place: str):
        assert data.remote is not None
        self._remote = data.remote
        self._identities: dict[str, FileIdentity] = {}
        for each in (data, indices):
            self._identities |= zip(each.paths, each.identities, strict=True)
        self._paths = list(self._identities)
        self._bytes = RowBytes(data, indices, indptr, {path: n for n, path in enumerate(self._paths)})
        self._idle: list[_Mirrored] = []
        super().__init__(data, indices, indptr, n_vars, place)

    @property
    def in_flight(self) -> int:
        """Bytes that lie in memory on their way into the mirror, at most."""
        return min(PART + self._bytes.largest, self._bytes.total)

    def read(self, rows: np.ndarray, threads: int) -> tuple:
        """data, indices, indptr and faults of rows (ascending, each once)."""
        with self._borrowed() as own:
            for part in self._bytes.parts(rows, PART):
                self._bring(own.mirror, self._pieces(rows[part]), never)
            return own.rows.read(rows, threads)

    def fill(
        self,
        window: _csr.Window,
        rows: np.ndarray,
        slots: np.ndarray,
        column_of_gene: np.ndarray | None,
        threads: int,
        cancel: _csr.Cancel | None,
    ) -> tuple:
        """Put rows into slots of a window; the faults of its values."""
        found = Faults()
        with self._borrowed() as own, closing(self._fetched(own.mirror, rows, cancel)) as parts:
            for part in parts:
                faults = own.rows.read_into(window, rows[part], slots[part], column_of_gene, threads, cancel)
                found = found.merge(Faults(*faults))
        return found

    def _fetched(self, mirror: Mirror, rows: np.ndarray, cancel: _csr.Cancel | None) -> Generator[slice]:
        """Parts of the rows, each of them in the mirror; the next one is being fetched meanwhile."""
        parts = self._bytes.parts(rows, PART)
        if len(parts) == 1:
            self._bring(mirror, self._pieces(rows[parts[0]]), _said_by(cancel))
            yield parts[0]
            return
        left = Event()
        stopped = _said_by(cancel, left)
        with ThreadPoolExecutor(1, "scdd-fetch") as fetcher:
            try:
                pieces = self._pieces(rows[parts[0]])
                coming = fetcher.submit(self._bring, mirror, pieces, stopped)
                for number, part in enumerate(parts, 1):
                    coming.result()
                    mirror.keep(pieces)
                    if number < len(parts):
                        pieces = self._pieces(rows[parts[number]])
                        coming = fetcher.submit(self._bring, mirror, pieces, stopped)
                    yield part
            finally:
                left.set()

    def _pieces(self, rows: np.ndarray) -> list[Span]:
        return coalesced(self._bytes.spans(rows))

    def _bring(self, mirror: Mirror, pieces: list[Span], stopped: Callable[[], bool]) -> None:
        """Fetch bytes into the mirror, and see that they are of the objects that were opened."""
        ranges = [Range(self._paths[number], start, stop) for number, start, stop in pieces]
        try:
            contents = self._remote.fetch(ranges, stopped=stopped)
        except DataFileError:
            self._refuse_changed(pieces)
            raise
        for (number, start, _), content in zip(pieces, contents, strict=True):
            mirror.write(number, start, content)
        self._refuse_changed(pieces)

    def _refuse_changed(self, pieces: list[Span]) -> None:
        """After the bytes have come, not before: then none of them can be of a later object."""
        paths = [self._paths[number] for number in dict.fromkeys(number for number, _, _ in pieces)]
        known = [self._identities[path] for path in paths]
        if changed := self._remote.changed(paths, known, among=len(self._paths)):
            raise DataFileError(
                f"{changed} was changed, replaced or removed while in use; open the atlas again"
            )

    @contextmanager
    def _borrowed(self) -> Iterator[_Mirrored]:
        """A mirror that nobody else is using."""
        own = self._taken()
        try:
            yield own
        except _csr.StoreError as error:
            raise DataFileError(
                f"{self._by_url(str(error), own.mirror)}; copy or write the file again"
            ) from error
        finally:
            own.mirror.clear()
            self._idle.append(own)

    def _taken(self) -> _Mirrored:
        while self._idle:
            own = self._idle.pop()
            if own.owner == os.getpid():  # else this is a fork, and the files are its parent's
                return own
        mirror = Mirror([self._identities[path].size for path in self._paths])
        local = dict(zip(self._paths, mirror.paths, strict=True))
        with StoreErrors(self._place, opening=True):
            data, indices = (array_of(each, [local[path] for path in each.paths]) for each in self.layouts)
            rows = _csr.StoredCsr(self._place, data, indices, self._indptr, self._n_vars)
        return _Mirrored(os.getpid(), mirror, rows)

    def _by_url(self, said: str, mirror: Mirror) -> str:
        """A message about a file of the mirror as one about the object that it stands for."""
        folder = re.escape(os.path.dirname(mirror.paths[0]))  # noqa: PTH120
        said = re.sub(rf"{folder}/(\d+)", lambda found: self._paths[int(found[1])], said)
        return said if said.startswith(self._place) else f"{self._place}: {said}"

    def _open(self) -> _csr.StoredCsr:
        with self._borrowed() as own:
            return own.rows

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None, "_idle": []}


def _said_by(cancel: _csr.Cancel | None, left: Event | None = None) -> Callable[[], bool]:
    """Whether the caller has lost interest."""
    return lambda: bool((left is not None and left.is_set()) or (cancel is not None and cancel.requested))
