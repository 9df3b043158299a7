"""Writing results so that nothing half-written is ever found: a temporary name, then a rename."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from scdd.errors import DataFileError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    import anndata


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to ``path`` on success and removed on any failure.

    Raises
    ------
    DataFileError
        The folder is missing or read-only, or the disk is full.
    """
    path = Path(path)
    check_writable(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, DataFileError):
            raise
        raise DataFileError(
            f"{path} cannot be written ({error.strerror or error}); free space or choose another --out"
        ) from error
    finally:
        _remove(temporary)


def check_writable(path: str | Path, *, suffixes: tuple[str, ...] = (), inputs: Iterable[Any] = ()) -> None:
    """Refuse an output path before the work, not after: wrong suffix, read-only, one of the inputs."""
    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        raise InputError(f"{path}: give the output a name that ends in {' or '.join(suffixes)}")
    if suffixes and path.is_dir():
        raise DataFileError(f"{path} is a folder that exists; remove it or choose another output")
    for source in inputs:
        place, target = Path(source).resolve(), path.resolve()
        if target == place or (place in target.parents and place.suffix == ".zarr"):
            raise InputError(f"{path} is an input of this command; choose another output")
    if not path.parent.is_dir():
        raise DataFileError(f"the folder {path.parent} does not exist; make it or choose another output")
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    try:
        # Asking the file system is the only sure test: root passes os.access on a read-only mount.
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataFileError(
            f"the folder {path.parent} cannot be written ({error.strerror}); choose another output"
        ) from error


def write_anndata(adata: anndata.AnnData, path: str | Path) -> None:
    """Write ``.h5ad`` or ``.zarr`` atomically, by the suffix of ``path``."""
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".zarr":
            adata.write_zarr(temporary)
        else:
            adata.write_h5ad(temporary, compression="gzip")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
