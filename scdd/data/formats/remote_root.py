"""What lies at a URL: an HDF5 file or a zarr store, opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.data.formats.remote import RemoteFiles

_HDF5 = (".h5ad", ".h5", ".hdf5")
_LOCAL_ONLY = (".packed", ".mtx", ".mtx.gz")


def open_root(files: RemoteFiles) -> Any:
    """The `h5py.File` or `zarr.Group` at a URL, by its suffix or, where that tells nothing, by what is there.

    Raises
    ------
    InputError
        A packed folder or a text matrix, which are read from local disks only.
    DataFileError
        There is nothing, or something else.
    """
    if files.url.endswith(_LOCAL_ONLY):
        raise InputError(f"{files.url} is of a kind that is read from local disks only; copy it to one")
    if files.url.endswith(_HDF5) or not (files.url.endswith(".zarr") or _is_store(files)):
        from scdd.data.formats.remote_file import open_remote_h5

        return open_remote_h5(files)
    from scdd.data.formats.remote_zarr import open_remote_zarr

    return open_remote_zarr(files)


def _is_store(files: RemoteFiles) -> bool:
    return any(files.identity_or_none(f"{files.url}/{name}") for name in ("zarr.json", ".zgroup"))
