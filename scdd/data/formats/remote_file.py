"""A remote file as h5py wants one: read by blocks, ahead where it goes on in order, a chunk index at once."""

from __future__ import annotations

import atexit
import io
import struct
import weakref
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from scdd.data.formats.ranges import coalesced
from scdd.data.formats.remote import Range, RemoteFiles
from scdd.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Sequence

_BLOCK = 1 << 18
_KEPT_BLOCKS = 64
_MOST_AHEAD = 16
# More is fetched past the blocks, by so many bytes at a time.
_LARGE, _AT_ONCE = 1 << 22, 1 << 26
_MOST_NODES = 1 << 16
# The head of a node of HDF5's version 1 B-tree, the key of a child in that of the chunks of a one-dimensional
# dataset, and key and address together.
_NODE_HEAD, _NODE_KEY, _NODE_CHILD = 24, 24, 32


class RemoteFile(io.RawIOBase):
    """The metadata of a remote HDF5 file pass through here; chunks are read past it.

    Attributes
    ----------
    files : where it lies
    identity : of the object whose size, and whose bytes, h5py is given
    """

    def __init__(self, files: RemoteFiles):
        self.files, self.identity = files, files.identity(files.url)
        files.refuse_without_ranges(files.url, self.identity.size)
        self._at, self._next, self._ahead = 0, -1, 1
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._nodes: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return self.files.url  # which h5py takes as the name of the file

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.identity.size}[whence]
        self._at = max(origin + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the present position, as far as the file goes."""
        view = memoryview(buffer).cast("B")
        start = self._at
        stop = min(start + len(view), self.identity.size)
        size = max(stop - start, 0)
        if size >= _LARGE:
            self._read_large(view, start, stop)
        elif size:
            view[:size] = self._read(start, stop)
            if view[:5] == b"TREE\x01" and view[5] and size >= _NODE_HEAD:
                self._fetch_tree([bytes(view[:size])])
        self._at = start + size
        return size

    def _read_large(self, view: memoryview, start: int, stop: int) -> None:
        for first in range(start, stop, _AT_ONCE):
            last = min(first + _AT_ONCE, stop)
            parts = coalesced([(0, first, last)])
            contents = self.files.fetch([Range(self.files.url, a, b) for _, a, b in parts])
            for (_, a, b), content in zip(parts, contents, strict=True):
                view[a - start : b - start] = content

    def _read(self, start: int, stop: int) -> bytes:
        node = self._nodes.pop(start, b"")
        if len(node) == stop - start:
            return node
        first, last = start // _BLOCK, (stop - 1) // _BLOCK
        if any(number not in self._blocks for number in range(first, last + 1)):
            # What is read in order is read ahead, twice as far each time.
            self._ahead = min(2 * self._ahead, _MOST_AHEAD) if first <= self._next <= last else 1
            self._next = last + self._ahead
            self._fetch_blocks(range(first, min(self._next, self._n_blocks)))
        whole = b"".join(self._block(number) for number in range(first, last + 1))
        return whole[start - first * _BLOCK : stop - first * _BLOCK]

    @property
    def _n_blocks(self) -> int:
        return -(-self.identity.size // _BLOCK)

    def _block(self, number: int) -> bytes:
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _fetch_blocks(self, numbers: Sequence[int]) -> None:
        missing = [number for number in numbers if number not in self._blocks]
        spans = [(0, n * _BLOCK, min((n + 1) * _BLOCK, self.identity.size)) for n in missing]
        for (_, start, _), content in zip(spans, self._fetch(spans), strict=True):
            self._blocks[start // _BLOCK] = content
        for number in numbers:
            self._blocks.move_to_end(number)
        while len(self._blocks) > _KEPT_BLOCKS:
            self._blocks.popitem(last=False)

    def _fetch_tree(self, nodes: list[bytes]) -> None:
        """Have all nodes below these ready: HDF5 asks for them one by one, and there are thousands.

        Nothing relies on it: HDF5 still reads the tree itself, from here, and finds out about damage.
        """
        while nodes and nodes[0][5] and len(self._nodes) < _MOST_NODES:
            size = len(nodes[0])
            places = [place for node in nodes for place in _children(node)]
            places = sorted({place for place in places if 0 < place <= self.identity.size - size})
            spans = [(0, place, place + size) for place in places if place not in self._nodes]
            nodes = self._fetch(spans[:_MOST_NODES])
            self._nodes |= {span[1]: node for span, node in zip(spans, nodes, strict=False)}
            nodes = [node for node in nodes if node[:5] == b"TREE\x01"]

    def _fetch(self, spans: list[tuple[int, int, int]]) -> list[bytes]:
        """The bytes of some spans, neighbours by one request."""
        parts = coalesced(spans)
        contents = self.files.fetch([Range(self.files.url, start, stop) for _, start, stop in parts])
        found, at = [], 0
        for _, start, stop in spans:
            while parts[at][2] <= start:
                at += 1
            piece, part = b"", at
            while start + len(piece) < stop:
                begin = start + len(piece) - parts[part][1]
                piece += contents[part][begin : begin + stop - start - len(piece)]
                part += 1
            found.append(piece)
        return found


def _children(node: bytes) -> list[int]:
    used = struct.unpack_from("<H", node, 6)[0]
    room = (len(node) - _NODE_HEAD) // _NODE_CHILD
    first = _NODE_HEAD + _NODE_KEY
    return [struct.unpack_from("<Q", node, first + k * _NODE_CHILD)[0] for k in range(min(used, room))]


# By the number that HDF5 gives each file that it opens: what an h5py object does not tell of its file.
_open_files: weakref.WeakValueDictionary[int, RemoteFile] = weakref.WeakValueDictionary()


def open_remote_h5(files: RemoteFiles) -> Any:
    """The `h5py.File` of a remote HDF5 file.

    Raises
    ------
    DataFileError
        It cannot be reached, or is no HDF5 file.
    """
    import h5py

    remote, file = RemoteFile(files), None
    try:
        file = _open_h5(remote)
        _open_files[h5py.h5o.get_info(file.id).fileno] = remote
    except BaseException as error:
        if file is not None:
            file.close()  # it would not be closed in time: see below
        if isinstance(error, DataFileError) or not isinstance(error, (OSError, RuntimeError)):
            raise
        raise DataFileError(
            f"{files.url} is not a readable h5ad file ({str(error).split('(')[-1].rstrip(')')}); "
            "copy or write it again"
        ) from error
    return file


def _open_h5(remote: RemoteFile) -> Any:
    """What `h5py.File(remote)` does; but the access list, which holds the file, goes here and now.

    An error of the network that is kept, as the interpreter keeps its last one, keeps all that was in use:
    a list that HDF5 frees after Python has gone takes the process with it.
    """
    import h5py

    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    try:
        access.set_fileobj_driver(h5py.h5fd.fileobj_driver, remote)
        return h5py.File(h5py.h5f.open(repr(remote).encode(), h5py.h5f.ACC_RDONLY, fapl=access))
    finally:
        access.close()


def remote_file_of(dataset: Any) -> RemoteFile | None:
    """What an `h5py.Dataset` is read from, if it was opened by `open_remote_h5`."""
    import h5py

    return _open_files.get(h5py.h5o.get_info(dataset.id).fileno)


@atexit.register
def _close_all() -> None:
    """HDF5 would ask for bytes when Python has gone already, and take the process with it."""
    if not len(_open_files):
        return
    import h5py

    names = {file.files.url for file in list(_open_files.values())}
    for opened in h5py.h5f.get_obj_ids(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE):
        file = h5py.File(opened)
        # Nothing here may need the network, which may be what has ended the program.
        if file.driver == "fileobj" and file.filename in names:
            with suppress(Exception):
                file.close()
