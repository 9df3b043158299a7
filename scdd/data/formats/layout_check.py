"""A chunk table is compared with what h5py or zarr reads before it is relied upon."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from scdd.data.formats.layout import NotDirect
from scdd.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scdd.data.formats.layout import ArrayLayout

_CHECKED_ELEMENTS = 512


def self_check(layout: ArrayLayout, array: Any, decode: Callable[..., np.ndarray]) -> None:
    """Compare the first and the last stored chunk with what h5py or zarr returns for them.

    Parameters
    ----------
    decode
        ``decode(encoded, steps, filter_mask, chunk_bytes, wanted)`` gives the first ``wanted`` decoded
        bytes or more, uint8; called for chunks with steps to undo.

    Raises
    ------
    NotDirect
        The two differ; the array must be read by its own library.
    """
    stored = np.flatnonzero(layout.offsets >= 0)
    for chunk in {int(stored[0]), int(stored[-1])} if len(stored) else ():
        start = chunk * layout.chunk_length
        count = min(layout.chunk_length, layout.length - start)
        ends = {(start, start + min(count, _CHECKED_ELEMENTS))}
        ends.add((start + count - min(count, _CHECKED_ELEMENTS), start + count))
        for first, last in ends:
            expected = _library_reads(array, first, last, layout.name)
            if expected is None:
                return
            found = _direct_read(layout, chunk, first - start, last - start, decode)
            if found != expected.astype(layout.dtype).tobytes():
                library = type(array).__module__.partition(".")[0]
                raise NotDirect(f"{layout.name}: {library} and the chunk table disagree at chunk {chunk}")


def _library_reads(array: Any, first: int, last: int, name: str) -> np.ndarray | None:
    """Elements as h5py or zarr returns them; None where h5py lacks the filter and nothing can be compared."""
    try:
        return np.asarray(array[first:last])
    except DataFileError:
        raise
    except Exception as error:  # zarr lets the errors of its codecs through as they are
        if isinstance(error, OSError) and re.search("filter|plugin|can't open directory", str(error)):
            return None
        raise DataFileError(f"{name} cannot be read ({error}); copy or write the file again") from error


def _direct_read(layout: ArrayLayout, chunk: int, first: int, last: int, decode: Callable) -> bytes:
    """Stored bytes of elements ``first:last`` of a chunk."""
    item, mask = layout.dtype.itemsize, int(layout.masks[chunk])
    if layout.skips_all(chunk):
        return layout.stored_bytes(chunk, first * item, (last - first) * item)
    encoded = layout.stored_bytes(chunk)
    try:
        decoded = decode(encoded, list(layout.steps), mask, layout.chunk_bytes, layout.chunk_bytes)
    except Exception as error:
        # HDF5 can be told to leave the last, partial chunk unfiltered, and no mask says so.
        raise NotDirect(f"{layout.name}: chunk {chunk} cannot be decoded ({error})") from error
    return bytes(memoryview(decoded)[first * item : last * item])
