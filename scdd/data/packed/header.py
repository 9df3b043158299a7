"""The header of a packed folder: what it holds, where it came from and the checksums of its files."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scdd.errors import DataFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = "scdd-packed"
VERSION = 1
SUFFIX = ".packed"
HEADER, ROWS, OFFSETS, TABLES = "header.json", "rows.bin", "offsets.npy", "tables.h5"
BLOCK = 1 << 24  # bytes under one checksum: small enough to say where a file is damaged
REMEDY = "write it again with `scdd pack --force`"


class Checksums(NamedTuple):
    """Size of a file in bytes and the CRC-32 of each of its blocks of 16 MiB."""

    size: int
    crc32: list[int]


@dataclass(frozen=True)
class Header:
    """What a packed folder says of itself."""

    n_obs: int
    n_vars: int
    nnz: int
    layer: str
    expression: str
    genes: str  # hash of the gene names, in order
    source: dict[str, Any]  # fingerprint of what was packed
    files: dict[str, Checksums] = field(default_factory=dict)
    scdd: str = ""

    def to_bytes(self) -> bytes:
        """JSON that ends in a checksum of itself."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        content["files"] = {name: sums._asdict() for name, sums in self.files.items()}
        return _seal(json.dumps({**content, "crc32": "00000000"}, indent=1).encode())

    @classmethod
    def from_bytes(cls, raw: bytes, path: Path) -> Header:
        """The header again.

        Raises
        ------
        DataFileError
            It is damaged, or of another version of the format.
        """
        try:
            content = json.loads(raw)
            if content.pop("format") != FORMAT:
                raise ValueError("it is of another format")
            version = content.pop("version")
            if version != VERSION:
                raise ValueError(f"it has version {version} of the format, and this scdd reads {VERSION}")
            if _seal(raw) != raw or "crc32" not in content:
                raise ValueError("its checksum does not fit")
            del content["crc32"]
            content["files"] = {name: Checksums(**sums) for name, sums in content["files"].items()}
            header = cls(**content)
            header._check()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataFileError(f"{path / HEADER} cannot be used ({error}); {REMEDY}") from error
        return header

    def _check(self) -> None:
        sizes = (self.n_obs, self.n_vars, self.nnz)
        if not all(type(size) is int and size >= 0 for size in sizes) or self.n_vars >= 1 << 31:
            raise ValueError(f"its shape {self.n_obs} x {self.n_vars} with {self.nnz} values is impossible")
        if set(self.files) != {ROWS, OFFSETS, TABLES}:
            raise ValueError("it does not list the files of the folder")
        for name, sums in self.files.items():
            if type(sums.size) is not int or not isinstance(sums.crc32, list):
                raise ValueError(f"it holds no checksums of {name}")
        if not all(isinstance(text, str) for text in (self.layer, self.expression, self.genes)):
            raise ValueError("layer, expression and genes must be text")
        if not isinstance(self.source, dict):
            raise ValueError("it does not say what was packed")


def _seal(text: bytes) -> bytes:
    """JSON whose last value is the CRC-32 of the whole, counted with zeros in its place."""
    crc = zlib.crc32(text[:-11] + b"00000000" + text[-3:])
    return text[:-11] + f"{crc:08x}".encode() + text[-3:]


def is_packed(path: str | Path) -> bool:
    """Whether a path is a packed folder and nothing else: no file in it that scdd did not write."""
    path = Path(path)
    if path.is_symlink() or not path.is_dir() or not (path / HEADER).is_file():
        return False
    return {file.name for file in path.iterdir()} <= {HEADER, ROWS, OFFSETS, TABLES}


def read_header(path: Path) -> Header:
    """The header of a packed folder; DataFileError if there is none that can be used."""
    try:
        raw = (path / HEADER).read_bytes()
    except OSError as error:
        fault = "does not exist" if not path.exists() else f"is not a packed folder ({error.strerror})"
        raise DataFileError(f"{path} {fault}; make one with `scdd pack`") from error
    return Header.from_bytes(raw, path)


def hash_names(names: Any) -> str:
    """A hash of names in their order; no list of names can be mistaken for another."""
    return hashlib.sha256("\0".join(map(str, names)).encode()).hexdigest()


def crc_blocks(path: Path) -> Iterator[int]:
    """The CRC-32 of each block of a file."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield zlib.crc32(block)


def check_size(path: Path, size: int) -> None:
    """Refuse a file that is missing or of another size."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataFileError(f"{path} is missing ({error.strerror}); {REMEDY}") from error
    if found != size:
        raise DataFileError(
            f"{path} has {found} bytes and must have {size}: it is truncated or not of this folder; {REMEDY}"
        )


def verify_file(path: Path, sums: Checksums) -> None:
    """Refuse a file whose blocks do not all have their checksum."""
    try:
        found = list(crc_blocks(path))
    except OSError as error:
        raise DataFileError(f"{path} cannot be read ({error.strerror}); {REMEDY}") from error
    if found == sums.crc32:
        return
    wrong = next((i for i, pair in enumerate(zip(found, sums.crc32, strict=False)) if pair[0] != pair[1]), 0)
    raise DataFileError(
        f"{path} is corrupt in bytes {wrong * BLOCK}..{(wrong + 1) * BLOCK}: its checksum "
        f"does not fit; {REMEDY}"
    )
