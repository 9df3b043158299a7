"""Writes the seeds of the fuzz targets: small valid chunks of every kind, from the encoders of Python."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path

import h5py
import numcodecs
import numpy as np

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
Steps = list[tuple[str, int]]


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


def main() -> None:
    """Write fuzz/corpus/codec anew."""
    folder = Path(__file__).parent / "corpus" / "codec"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    rng = np.random.default_rng(0)
    array = np.sort(rng.integers(0, 20_000, 120)).astype("<i4")
    for name, (encoded, steps) in encodings(array).items():
        chunk(name, folder, encoded, steps, array.nbytes, 101)  # the target decodes the whole as well
    noise = rng.bytes(100)
    chunk("noise", folder, noise, [], 100, 50)
    zeros = np.zeros(400_000, np.uint8)
    chunk("zstd_blocks", folder, bytes(numcodecs.Zstd(1).encode(zeros)), [("zstd", 0)], len(zeros), 1000)


if __name__ == "__main__":
    main()
