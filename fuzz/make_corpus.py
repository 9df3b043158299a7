"""Writes the seeds of the fuzz targets: valid chunks of every kind, and matrices, all of them small."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numcodecs
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

KINDS = (
    "deflate",
    "gzip",
    "zstd",
    "lz4_hdf5",
    "lz4_numcodecs",
    "lzf",
    "blosc",
    "shuffle",
    "fletcher32",
    "crc32c",
)
ELEMENTS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
Steps = list[tuple[str, int]]


def empty(name: str) -> Path:
    """Return the folder of a target's seeds, without those of last time; what fuzzing has found stays."""
    folder = Path(__file__).parent / "corpus" / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if not old.name.startswith("found-"):
            old.unlink()
    return folder


def chunk(name: str, folder: Path, encoded: bytes, steps: Steps, size: int, wanted: int) -> None:
    """Write one seed in the layout that fuzz_codec.cpp reads: steps, mask, sizes, encoded bytes."""
    head = bytes([len(steps)]) + b"".join(bytes([KINDS.index(kind), value, 0]) for kind, value in steps)
    sizes = size.to_bytes(3, "little") + wanted.to_bytes(3, "little")
    (folder / name).write_bytes(head + b"\0" + sizes + encoded)


def lz4_hdf5(raw: bytes, block: int) -> bytes:
    """Frame lz4 blocks as HDF5's filter 32004 does: big-endian sizes, incompressible blocks as they are."""
    framed = struct.pack(">QI", len(raw), block)
    for begin in range(0, len(raw), block):
        plain = raw[begin : begin + block]
        packed = bytes(numcodecs.LZ4().encode(plain))[4:]
        framed += struct.pack(">I", min(len(packed), len(plain))) + min(packed, plain, key=len)
    return framed


def lzf(raw: bytes) -> bytes:
    """Compress with the LZF that h5py carries."""
    with h5py.File(io.BytesIO(), "w") as file:
        dataset = file.create_dataset(
            "x", data=np.frombuffer(raw, "u1"), chunks=(len(raw),), compression="lzf"
        )
        return dataset.id.read_direct_chunk((0,))[1]


def encodings(array: np.ndarray) -> dict[str, tuple[bytes, Steps]]:
    """Return each encoding of one array by name: bytes, and the steps that undo them."""
    raw = array.tobytes()
    shuffled = bytes(numcodecs.Shuffle(array.itemsize).encode(raw))
    unshuffle = ("shuffle", array.itemsize)
    compressor = numcodecs.zstd.Zstd(3)
    found = {
        "deflate": (zlib.compress(raw, 4), [("deflate", 0)]),
        "gzip": (gzip.compress(raw, 4, mtime=0), [("gzip", 0)]),
        "zstd": (bytes(compressor.encode(raw)), [("zstd", 0)]),
        "lz4_hdf5": (lz4_hdf5(raw, 256), [("lz4_hdf5", 0)]),
        "lz4_numcodecs": (bytes(numcodecs.LZ4().encode(raw)), [("lz4_numcodecs", 0)]),
        "lzf": (lzf(raw), [("lzf", 0)]),
        "shuffle_deflate": (zlib.compress(shuffled), [("deflate", 0), unshuffle]),
        "shuffle_deflate_fletcher32": (
            bytes(numcodecs.Fletcher32().encode(zlib.compress(shuffled))),
            [("fletcher32", 0), ("deflate", 0), unshuffle],
        ),
        "zstd_crc32c": (
            bytes(numcodecs.CRC32C(location="end").encode(compressor.encode(raw))),
            [("crc32c", 0), ("zstd", 0)],
        ),
    }
    for inner in ("blosclz", "lz4", "zlib", "zstd"):
        for shuffle in (0, 1, 2):
            frame = bytes(numcodecs.Blosc(inner, 5, shuffle, blocksize=256).encode(array))
            found[f"blosc_{inner}_{shuffle}"] = (frame, [("blosc", 0)])
    return found


def number(value: int) -> bytes:
    """Write a number as the class Input of fuzz_gather.cpp reads it."""
    if 0 <= value < 0xE0:
        return bytes([value])
    if 0 <= value < 0x1000:
        return bytes([0xE0 + (value >> 8), value & 0xFF])
    return b"\xff" + value.to_bytes(8, "little", signed=True)


def numbers(values: Iterable[int]) -> bytes:
    """Write one after the other."""
    return b"".join(map(number, values))


def question(options: int, rows: list[int]) -> bytes:
    """Write what fuzz_gather.cpp asks of a matrix: options, columns, precision, sizes, rows."""
    return bytes([options, 3, 3, 13, 7, len(rows), 2]) + numbers(rows)


def arrays(way: int, options: int, lengths: list[int], genes: int) -> bytes:
    """Write CSR arrays with rows of these lengths; `way` is the pair of types."""
    rng = np.random.default_rng(way)
    nnz = sum(lengths)
    head = bytes([way]) + question(options, list(range(len(lengths))))
    head += bytes([genes, 1, len(lengths) + 1]) + numbers([0, *lengths])
    return head + numbers(rng.integers(0, 200, nnz)) + numbers(rng.integers(0, genes, nnz))


def table(form: int, kinds: Steps, chunk_length: int, chunks: list[tuple[int, int]]) -> bytes:
    """Write a chunk table: type and byte order, filters, then offset and size of each chunk."""
    steps = b"".join(bytes([KINDS.index(kind), value]) for kind, value in kinds)
    return bytes([form, 0]) + number(chunk_length) + bytes([len(kinds)]) + steps + numbers(sum(chunks, ()))


def stored(options: int, types: tuple[str, str], kinds: Steps, chunk_length: int) -> bytes:
    """Write a matrix in chunks: the question, indptr, two tables, and the file that they speak of."""
    rng = np.random.default_rng(options)
    lengths = [5, 0, 17, 40, 1, 9]
    nnz, genes = sum(lengths), 50
    file, tables = b"", b""
    for dtype, column in zip(types, (rng.integers(0, 9, nnz), rng.integers(0, genes, nnz)), strict=True):
        chunks = []
        for start in range(0, nnz, chunk_length):
            chunk = np.zeros(chunk_length, dtype)
            part = column[start : start + chunk_length]
            chunk[: len(part)] = part
            raw = chunk.tobytes()
            if ("shuffle", chunk.itemsize) in kinds:
                raw = bytes(numcodecs.Shuffle(chunk.itemsize).encode(raw))
            if ("deflate", 0) in kinds:
                raw = zlib.compress(raw)
            if ("zstd", 0) in kinds:
                raw = bytes(numcodecs.Zstd(1).encode(raw))
            chunks.append((len(file), len(raw)))
            file += raw
        form = ELEMENTS.index(dtype[1:]) + (132 if dtype[0] == ">" else 0)  # 132 = 12 * 11 > 127
        tables += table(form, kinds, chunk_length, chunks)
    head = bytes([4]) + question(options, [0, 2, 3]) + number(genes) + bytes([0, len(lengths) + 1])
    return head + numbers([0, *lengths]) + tables + file


def matrices() -> dict[str, bytes]:
    """Return the seeds of fuzz_gather.cpp by name."""
    found = {f"arrays_{way}": arrays(way, 3 + 4 * way, [3, 0, 12, 40, 1], 60) for way in range(4)}
    found["wide_genes"] = arrays(0, 31, [2, 5, 0, 7], 255)
    shapes = {
        "plain": (("<f4", "<i4"), [], 100),
        "swapped": ((">f8", ">u2"), [], 100),
        "deflate": (("<f4", "<i4"), [("deflate", 0)], 16),
        "shuffled": (("<u4", "<i4"), [("deflate", 0), ("shuffle", 4)], 11),
        "zstd": (("<u1", "<i8"), [("zstd", 0)], 30),
    }
    for k, (name, shape) in enumerate(shapes.items()):
        found[name] = stored(37 + 8 * k, *shape)
    return found


def main() -> None:
    """Write fuzz/corpus/codec and fuzz/corpus/gather anew."""
    folder = empty("codec")
    rng = np.random.default_rng(0)
    array = np.sort(rng.integers(0, 20_000, 120)).astype("<i4")
    for name, (encoded, steps) in encodings(array).items():
        chunk(name, folder, encoded, steps, array.nbytes, 101)  # the target decodes the whole as well
    noise = rng.bytes(100)
    chunk("noise", folder, noise, [], 100, 50)
    zeros = np.zeros(400_000, np.uint8)
    chunk("zstd_blocks", folder, bytes(numcodecs.Zstd(1).encode(zeros)), [("zstd", 0)], len(zeros), 1000)
    folder = empty("gather")
    for name, seed in matrices().items():
        (folder / name).write_bytes(seed)


if __name__ == "__main__":
    main()
