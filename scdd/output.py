"""Writing results so that nothing half-written is ever found: a temporary name, then a rename."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scdd.errors import DataFileError, InputError
from scdd.hdf5_writing import new_hdf5

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    import anndata

# zarr's threads go on for a moment when one of them has met a full disk, and make their folders anew.
_TRIES, _PAUSE = 50, 0.02


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to ``path`` on success and removed on any failure.

    A file is written there, or a folder made. What lay at ``path`` before stays until the new one is whole.

    Raises
    ------
    DataFileError
        The folder is missing or read-only, or the disk is full.
    """
    path = Path(path)
    check_writable(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        _remove(temporary)
        yield temporary
        _put(temporary, path)
    except OSError as error:
        if isinstance(error, DataFileError):
            raise
        raise DataFileError(
            f"{path} cannot be written ({error.strerror or error}); "
            "free space or choose another place (--out, cache=)"
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
            with warnings.catch_warnings():
                # A notice of anndata's own future default; what is written now is read by every version.
                warnings.filterwarnings("ignore", message="Writing zarr v2")
                adata.write_zarr(temporary)
            return
        from anndata.io import write_elem

        # level 1: a third less time than gzip's own level 4, for 8 % more bytes of generated counts
        packing = {"compression": "gzip", "compression_opts": 1}
        with new_hdf5(temporary) as file:
            write_elem(file.root, "/", adata, dataset_kwargs=packing)
            if adata.raw is None:
                file.root.pop("raw", None)  # an empty one, which write_h5ad leaves out and old readers refuse


def _put(new: Path, path: Path) -> None:
    """Rename; a folder that lay there is set aside first, and brought back should the rename fail."""
    if not (new.is_dir() and path.exists()):
        new.replace(path)
        return
    before = path.with_name(f".{path.stem}.{os.getpid()}.old{path.suffix}")
    path.rename(before)
    try:
        new.rename(path)
    except BaseException:
        before.rename(path)
        raise
    _remove(before)


def _remove(path: Path) -> None:
    for _ in range(_TRIES):
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(_PAUSE)
