"""Every decoder of scdd._csr against the encoders that Python has, and against damage."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from functools import cache

import h5py
import numcodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scdd import _csr

LIBRARIES = _csr.codecs()
RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(1.0, 6_000).astype("<f4")
GENES = np.sort(RNG.integers(0, 20_000, 6_000)).astype("<i4")
ARRAYS = {
    "counts": COUNTS,
    "genes": GENES,
    "noise": np.frombuffer(RNG.bytes(4_004), "<i4"),
    "zeros": np.zeros(3_000, "<i8"),
    "uint16": GENES[::2].astype("<u2"),
    "one": np.array([7], "<f8"),
    "repeated": np.tile(np.arange(5, dtype="u1"), 999),
}
HDF5_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}


def decode(encoded, steps, size, wanted=None, mask=0):
    wanted = size if wanted is None else wanted
    return _csr.decode_chunk(encoded, steps, mask, size, wanted).tobytes()


def lz4_hdf5(raw, block):
    """HDF5's filter 32004, by hand: no encoder of it is installed with h5py."""
    framed = struct.pack(">QI", len(raw), block)
    for begin in range(0, len(raw), block):
        plain = raw[begin : begin + block]
        packed = bytes(numcodecs.LZ4().encode(plain))[4:]
        framed += struct.pack(">I", min(len(packed), len(plain))) + min(packed, plain, key=len)
    return framed


def hdf5_chunk(array, **options):
    """One chunk as h5py writes it: bytes, filter mask, and the steps that undo it."""
    with h5py.File(io.BytesIO(), "w") as file:
        dataset = file.create_dataset("x", data=array, chunks=array.shape, **options)
        plist = dataset.id.get_create_plist()
        codes = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        mask, encoded = dataset.id.read_direct_chunk((0,))
    steps = [(HDF5_FILTERS[code], array.itemsize, bit) for bit, code in enumerate(codes)]
    return encoded, mask, steps[::-1]


def blosc(array, inner, shuffle, **options):
    return bytes(numcodecs.Blosc(inner, 5, shuffle, **options).encode(array))


ENCODERS = {
    "deflate": lambda a: (zlib.compress(a.tobytes(), 4), [("deflate", 0, -1)]),
    "deflate_stored": lambda a: (zlib.compress(a.tobytes(), 0), [("deflate", 0, -1)]),
    "numcodecs_zlib": lambda a: (numcodecs.Zlib(1).encode(a), [("deflate", 0, -1)]),
    "gzip": lambda a: (gzip.compress(a.tobytes()), [("gzip", 0, -1)]),
    "numcodecs_gzip": lambda a: (numcodecs.GZip(1).encode(a), [("gzip", 0, -1)]),
    "zstd": lambda a: (numcodecs.Zstd(3).encode(a), [("zstd", 0, -1)]),
    "zstd_checksum": lambda a: (numcodecs.Zstd(1, checksum=True).encode(a), [("zstd", 0, -1)]),
    "lz4_numcodecs": lambda a: (numcodecs.LZ4().encode(a), [("lz4_numcodecs", 0, -1)]),
    "lz4_hdf5": lambda a: (lz4_hdf5(a.tobytes(), 1_000), [("lz4_hdf5", 0, -1)]),
    "lzf": lambda a: (hdf5_chunk(np.r_[a, a], compression="lzf")[0], [("lzf", 0, -1)]),
    "shuffle": lambda a: (
        numcodecs.Shuffle(a.itemsize).encode(a.tobytes()),
        [("shuffle", a.itemsize, -1)],
    ),
    "shuffle_zstd": lambda a: (
        numcodecs.Zstd(3).encode(numcodecs.Shuffle(a.itemsize).encode(a.tobytes())),
        [("zstd", 0, -1), ("shuffle", a.itemsize, -1)],
    ),
    "fletcher32": lambda a: (numcodecs.Fletcher32().encode(a.tobytes()), [("fletcher32", 0, -1)]),
    "crc32c": lambda a: (numcodecs.CRC32C(location="end").encode(a.tobytes()), [("crc32c", 0, -1)]),
    "zlib_within_checksum": lambda a: (
        numcodecs.CRC32C(location="end").encode(zlib.compress(a.tobytes())),
        [("crc32c", 0, -1), ("deflate", 0, -1)],
    ),
    "checksum_within_zlib": lambda a: (
        zlib.compress(bytes(numcodecs.Fletcher32().encode(a.tobytes()))),
        [("deflate", 0, -1), ("fletcher32", 0, -1)],
    ),
    "zlib_within_zstd_shuffled": lambda a: (
        numcodecs.Zstd(1).encode(zlib.compress(bytes(numcodecs.Shuffle(a.itemsize).encode(a.tobytes())))),
        [("zstd", 0, -1), ("deflate", 0, -1), ("shuffle", a.itemsize, -1)],
    ),
} | {
    f"blosc_{inner}_{shuffle}": lambda a, inner=inner, shuffle=shuffle: (
        blosc(a, inner, shuffle, blocksize=2_048),
        [("blosc", 0, -1)],
    )
    for inner in ("blosclz", "lz4", "lz4hc", "zlib", "zstd")
    for shuffle in (0, 1, 2)
}


def plain(name, array):
    # h5py stores chunks that LZF cannot shrink; doubled, all but the noise shrink.
    return np.r_[array, array].tobytes() if name == "lzf" else array.tobytes()


@cache
def encode(name, array_name="counts"):
    encoded, steps = ENCODERS[name](ARRAYS[array_name])
    return bytes(encoded), steps


def built(name):
    return all(LIBRARIES[kind] is not None for kind, _, _ in encode(name)[1])


BUILT = sorted(filter(built, ENCODERS))
needs_deflate = pytest.mark.skipif(LIBRARIES["deflate"] is None, reason="built without libdeflate and zlib")
every_encoder = pytest.mark.parametrize("encoder", BUILT)


def test_codecs_name_library_and_version():
    compressions = {"deflate", "gzip", "zstd", "lz4_hdf5", "lz4_numcodecs", "lzf", "blosc"}
    assert set(LIBRARIES) == compressions | {"shuffle", "fletcher32", "crc32c"}
    assert LIBRARIES["lzf"] == LIBRARIES["shuffle"] == "built in"
    assert all(name is None or name == "built in" or name[-1].isdigit() for name in LIBRARIES.values())


@every_encoder
@pytest.mark.parametrize("array", ARRAYS)
def test_every_encoding_comes_back(encoder, array):
    encoded, steps = encode(encoder, array)
    raw = plain(encoder, ARRAYS[array])
    if encoder == "lzf" and len(encoded) == len(raw):
        pytest.skip("stored: LZF could not shrink it")
    assert decode(encoded, steps, len(raw)) == raw


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_every_prefix_comes_back(data):
    name = data.draw(st.sampled_from(BUILT))
    array = data.draw(st.sampled_from(["counts", "genes", "uint16"]))
    encoded, steps = encode(name, array)
    raw = plain(name, ARRAYS[array])
    wanted = data.draw(st.integers(0, len(raw)))
    assert decode(encoded, steps, len(raw), wanted) == raw[:wanted]


@pytest.mark.parametrize("inner", ["blosclz", "lz4", "zstd"])
@pytest.mark.parametrize("wanted", [1, 70_000, 131_072, 131_073, 399_999, 400_000])
def test_prefixes_of_large_chunks(inner, wanted):
    """Large enough that zstd and blosc spare whole blocks."""
    raw = RNG.poisson(0.5, 100_000).astype("<i4")
    if LIBRARIES["blosc"]:
        assert decode(blosc(raw, inner, 1), [("blosc", 0, -1)], 400_000, wanted) == raw.tobytes()[:wanted]
    if LIBRARIES["zstd"]:
        encoded = bytes(numcodecs.Zstd(3).encode(raw))
        assert decode(encoded, [("zstd", 0, -1)], 400_000, wanted) == raw.tobytes()[:wanted]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 100])
@pytest.mark.parametrize("left_over", [0, 1])
def test_unshuffle_any_width(width, n, left_over):
    """Like HDF5, bytes behind the last whole element stay where they are."""
    size = n * width + min(left_over, width - 1)
    raw = np.frombuffer(RNG.bytes(size), np.uint8)
    planes = raw[: n * width].reshape(n, width).T.tobytes() + raw[n * width :].tobytes()
    for wanted in range(0, size + 1):
        assert decode(planes, [("shuffle", width, -1)], size, wanted) == raw[:wanted].tobytes()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 719, 720, 721, 5_001])
def test_checksums_of_any_length(size):
    raw = b"\xff" * (size // 2) + RNG.bytes(size - size // 2)
    for codec, kind in ((numcodecs.Fletcher32(), "fletcher32"), (numcodecs.CRC32C(location="end"), "crc32c")):
        if size == 0 and kind == "fletcher32":
            continue  # numcodecs' own refuses to encode nothing
        assert decode(bytes(codec.encode(raw)), [(kind, 0, -1)], size) == raw


def test_fletcher32_of_old_hdf5_is_accepted():
    """HDF5 1.6.2 swapped the bytes of each half of the sum."""
    encoded = bytearray(numcodecs.Fletcher32().encode(COUNTS.tobytes()))
    encoded[-4:] = encoded[-3], encoded[-4], encoded[-1], encoded[-2]
    assert decode(bytes(encoded), [("fletcher32", 0, -1)], COUNTS.nbytes) == COUNTS.tobytes()


HDF5_OPTIONS = [
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True},
    {"compression": "gzip", "shuffle": True, "fletcher32": True},
    {"compression": "lzf"},
    {"compression": "lzf", "shuffle": True, "fletcher32": True},
    {"fletcher32": True},
    {"shuffle": True},
]


@pytest.mark.parametrize("options", HDF5_OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["counts", "genes", "noise", "zeros", "uint16"])
def test_chunks_written_by_hdf5(name, options):
    array = ARRAYS[name]
    encoded, mask, steps = hdf5_chunk(array, **options)
    if any(LIBRARIES[kind] is None for kind, _, _ in steps):
        pytest.skip("built without its library")
    for wanted in (1, 7, array.nbytes // 2, array.nbytes):
        assert decode(encoded, steps, array.nbytes, wanted, mask) == array.tobytes()[:wanted]


@needs_deflate
def test_a_step_left_out_by_the_filter_mask():
    """LZF is optional: HDF5 stores what it cannot shrink, and says so in the mask."""
    noise = ARRAYS["noise"]
    encoded, mask, steps = hdf5_chunk(noise, compression="lzf", shuffle=True)
    assert mask == 0b10
    assert decode(encoded, steps, noise.nbytes, None, mask) == noise.tobytes()
    with pytest.raises(_csr.DecodeError):
        decode(encoded, steps, noise.nbytes, None, 0)
    # Shuffle left out instead: the planes remain planes.
    encoded, _, steps = hdf5_chunk(COUNTS, compression="gzip", shuffle=True)
    planes = bytes(numcodecs.Shuffle(4).encode(COUNTS.tobytes()))
    assert decode(encoded, steps, COUNTS.nbytes, None, 0b01) == planes
    # Bits of no step change nothing, nor does a mask where steps are mandatory.
    assert decode(encoded, steps, COUNTS.nbytes, None, 0b100) == COUNTS.tobytes()
    mandatory = [(kind, parameter, -1) for kind, parameter, _ in steps]
    assert decode(encoded, mandatory, COUNTS.nbytes, None, 0b11) == COUNTS.tobytes()


def test_stored_chunks_have_their_size():
    raw = COUNTS.tobytes()
    assert decode(raw, [], len(raw)) == raw
    assert decode(raw[:100], [], len(raw), 100) == raw[:100]  # a prefix needs no more than itself
    with pytest.raises(_csr.DecodeError, match="ends after 100 of 24000 bytes"):
        decode(raw[:100], [], len(raw), 101)
    with pytest.raises(_csr.DecodeError, match="more than the 23999 bytes declared"):
        decode(raw, [], len(raw) - 1)


@every_encoder
def test_a_chunk_that_holds_more_or_less_than_declared(encoder):
    encoded, steps = encode(encoder)
    size = len(plain(encoder, COUNTS))
    for declared in (size - 1, size // 2, 1):
        with pytest.raises(_csr.DecodeError):
            decode(encoded, steps, declared)
    for declared in (size + 1, 3 * size):
        with pytest.raises(_csr.DecodeError):
            decode(encoded, steps, declared)


@pytest.mark.parametrize("kind", ["deflate", "zstd", "lz4_numcodecs", "lz4_hdf5", "blosc_lz4_1", "lzf"])
def test_errors_say_what_was_declared(kind):
    if not built(kind):
        pytest.skip("built without its library")
    encoded, steps = encode(kind)
    size = len(plain(kind, COUNTS))
    with pytest.raises(
        _csr.DecodeError, match=f"{steps[0][0]}: the chunk holds more than the {size - 4} bytes"
    ):
        decode(encoded, steps, size - 4)
    with pytest.raises(_csr.DecodeError, match=f"ends after {size} of {size + 4} bytes"):
        decode(encoded, steps, size + 4)


@every_encoder
def test_bombs(encoder):
    """Four million bytes where the metadata of the file declare a thousand."""
    encoded, steps = ENCODERS[encoder](np.zeros(4_000_000, "u1"))
    with pytest.raises(_csr.DecodeError):
        decode(bytes(encoded), steps, 1_000)


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        ("lz4_numcodecs", struct.pack("<I", 0xFFFFFFFF)),
        ("lz4_hdf5", struct.pack(">QI", 1 << 62, 1 << 31)),
        ("lz4_hdf5", struct.pack(">QI", 1_000, 0)),
        ("lz4_hdf5", struct.pack(">QII", 1_000, 1_000, 0xFFFFFFFF)),
        ("blosc", struct.pack("<BBBBIII", 2, 1, 1, 4, 0x7FFFFFEF, 0x7FFFFFEF, 0x7FFFFFFF)),
        ("blosc", struct.pack("<BBBBIII", 2, 1, 1, 0, 1_000, 1_000, 16)),
        ("blosc", struct.pack("<BBBBIII", 2, 1, 1, 4, 1_000, 0, 16)),
        ("zstd", struct.pack("<IBBI", 0xFD2FB528, 0xA0, 0xFF, 0xFFFFFF)),
    ],
)
def test_headers_that_lie(kind, header):
    if LIBRARIES[kind] is None:
        pytest.skip("built without its library")
    for wanted in (10, 1_000):
        with pytest.raises(_csr.DecodeError):
            decode(header, [(kind, 0, -1)], 1_000, wanted)
        with pytest.raises(_csr.DecodeError):
            decode(header + b"\x11" * 500, [(kind, 0, -1)], 1_000, wanted)


@every_encoder
def test_truncated_chunks(encoder):
    encoded, steps = encode(encoder, "genes")
    size = len(plain(encoder, GENES))
    for kept in {0, 1, 2, 3, 4, 11, 12, 15, 16, 17, 20, len(encoded) // 2, len(encoded) - 1}:
        with pytest.raises(_csr.DecodeError):
            decode(encoded[:kept], steps, size)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_flipped_bytes_never_crash(data):
    name = data.draw(st.sampled_from(BUILT))
    encoded, steps = encode(name)
    damaged = bytearray(encoded)
    places = st.one_of(st.integers(0, min(63, len(encoded) - 1)), st.integers(0, len(encoded) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=3, unique=True)):
        damaged[place] ^= data.draw(st.integers(1, 255))
    raw = plain(name, COUNTS)
    wanted = data.draw(st.sampled_from([len(raw), len(raw) // 5]))
    checked = {"deflate", "gzip", "fletcher32", "crc32c"} & {kind for kind, _, _ in steps}
    try:
        found = decode(bytes(damaged), steps, len(raw), wanted)
    except _csr.DecodeError:
        return
    assert len(found) == wanted
    if (checked or name == "zstd_checksum") and wanted == len(raw):
        assert found == raw  # only bytes that mean nothing may have changed: the time in gzip's header


@every_encoder
def test_empty_input_and_nothing_wanted(encoder):
    encoded, steps = encode(encoder)
    with pytest.raises(_csr.DecodeError):
        decode(b"", steps, 100)
    assert decode(encoded, steps, len(plain(encoder, COUNTS)), 0) == b""


@needs_deflate
def test_gzip_members_follow_one_another():
    first, second = COUNTS.tobytes(), GENES.tobytes()
    both = gzip.compress(first) + gzip.compress(second)
    size = len(first) + len(second)
    for wanted in (10, size // 4, len(first) + 5, size):
        assert decode(both, [("gzip", 0, -1)], size, wanted) == (first + second)[:wanted]
    with pytest.raises(_csr.DecodeError, match=f"more than the {len(first)} bytes"):
        decode(both, [("gzip", 0, -1)], len(first))


@needs_deflate
@pytest.mark.parametrize("kind", ["deflate", "gzip"])
def test_padding_behind_a_stream_is_ignored(kind):
    """As zlib and HDF5 do: the stream says itself where it ends."""
    encoded, steps = encode(kind)
    assert decode(encoded + b"\0" * 50, steps, COUNTS.nbytes) == COUNTS.tobytes()


@needs_deflate
def test_the_two_containers_of_deflate_are_not_confused():
    raw = COUNTS.tobytes()
    for wanted in (10, len(raw)):
        with pytest.raises(_csr.DecodeError):
            decode(gzip.compress(raw), [("deflate", 0, -1)], len(raw), wanted)
        with pytest.raises(_csr.DecodeError):
            decode(zlib.compress(raw), [("gzip", 0, -1)], len(raw), wanted)


@pytest.mark.skipif(LIBRARIES["zstd"] is None, reason="built without zstd")
def test_zstd_frames_in_all_shapes():
    raw = RNG.poisson(0.5, 100_000).astype("<i4").tobytes()
    frame = bytes(numcodecs.Zstd(3).encode(raw))
    steps = [("zstd", 0, -1)]
    skippable = struct.pack("<II", 0x184D2A53, 5) + b"hello"
    for encoded in (frame, skippable + frame, frame + skippable, without_content_size(frame)):
        for wanted in (1_000, len(raw)):
            assert decode(encoded, steps, len(raw), wanted) == raw[:wanted]
    for wanted in (1_000, len(raw) + 1_000, 2 * len(raw)):
        assert decode(frame + frame, steps, 2 * len(raw), wanted) == (raw + raw)[:wanted]
    with pytest.raises(_csr.DecodeError, match="more than the"):
        decode(without_content_size(frame), steps, len(raw) - 1)
    with pytest.raises(_csr.DecodeError):
        decode(frame + b"garbage", steps, len(raw))
    with pytest.raises(_csr.DecodeError, match="no frame begins"):
        decode(struct.pack("<I", 0xFD2FB527) + frame[4:], steps, len(raw))  # zstd 0.7


@pytest.mark.skipif(LIBRARIES["zstd"] is None, reason="built without zstd")
def test_zstd_windows_larger_than_memory_are_not_allocated():
    """A window of 2 GB, which a prefix would have to hold: the whole is decoded without any."""
    raw = RNG.poisson(0.5, 100_000).astype("<i4").tobytes()
    frame = bytes(numcodecs.Zstd(3).encode(raw))
    assert (
        decode(without_content_size(frame, window_log=31), [("zstd", 0, -1)], len(raw), 1_000) == raw[:1_000]
    )
    with pytest.raises(_csr.DecodeError, match="header of a frame is wrong"):
        decode(without_content_size(frame, window_log=41), [("zstd", 0, -1)], len(raw), 1_000)


def without_content_size(frame, window_log=22):
    """The same frame as a streaming encoder writes it: a window in place of the content size."""
    descriptor = frame[4]
    assert descriptor >> 5 == 0b101, "4 bytes of content size, a single segment, no window byte"
    return frame[:4] + bytes([0, (window_log - 10) << 3]) + frame[9:]


def test_a_chunk_of_nothing_needs_nothing():
    assert decode(b"", [], 0) == b""
    assert decode(b"", [("lzf", 0, -1)], 0) == b""


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([("rot13", 0, -1)], "'rot13' is no kind of codec"),
        ([("shuffle", 0, -1)], "elements of 0 bytes"),
        ([("shuffle", 1_000_000, -1)], "elements of 1000000 bytes"),
        ([("lzf", 0, 32)], "mask_bit of lzf is 32"),
        ([("lzf", 0, -1)] * 33, "33 steps"),
    ],
)
def test_pipelines_without_sense(steps, message):
    with pytest.raises(ValueError, match=message):
        decode(b"", steps, 10)


def test_more_wanted_than_there_is():
    with pytest.raises(ValueError, match="11 bytes are wanted of a chunk of 10"):
        decode(b"", [], 10, 11)
    with pytest.raises((ValueError, MemoryError)):
        decode(b"", [], 1 << 62)


def test_encoded_must_be_bytes():
    with pytest.raises(TypeError, match="contiguous bytes"):
        decode(np.zeros(10, "<i4"), [], 40)
    assert decode(np.arange(5, dtype="u1"), [], 5) == bytes(range(5))
