"""What is measured: a contender, the file it reads, what it delivers. Imports nothing, so that any peer's Python can."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

N_CHOSEN, TARGET_SUM, N_TOKENS = 2_000, 1e4, 1_024

# What each source is called, and the file in the atlas's folder. The packed cache is built from gzip.h5ad, and those
# who hold the atlas in memory load it from raw.h5ad.
FILES = {
    "gzip": "gzip.h5ad",
    "shuffle_gzip": "shuffle_gzip.h5ad",
    "zstd": "zstd.h5ad",
    "raw": "raw.h5ad",
    "annbatch": "annbatch.zarr",
    "packed": "gzip.h5ad",
    "memory": "raw.h5ad",
}


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes
    ----------
    contender : a name in `peers.PEERS`, `ours.OURS` or `limits.LIMITS`
    source : a key of `FILES`
    output : ``"csr"`` (all genes), ``"dense"`` (2,000 genes, log-normalised) or ``"tokens"``
    batch : cells a batch
    cache : ``"warm"`` (the files are read once before) or ``"cold"`` (their pages are dropped)
    """

    contender: str
    source: str
    output: str
    batch: int
    cache: str

    def path(self, folder: Path) -> Path:
        """The file or folder that is read."""
        return folder / FILES[self.source]

    def as_dict(self) -> dict[str, Any]:
        """For JSON and CSV."""
        return asdict(self)


class Stream(NamedTuple):
    """A contender that has opened its file.

    Attributes
    ----------
    epoch : one pass over the atlas: batches (anything whose ``shape[0]`` is cells), or numbers of cells
    window : cells that are read at a time; a measurement ends at the end of a window
    block : consecutive cells that are read together
    files : what it reads, if not the case's own file
    note : anything that the table should say, as ``"variance 1.2"``
    """

    epoch: Callable[[], Iterable[Any]]
    window: int
    block: int
    files: tuple[Path, ...] = ()
    note: str = ""


def files_of(path: Path) -> list[Path]:
    """The files under a path that is a file or a folder."""
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
