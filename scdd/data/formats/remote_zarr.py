"""A remote zarr store: metadata through zarr and fsspec; and which chunk objects there are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import FsspecStore

from scdd.data.formats.layout import NotDirect
from scdd.data.formats.layout_zarr import chunk_number
from scdd.data.formats.remote import ATTEMPTS, FIRST_WAIT, RemoteFiles, is_final, said
from scdd.errors import DataFileError, InputError

if TYPE_CHECKING:
    from scdd.data.formats.layout import FileIdentity

# What is not listed has to be asked for one by one.
_MOST_ASKED = 20_000


class RemoteStore(FsspecStore):
    """zarr's own store over fsspec; requests that fail are made again.

    Attributes
    ----------
    remote_files : where it lies
    """

    remote_files: RemoteFiles

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """The content of an object, or a part of it; None where there is none."""
        for attempt in range(ATTEMPTS):
            try:
                return await super().get(key, prototype, byte_range)
            except Exception as error:  # each file system has errors of its own
                if attempt == ATTEMPTS - 1 or is_final(error):
                    raise DataFileError(
                        f"{self.remote_files.url}/{key} cannot be read ({said(error)}); check the network "
                        "and your access to it"
                    ) from error
                await asyncio.sleep(FIRST_WAIT * 4**attempt)
        return None


def open_remote_zarr(files: RemoteFiles) -> Any:
    """The root group of a remote zarr store.

    Raises
    ------
    InputError
        The URL has a query, which would belong to each object.
    DataFileError
        It cannot be reached, or is no zarr store.
    """
    if "?" in files.address:
        raise InputError(
            f"{files.url} is a folder of objects, and its URL has a query, which can only sign one; give the "
            "credentials to fsspec, e.g. by the environment"
        )
    try:
        store: Any = RemoteStore.from_url(files.address, read_only=True)
        store.remote_files = files
        return zarr.open_group(store, mode="r")
    except DataFileError:
        raise
    except Exception as error:
        raise DataFileError(
            f"{files.url} does not exist or is no zarr store ({said(error)}); name an .h5ad or .zarr"
        ) from error


def stored_objects(
    remote: RemoteFiles, folder: str, prefix: str, count: int
) -> dict[int, tuple[str, FileIdentity]]:
    """URL and identity of those of ``count`` chunk objects that exist, by their number."""
    if remote.lists:
        listed = remote.listing(folder)
        numbers = {name: chunk_number(name, prefix) for name in listed}
        kept = {name: n for name, n in numbers.items() if n is not None and n < count}
        return {n: (f"{folder}/{name}", listed[name]) for name, n in kept.items()}
    if count > _MOST_ASKED:
        raise NotDirect(f"{folder} has {count:,} chunks, and a web server lists none of them")
    found = remote.identities([f"{folder}/{prefix}{number}" for number in range(count)])
    return {n: (path, known) for n, (path, known) in enumerate(found.items()) if known is not None}
