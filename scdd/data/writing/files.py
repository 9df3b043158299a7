"""AnnData files as they are opened and annotated before a matrix is streamed into them."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scdd.errors import InputError
from scdd.hdf5_writing import NewFile, new_hdf5

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
def open_file(path: Path) -> Iterator[NewFile]:
    """Open an empty HDF5 file or zarr group; a full disk is an OSError."""
    if path.suffix == ".zarr":
        import zarr

        yield NewFile(zarr.open_group(str(path), mode="w", zarr_format=3), lambda: None)
        return
    with new_hdf5(path) as file:
        yield file
