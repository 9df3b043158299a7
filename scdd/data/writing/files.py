"""AnnData files as they are opened and annotated before a matrix is streamed into them."""

from __future__ import annotations

import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def store_element(root: Any, name: str, value: Any, **layout: Any) -> None:
    """Write an element the way AnnData does; ``layout`` goes to the arrays in it."""
    from anndata.io import write_elem

    with warnings.catch_warnings():
        # A notice to AnnData's users of its own future default for shards; nothing here depends on it.
        warnings.filterwarnings("ignore", message=".*autosharding.*")
        write_elem(root, name, value, dataset_kwargs=layout)


def annotate(root: Any, elements: Mapping[str, Any]) -> None:
    """Write all of an AnnData file but ``X``, before the long part: what cannot be stored fails at once."""
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for name in ("layers", "obsm", "obsp", "varm", "varp"):
        store_element(root, name, {})
    for name, value in elements.items():
        try:
            store_element(root, name, value)
        except OSError:
            raise
        except Exception as error:  # AnnData's own class for this is private
            raise InputError(
                f"{name} holds what AnnData cannot store ({error}); drop or convert it"
            ) from error


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """Open an empty HDF5 file or zarr group; what HDF5 says of a full disk becomes an OSError."""
    if path.suffix == ".zarr":
        import zarr

        yield zarr.open_group(str(path), mode="w", zarr_format=3)
        return
    import h5py

    file = h5py.File(path, "w")
    try:
        yield file
        file.close()
    except RuntimeError as error:
        if not _from_hdf5(error):
            raise
        raise OSError(str(error)) from error
    finally:
        with suppress(Exception):
            file.close()


def _from_hdf5(error: BaseException) -> bool:
    """Whether HDF5, and not the maker of the blocks, raised this: its errors end in a frame of h5py."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "h5py" in trace.tb_frame.f_code.co_filename
