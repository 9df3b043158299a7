"""Chunk tables: the bytes they point at, read by plain file reads and decoded here, are the array."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import struct
import warnings
import zlib
from pathlib import Path

import anndata as ad
import google_crc32c
import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from scdd.data.formats import layout_cache, layout_hdf5
from scdd.data.formats.layout import FileIdentity, NotDirect, file_identity, layout_of, unchanged
from scdd.data.formats.layout_check import self_check
from scdd.errors import DataFileError

KINDS = ["deflate", "gzip", "zstd", "lz4_hdf5", "lz4_numcodecs", "lzf", "blosc", "shuffle"]
CODECS = dict.fromkeys([*KINDS, "fletcher32", "crc32c"], "here")
ONE_SECOND_NS = 1_000_000_000
MISSING = 2**64 - 1


def _lzf(raw, size):
    out, i = bytearray(), 0
    while i < len(raw):
        control, i = raw[i], i + 1
        if control < 32:
            out += raw[i : i + control + 1]
            i += control + 1
            continue
        length, offset = control >> 5, (control & 31) << 8
        if length == 7:
            length, i = length + raw[i], i + 1
        offset, i = offset + raw[i] + 1, i + 1
        for _ in range(length + 2):
            out.append(out[-offset])
    assert len(out) == size
    return bytes(out)


def _lz4_hdf5(raw):
    total, block = struct.unpack(">QI", raw[:12])
    out, at = b"", 12
    while len(out) < total:
        (size,) = struct.unpack(">I", raw[at : at + 4])
        plain = min(block, total - len(out))
        piece = raw[at + 4 : at + 4 + size]
        out += piece if size == plain else numcodecs.LZ4().decode(struct.pack("<I", plain) + piece)
        at += 4 + size
    return out


def _strip_crc(raw):
    assert google_crc32c.value(raw[:-4]) == int.from_bytes(raw[-4:], "little")
    return raw[:-4]


UNDO = {
    "deflate": lambda raw, parameter, size: zlib.decompress(raw),
    "gzip": lambda raw, parameter, size: zlib.decompress(raw, 31),
    "zstd": lambda raw, parameter, size: numcodecs.Zstd().decode(raw),
    "blosc": lambda raw, parameter, size: numcodecs.Blosc().decode(raw),
    "lz4_numcodecs": lambda raw, parameter, size: numcodecs.LZ4().decode(raw),
    "lz4_hdf5": lambda raw, parameter, size: _lz4_hdf5(raw),
    "lzf": lambda raw, parameter, size: _lzf(raw, size),
    "shuffle": lambda raw, parameter, size: np.frombuffer(raw, "u1").reshape(parameter, -1).T.tobytes(),
    "fletcher32": lambda raw, parameter, size: raw[:-4],
    "crc32c": lambda raw, parameter, size: _strip_crc(raw),
}


def decode(encoded, steps, mask, chunk_bytes, wanted):
    for kind, parameter, bit in steps:
        if bit < 0 or not mask >> bit & 1:
            encoded = bytes(UNDO[kind](bytes(encoded), parameter, chunk_bytes))
    assert len(encoded) == chunk_bytes >= wanted
    return np.frombuffer(encoded, "u1")


def read(layout):
    """The whole array, from its layout alone."""
    out = np.full(layout.n_chunks * layout.chunk_length, layout.fill_value, dtype=layout.dtype)
    for i in range(layout.n_chunks):
        if layout.offsets[i] >= 0:
            with Path(layout.paths[layout.file_of_chunk[i]]).open("rb") as file:
                file.seek(layout.offsets[i])
                raw = file.read(layout.sizes[i])
            plain = decode(raw, layout.steps, int(layout.masks[i]), layout.chunk_bytes, layout.chunk_bytes)
            out[i * layout.chunk_length : (i + 1) * layout.chunk_length] = plain.view(layout.dtype)
    return out[: layout.length]


def check(array, expected=None):
    """The layout of an array, read and compared."""
    layout = layout_of(array, codecs=CODECS)
    expected = array[...] if expected is None else expected
    np.testing.assert_array_equal(read(layout), expected)
    assert layout.length == len(expected)
    assert layout.file_of_chunk.dtype == np.int32
    assert layout.offsets.dtype == layout.sizes.dtype == np.int64
    assert layout.masks.dtype == np.uint32
    assert all(Path(path).is_absolute() for path in layout.paths)
    self_check(layout, array, decode)
    return layout


@pytest.fixture
def h5(tmp_path):
    """Writes one dataset and gives it back open for reading; closes all of them at the end."""
    opened = []

    def write(values=None, *, change=None, userblock_size=0, **options):
        path = tmp_path / f"{len(opened)}.h5"
        with h5py.File(path, "w", userblock_size=userblock_size) as file:
            file["before"] = np.arange(7)
            dataset = file.create_dataset("x", data=values, **options)
            if change:
                change(dataset)
        opened.append(h5py.File(path, "r"))
        return opened[-1]["x"]

    yield write
    for file in opened:
        file.close()


NUMBERS = np.random.default_rng(0).poisson(2.0, 1_000)
CHUNKED = {
    "raw": {},
    "gzip": {"compression": "gzip"},
    "shuffle": {"shuffle": True},
    "shuffle+gzip": {"compression": "gzip", "shuffle": True},
    "lzf": {"compression": "lzf"},
    "gzip+fletcher32": {"compression": "gzip", "fletcher32": True},
    "shuffle+lzf+fletcher32": {"compression": "lzf", "shuffle": True, "fletcher32": True},
    "fletcher32": {"fletcher32": True},
}


@pytest.mark.parametrize("filters", list(CHUNKED))
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">i4", "<i8", "<f2", ">f4", "<f8", "?"])
def test_hdf5_chunked(h5, filters, dtype):
    layout = check(h5(NUMBERS.astype(dtype), chunks=(64,), **CHUNKED[filters]))
    assert layout.dtype == np.dtype(dtype)
    assert layout.n_chunks == 16
    assert layout.chunk_length == 64


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(0, 200),
    chunk=st.integers(1, 70),
    filters=st.sampled_from(sorted(CHUNKED)),
    seed=st.integers(0, 99),
)
def test_hdf5_any_length_and_chunk(tmp_path_factory, length, chunk, filters, seed):
    path = tmp_path_factory.mktemp("any") / "a.h5"
    values = np.random.default_rng(seed).integers(0, 2**32, length, dtype="u4")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=(chunk,), maxshape=(None,), **CHUNKED[filters])
    with h5py.File(path) as file:
        check(file["x"])


def test_hdf5_incompressible_chunks_say_so_in_their_mask(h5):
    noise = np.random.default_rng(0).integers(0, 2**32, 1_024, dtype="u4")
    noise[:64] = 5
    layout = check(h5(noise, chunks=(64,), compression="lzf", shuffle=True))
    assert layout.steps == (("lzf", 0, 1), ("shuffle", 4, 0))
    assert layout.masks[0] == 0
    assert (layout.masks[1:] == 2).all()


@pytest.mark.parametrize("mask", [0, 1, 2, 3])
def test_hdf5_each_filter_of_a_chunk_may_be_skipped(h5, mask):
    values = NUMBERS[:64].astype("<i4")

    def change(dataset):
        raw = values.tobytes()
        raw = raw if mask & 1 else np.frombuffer(raw, "u1").reshape(-1, 4).T.tobytes()
        dataset.id.write_direct_chunk((0,), raw if mask & 2 else zlib.compress(raw), filter_mask=mask)

    dataset = h5(shape=(64,), dtype="<i4", chunks=(64,), compression="gzip", shuffle=True, change=change)
    layout = check(dataset, values)
    assert layout.masks[0] == mask
    assert layout.skips_all(0) == (mask == 3)


@pytest.mark.parametrize("kind", ["blosc", "zstd", "lz4_hdf5"])
def test_hdf5_plugin_filters_are_read_without_their_plugin(tmp_path, kind):
    values, path = NUMBERS.astype("<f4"), tmp_path / "a.h5"
    number = {"blosc": 32001, "lz4_hdf5": 32004, "zstd": 32015}[kind]

    def encode(piece):
        if kind == "blosc":
            return numcodecs.Blosc("lz4", shuffle=1).encode(piece)
        if kind == "zstd":
            return numcodecs.Zstd().encode(piece)
        packed = [numcodecs.LZ4().encode(part)[4:] for part in (piece[:40], piece[40:80], piece[80:])]
        blocks = b"".join(struct.pack(">I", len(part)) + part for part in packed)
        return struct.pack(">QI", piece.nbytes, 160) + blocks

    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((100,))
        plist.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (2, 2, 4, 400, 5, 1, 1))
        space = h5py.h5s.create_simple((1_000,))
        dataset = h5py.Dataset(h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plist))
        for i in range(10):
            dataset.id.write_direct_chunk((100 * i,), encode(values[100 * i : 100 * i + 100]), filter_mask=0)
    with h5py.File(path) as file:
        layout = check(file["x"], values)
    assert layout.steps == ((kind, 0, 0),)


def test_hdf5_chunks_that_were_never_written_are_fill(h5):
    def change(dataset):
        dataset[130:150] = 3

    layout = check(h5(shape=(500,), dtype="f4", chunks=(50,), fillvalue=2.5, change=change))
    assert list(np.flatnonzero(layout.offsets >= 0)) == [2]
    assert layout.fill_value == 2.5
    empty = check(h5(shape=(0,), dtype="f4", chunks=(50,), maxshape=(None,)))
    assert empty.n_chunks == 0


@pytest.mark.parametrize("userblock_size", [0, 512, 4096])
def test_hdf5_contiguous_and_user_block(h5, userblock_size):
    layout = check(h5(NUMBERS, userblock_size=userblock_size))
    assert (layout.n_chunks, layout.chunk_length, layout.steps) == (1, 1_000, ())
    unwritten = check(h5(shape=(9,), dtype="i4", fillvalue=7, userblock_size=userblock_size))
    assert list(unwritten.offsets) == [-1]
    assert check(h5(shape=(0,), dtype="i4", userblock_size=userblock_size)).n_chunks == 0
    check(h5(NUMBERS, chunks=(64,), compression="gzip", userblock_size=userblock_size))


def _compact(dataset):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(dataset.file.id, b"y", h5py.h5t.STD_I32LE, h5py.h5s.create_simple((10,)), plist)


def _virtual(dataset):
    layout = h5py.VirtualLayout(shape=(10,), dtype="i4")
    layout[:] = h5py.VirtualSource(dataset)[:10]
    dataset.file.create_virtual_dataset("y", layout)


def _external(dataset):
    raw = Path(dataset.file.filename).with_suffix(".bin")
    dataset.file.create_dataset("y", (10,), "i4", external=[(str(raw), 0, 40)])


def _filtered(number):
    def change(dataset):
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((10,))
        plist.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (2, 2, 4, 400, 5, 1, 3))
        space = h5py.h5s.create_simple((10,))
        h5py.h5d.create(dataset.file.id, b"y", h5py.h5t.STD_I32LE, space, plist)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_compact, "compact"),
        (_virtual, "virtual"),
        (_external, "external files"),
        (_filtered(32008), "32008.*bitshuffle"),
        (_filtered(32026), "32026.*blosc2"),
        (_filtered(32001), "blosc with snappy"),
        (_filtered(309), "309"),
        (lambda x: x.file.create_dataset("y", (10,), "i4", chunks=(5,), scaleoffset=0), "scaleoffset"),
        (lambda x: x.file.create_dataset("y", (10, 2), "i4"), "not one-dimensional"),
        (lambda x: x.file.create_dataset("y", data=h5py.Empty("i4")), "not one-dimensional"),
        (lambda x: x.file.create_dataset("y", (10,), "c8"), "complex64"),
        (lambda x: x.file.create_dataset("y", data=["a", "b"]), "not numbers"),
        (lambda x: x.file.create_dataset("y", (10,), "i4,f4"), "not numbers"),
    ],
)
def test_hdf5_what_only_h5py_can_read(h5, change, reason):
    dataset = h5(NUMBERS, change=change)
    with pytest.raises(NotDirect, match=reason):
        layout_of(dataset.file["y"], codecs=CODECS)


def test_hdf5_a_number_type_of_its_own(h5):
    def change(dataset):
        kind = h5py.h5t.STD_I32LE.copy()
        kind.set_precision(17)
        h5py.h5d.create(dataset.file.id, b"y", kind, h5py.h5s.create_simple((10,)))

    with pytest.raises(NotDirect, match="number type of its own"):
        layout_of(h5(NUMBERS, change=change).file["y"], codecs=CODECS)


def test_hdf5_only_files_on_disk_that_nobody_writes_to(h5, tmp_path):
    path = h5(NUMBERS).file.filename
    with (
        Path(path).open("rb") as raw,
        h5py.File(raw, "r") as file,
        pytest.raises(NotDirect, match="not a local"),
    ):
        layout_of(file["x"], codecs=CODECS)
    with h5py.File(path, "r", driver="core") as file, pytest.raises(NotDirect, match="'core' driver"):
        layout_of(file["x"], codecs=CODECS)
    copy = tmp_path / "copy.h5"
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file, pytest.raises(NotDirect, match="open for writing"):
        layout_of(file["x"], codecs=CODECS)
    with h5py.File(copy, "r") as file:
        shutil.copy(path, tmp_path / "other.h5")
        (tmp_path / "other.h5").replace(copy)
        with pytest.raises(NotDirect, match="another file"):
            layout_of(file["x"], codecs=CODECS)
        copy.unlink()
        with pytest.raises(NotDirect, match="not a local"):
            layout_of(file["x"], codecs=CODECS)


def test_hdf5_a_relative_path_becomes_absolute(h5, tmp_path, monkeypatch):
    path = h5(NUMBERS).file.filename
    monkeypatch.chdir(tmp_path)
    with h5py.File(Path(path).name) as file:
        assert check(file["x"]).paths == (str(path),)


def test_hdf5_external_links_lead_to_their_own_file(h5, tmp_path):
    dataset = h5(NUMBERS, chunks=(64,))
    with h5py.File(tmp_path / "linking.h5", "w") as file:
        file["x"] = h5py.ExternalLink(dataset.file.filename, "/x")
    with h5py.File(tmp_path / "linking.h5") as file:
        assert check(file["x"]).paths == (dataset.file.filename,)


def test_a_codec_that_is_not_built_names_its_library(h5):
    dataset = h5(NUMBERS, chunks=(64,), compression="gzip")
    with pytest.raises(NotDirect, match="lacks zlib"):
        layout_of(dataset, codecs={**CODECS, "deflate": None})
    with pytest.raises(NotDirect, match="lacks zlib"):
        layout_of(dataset, codecs={})


@pytest.mark.parametrize("chunks", [None, (64,)])
def test_hdf5_truncated_under_our_hands(h5, chunks, monkeypatch):
    dataset = h5(NUMBERS, chunks=chunks)
    size = Path(dataset.file.filename).stat().st_size
    # h5py refuses a file that was cut before it is opened, so the size alone is made smaller.
    monkeypatch.setattr(
        "scdd.data.formats.layout_hdf5._local_file",
        lambda dataset: (dataset.file.filename, FileIdentity(1, size // 2, 1)),
    )
    with pytest.raises(DataFileError, match=r"0\.h5: /x is corrupt or truncated: chunk \d+ .*copy or write"):
        layout_of(dataset, codecs=CODECS)


def test_self_check_finds_a_table_that_is_off(h5):
    dataset = h5(NUMBERS, chunks=(64,))
    layout = layout_of(dataset, codecs=CODECS)
    layout.offsets[-1] -= 8
    with pytest.raises(NotDirect, match="h5py and the chunk table disagree at chunk 15"):
        self_check(layout, dataset, decode)
    packed = h5(NUMBERS, chunks=(64,), compression="gzip")
    layout = layout_of(packed, codecs=CODECS)

    def wrong(encoded, steps, mask, chunk_bytes, wanted):
        return np.zeros(chunk_bytes, "u1")

    with pytest.raises(NotDirect, match="disagree at chunk 0"):
        self_check(layout, packed, wrong)

    def failing(*_):
        raise RuntimeError("deflate: bad header")

    with pytest.raises(NotDirect, match=r"cannot be decoded \(deflate: bad header"):
        self_check(layout, packed, failing)


def test_self_check_finds_an_unfiltered_last_chunk(tmp_path):
    """H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS, which neither the mask nor h5py tells of."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    library = next((line.split()[-1] for line in lines if re.search(r"libhdf5[-.]", line)), None)
    if library is None:
        pytest.skip("needs a shared libhdf5")
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((64,))
    plist.set_deflate(4)
    assert ctypes.CDLL(library).H5Pset_chunk_opts(ctypes.c_int64(plist.id), ctypes.c_uint(2)) == 0
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        space = h5py.h5s.create_simple((1_000,))
        h5py.Dataset(h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plist))[...] = NUMBERS
    with h5py.File(tmp_path / "a.h5") as file:
        layout = layout_of(file["x"], codecs=CODECS)
        with pytest.raises(NotDirect, match="chunk 15 cannot be decoded"):
            self_check(layout, file["x"], decode)


def test_a_replaced_or_changed_file_is_noticed(h5, tmp_path):
    layout = layout_of(h5(NUMBERS, chunks=(64,)), codecs=CODECS)
    assert unchanged(layout)
    path = layout.paths[0]
    os.utime(path, ns=(1, file_identity(path).mtime_ns + ONE_SECOND_NS))
    assert not unchanged(layout)
    os.utime(path, ns=(1, layout.identities[0].mtime_ns))
    assert unchanged(layout)
    shutil.copy2(path, tmp_path / "copy")
    (tmp_path / "copy").replace(path)
    assert not unchanged(layout)
    Path(path).unlink()
    assert not unchanged(layout)
    with pytest.raises(DataFileError, match="cannot be read"):
        file_identity(path)


# --- zarr -------------------------------------------------------------------------------------------------


def _zarr(folder, values, zarr_format=3, **options):
    group = zarr.open_group(folder, mode="w", zarr_format=zarr_format)
    array = group.create_array("x", shape=values.shape, dtype=values.dtype, **options)
    array[...] = values
    return zarr.open_group(folder, mode="r")["x"]


V2 = {
    "raw": (None, None),
    "blosc": (numcodecs.Blosc("lz4"), None),
    "bitshuffled blosc": (numcodecs.Blosc("zstd", shuffle=numcodecs.Blosc.BITSHUFFLE), None),
    "zstd": (numcodecs.Zstd(), None),
    "zlib": (numcodecs.Zlib(), None),
    "gzip": (numcodecs.GZip(), None),
    "lz4": (numcodecs.LZ4(), None),
    "shuffle+zstd": (numcodecs.Zstd(), [numcodecs.Shuffle(4)]),
    "shuffle": (None, [numcodecs.Shuffle(4)]),
}


@pytest.mark.parametrize("codec", list(V2))
@pytest.mark.parametrize("dtype", ["<i4", ">f4"])
def test_zarr_v2(tmp_path, codec, dtype):
    compressor, filters = V2[codec]
    array = _zarr(
        tmp_path / "a.zarr", NUMBERS.astype(dtype), 2, chunks=(64,), compressors=compressor, filters=filters
    )
    layout = check(array)
    assert layout.dtype == np.dtype(dtype)
    assert (layout.n_chunks, len(layout.paths)) == (16, 16)


@pytest.mark.parametrize("dtype", ["?", "<u2", "<i8", "<f2", "<f8"])
def test_zarr_v2_other_dtypes_and_separator(tmp_path, dtype):
    values = NUMBERS.astype(dtype)
    encoding = {"name": "v2", "configuration": {"separator": "/"}}
    check(_zarr(tmp_path / "a.zarr", values, 2, chunks=(64,), chunk_key_encoding=encoding))
    check(_zarr(tmp_path / "f.zarr", values, 2, chunks=(64,), order="F"))


def _v3_codecs(name):
    from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

    return {
        "raw": None,
        "gzip": GzipCodec(),
        "zstd": ZstdCodec(checksum=True),
        "blosc": BloscCodec(cname="lz4", shuffle="shuffle", typesize=4),
        "blosc+crc32c": [BloscCodec(), Crc32cCodec()],
        "crc32c": [Crc32cCodec()],
    }[name]


@pytest.mark.parametrize("codec", ["raw", "gzip", "zstd", "blosc", "blosc+crc32c", "crc32c"])
@pytest.mark.parametrize("shards", [None, 64, 256, 1_024])
@pytest.mark.parametrize("endian", ["little", "big"])
def test_zarr_v3(tmp_path, codec, shards, endian):
    from zarr.codecs import BytesCodec

    options = {"serializer": BytesCodec(endian=endian), "compressors": _v3_codecs(codec)}
    options |= {"shards": (shards,)} if shards else {}
    layout = check(_zarr(tmp_path / "a.zarr", NUMBERS.astype("i4"), chunks=(64,), **options))
    assert layout.dtype == np.dtype("<i4" if endian == "little" else ">i4")
    assert layout.n_chunks == 16
    assert layout.chunk_length == 64
    assert len(layout.paths) == -(-1_000 // (shards or 64))


@pytest.mark.parametrize("dtype", ["?", "u1", "u2", "i8", "f2", "f8"])
def test_zarr_v3_other_dtypes_and_separators(tmp_path, dtype):
    values = NUMBERS.astype(dtype)
    for number, encoding in enumerate(
        (
            {"name": "default", "configuration": {"separator": "."}},
            {"name": "v2", "configuration": {"separator": "."}},
        )
    ):
        check(_zarr(tmp_path / f"{number}.zarr", values, chunks=(64,), chunk_key_encoding=encoding))
        sharded = tmp_path / f"s{number}.zarr"
        check(_zarr(sharded, values, chunks=(64,), shards=(128,), chunk_key_encoding=encoding))


def _sharded_metadata(path, **changes):
    """Rewrites the configuration of the sharding codec."""
    metadata = json.loads(path.read_text())
    metadata["codecs"][0]["configuration"].update(changes)
    path.write_text(json.dumps(metadata))


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("checksum", [True, False])
def test_zarr_shard_index_at_either_end(tmp_path, location, checksum):
    from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec

    codec = ShardingCodec(
        chunk_shape=(64,),
        codecs=[BytesCodec(), GzipCodec()],
        index_codecs=[BytesCodec(), Crc32cCodec()] if checksum else [BytesCodec()],
        index_location=location,
    )
    values = NUMBERS.astype("f4")
    values[64:128] = values[512:768] = 0  # an inner chunk, and a whole shard, that are not stored
    array = _zarr(tmp_path / "a.zarr", values, chunks=(256,), serializer=codec, compressors=None)
    layout = check(array)
    assert len(layout.paths) == 3
    assert list(np.flatnonzero(layout.offsets < 0)) == [1, 8, 9, 10, 11]


def test_zarr_numcodecs_in_v3(tmp_path):
    pytest.importorskip("zarr.codecs.numcodecs")
    from zarr.codecs.numcodecs import LZ4, Shuffle, Zlib

    values = NUMBERS.astype("f4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are not in the specification
        check(_zarr(tmp_path / "a.zarr", values, chunks=(64,), compressors=[Shuffle(elementsize=4), LZ4()]))
        check(_zarr(tmp_path / "b.zarr", values, chunks=(64,), compressors=[Zlib()]))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_missing_chunks_and_foreign_files(tmp_path, zarr_format):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=zarr_format)
    array = group.create_array("x", shape=(500,), dtype="f4", chunks=(50,), fill_value=1.5)
    array[130:150] = 3
    folder = tmp_path / "a.zarr" / "x" / ("" if zarr_format == 2 else "c")
    for name in ("02", "10", "3.tmp", "-1", "².x"):
        (folder / name).write_bytes(b"nothing of ours")
    layout = check(zarr.open_group(tmp_path / "a.zarr", mode="r")["x"])
    assert list(np.flatnonzero(layout.offsets >= 0)) == [2]
    assert layout.fill_value == 1.5
    never = group.create_array("y", shape=(0,), dtype="f4", chunks=(50,))
    assert check(never).n_chunks == 0


@settings(max_examples=30, deadline=None)
@given(length=st.integers(0, 300), chunk=st.integers(5, 40), inner=st.integers(1, 5), seed=st.integers(0, 99))
def test_zarr_any_shape_of_shards(tmp_path_factory, length, chunk, inner, seed):
    values = np.arange(1, length + 1, dtype="i4")
    empty = np.random.default_rng(seed).random(length // chunk + 1) < 0.5
    values[np.repeat(empty, chunk)[:length]] = 0
    folder = tmp_path_factory.mktemp("any") / "a.zarr"
    check(_zarr(folder, values, chunks=(chunk,), shards=(chunk * inner,)))


@pytest.fixture
def shard(tmp_path):
    """A sharded array of four shards of four raw chunks, and a function that opens it anew."""
    folder = tmp_path / "a.zarr"
    _zarr(folder, NUMBERS.astype("i4"), chunks=(64,), shards=(256,), compressors=None)
    return folder / "x", lambda: zarr.open_group(folder, mode="r")["x"]


def _rewrite_index(path, entries):
    index = np.array(entries, dtype="<u8").tobytes()
    body = path.read_bytes()[: -(16 * len(entries) + 4)]
    path.write_bytes(body + index + google_crc32c.value(index).to_bytes(4, "little"))


@pytest.mark.parametrize(
    "bad",
    [(1, 256), (1_025, 256), (900, 256), (2**63, 256), (0, MISSING), (MISSING, 256), (2**62, 2**62), (0, 0)],
)
def test_zarr_an_index_that_leaves_its_shard(shard, bad):
    folder, reopened = shard
    size = 1_024 + 16 * 4 + 4
    assert (folder / "c/1").stat().st_size == size
    bad = (size - 255, 256) if bad == (1, 256) else bad
    bad = (0, 255) if bad == (900, 256) else bad
    _rewrite_index(folder / "c/1", [(0, 256), (256, 256), bad, (768, 256)])
    with pytest.raises(DataFileError, match=r"corrupt.*(chunk 6|beyond 2\^63).*again"):
        layout_of(reopened(), codecs=CODECS)


def test_zarr_a_damaged_or_truncated_index(shard):
    folder, reopened = shard
    whole = (folder / "c/1").read_bytes()
    (folder / "c/1").write_bytes(whole[:-20] + b"\x01" + whole[-19:])
    with pytest.raises(DataFileError, match=r"shard .*c/1: the checksum of its index is wrong"):
        layout_of(reopened(), codecs=CODECS)
    (folder / "c/1").write_bytes(whole[:-1])
    with pytest.raises(DataFileError, match="checksum"):
        layout_of(reopened(), codecs=CODECS)
    (folder / "c/1").write_bytes(whole[:30])
    with pytest.raises(DataFileError, match="30 bytes do not hold its index of 68"):
        layout_of(reopened(), codecs=CODECS)
    (folder / "c/1").write_bytes(b"")
    with pytest.raises(DataFileError, match="0 bytes"):
        layout_of(reopened(), codecs=CODECS)
    (folder / "c/1").write_bytes(whole)
    layout = layout_of(reopened(), codecs=CODECS, crc32c=google_crc32c.value)
    np.testing.assert_array_equal(read(layout), NUMBERS)
    with pytest.raises(DataFileError, match="checksum"):
        layout_of(reopened(), codecs=CODECS, crc32c=lambda raw: 1)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_a_truncated_chunk(tmp_path, zarr_format):
    folder = tmp_path / "a.zarr"
    array = _zarr(folder, NUMBERS.astype("i4"), zarr_format, chunks=(64,), compressors=None)
    path = folder / ("x/3" if zarr_format == 2 else "x/c/3")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataFileError, match=r"x is corrupt or truncated: chunk 3 \(255 bytes"):
        layout_of(array, codecs=CODECS)


def test_zarr_shards_that_do_not_divide(shard):
    folder, _ = shard
    array = zarr.open_group(folder.parent, mode="r")["x"]
    metadata = array.metadata.to_dict()
    metadata["codecs"][0]["configuration"]["chunk_shape"] = (60,)
    array.metadata.__class__.to_dict, kept = lambda self: metadata, array.metadata.__class__.to_dict
    try:
        with pytest.raises(DataFileError, match="shards of 256 in chunks of 60"):
            layout_of(array, codecs=CODECS)
    finally:
        array.metadata.__class__.to_dict = kept


def test_zarr_what_only_zarr_can_read(tmp_path):
    from zarr.codecs import TransposeCodec
    from zarr.storage import MemoryStore, ZipStore

    values = NUMBERS.astype("i4")
    memory = zarr.create_array(MemoryStore(), data=values, chunks=(64,))
    with pytest.raises(NotDirect, match="MemoryStore"):
        layout_of(memory, codecs=CODECS)
    with ZipStore(tmp_path / "a.zip", mode="w") as store, pytest.raises(NotDirect, match="ZipStore"):
        layout_of(zarr.create_array(store, data=values, chunks=(64,)), codecs=CODECS)
    turned = _zarr(tmp_path / "t.zarr", values, chunks=(64,), filters=[TransposeCodec(order=(0,))])
    with pytest.raises(NotDirect, match="transpose"):
        layout_of(turned, codecs=CODECS)
    for codec in (numcodecs.BZ2(), numcodecs.LZMA(), numcodecs.Blosc("snappy")):
        if codec.codec_id == "blosc" and "snappy" not in numcodecs.blosc.list_compressors():
            continue
        packed = _zarr(tmp_path / "p.zarr", values, 2, chunks=(64,), compressors=codec)
        with pytest.raises(NotDirect, match=codec.codec_id):
            layout_of(packed, codecs=CODECS)
    delta = _zarr(tmp_path / "d.zarr", values, 2, chunks=(64,), filters=[numcodecs.Delta("i4")])
    with pytest.raises(NotDirect, match="delta"):
        layout_of(delta, codecs=CODECS)
    flat = zarr.create_array(tmp_path / "2.zarr", data=values.reshape(10, 100), chunks=(5, 50))
    with pytest.raises(NotDirect, match="not one-dimensional"):
        layout_of(flat, codecs=CODECS)
    with pytest.raises(NotDirect, match="neither"):
        layout_of(zarr.open_group(tmp_path / "t.zarr", mode="r"), codecs=CODECS)
    with pytest.raises(NotDirect, match="neither"):
        layout_of(values, codecs=CODECS)


def test_zarr_nested_shards(tmp_path):
    from zarr.codecs import BytesCodec, ShardingCodec

    inner = ShardingCodec(chunk_shape=(32,), codecs=[BytesCodec()])
    outer = ShardingCodec(chunk_shape=(64,), codecs=[inner])
    array = _zarr(
        tmp_path / "n.zarr", NUMBERS.astype("i4"), chunks=(128,), serializer=outer, compressors=None
    )
    with pytest.raises(NotDirect, match="sharding_indexed"):
        layout_of(array, codecs=CODECS)


def test_shapes_whose_table_would_fill_the_memory(tmp_path, h5):
    huge = h5(shape=(2**61,), dtype="u1", chunks=(1,))
    with pytest.raises(NotDirect, match="chunks, more than"):
        layout_of(huge, codecs=CODECS)
    group = zarr.open_group(tmp_path / "h.zarr", mode="w")
    array = group.create_array("x", shape=(2**61,), dtype="u1", chunks=(1,))
    with pytest.raises(NotDirect, match="chunks, more than"):
        layout_of(array, codecs=CODECS)
    for shape in (100, 2**61):
        array = group.create_array(f"y{shape}", shape=(shape,), dtype="u1", chunks=(2**60,))
        with pytest.raises(NotDirect, match="compressed or missing chunks of more than 2 GiB"):
            layout_of(array, codecs=CODECS)
    claimed = h5(shape=(2**61,), dtype="i4")
    with pytest.raises(DataFileError, match="it claims 230"):
        layout_of(claimed, codecs=CODECS)


# --- what anndata writes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_anndata_h5ad(adata, tmp_path, compression):
    adata.write_h5ad(tmp_path / "a.h5ad", compression=compression)
    with h5py.File(tmp_path / "a.h5ad") as file:
        for part in ("data", "indices", "indptr"):
            check(file["X"][part], getattr(adata.X, part))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_anndata_zarr(adata, tmp_path, zarr_format):
    ad.settings.zarr_write_format, kept = zarr_format, ad.settings.zarr_write_format
    try:
        adata.write_zarr(tmp_path / "a.zarr")
    finally:
        ad.settings.zarr_write_format = kept
    zarr.consolidate_metadata(tmp_path / "a.zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert group.metadata.zarr_format == zarr_format
    for part in ("data", "indices", "indptr"):
        check(group["X"][part], getattr(adata.X, part))


# --- the cache of tables ----------------------------------------------------------------------------------


@pytest.fixture
def cached(h5, tmp_path, monkeypatch):
    """A dataset whose table is worth caching, an empty cache folder, and the number of tables built."""
    monkeypatch.setattr(layout_cache, "_SMALLEST_CACHED", 10)
    monkeypatch.setenv("SCDD_CACHE", str(tmp_path / "cache"))
    built, original = [], layout_hdf5._chunked
    monkeypatch.setattr(layout_hdf5, "_chunked", lambda *args: built.append(1) or original(*args))
    return h5(NUMBERS, chunks=(64,), compression="gzip"), tmp_path / "cache", built


def test_a_table_is_cached_for_the_file_as_it_was(cached):
    dataset, folder, built = cached
    first = check(dataset)
    (saved,) = folder.iterdir()
    second = check(dataset)
    assert len(built) == 1
    np.testing.assert_array_equal(first.offsets, second.offsets)
    path = dataset.file.filename
    os.utime(path, ns=(1, file_identity(path).mtime_ns + ONE_SECOND_NS))
    check(dataset)
    assert len(built) == 2
    assert list(folder.iterdir()) == [saved]


@pytest.mark.parametrize("damage", ["text", "short", "shape", "negative", "files"])
def test_a_damaged_cache_is_ignored(cached, damage):
    dataset, folder, built = cached
    check(dataset)
    (saved,) = folder.iterdir()
    if damage == "text":
        saved.write_text("not a table")
    elif damage == "short":
        saved.write_bytes(saved.read_bytes()[:-200])
    else:
        with np.load(saved) as whole:
            table = dict(whole)
        if damage == "shape":
            table["sizes"] = table["sizes"][:-1]
        elif damage == "negative":
            table["offsets"][0] = -5
        else:
            table["file_of_chunk"][0] = 1
        np.savez(saved, **table)
    check(dataset)
    assert len(built) == 2
    check(dataset)
    assert len(built) == 2


def test_the_cache_can_be_turned_off_and_may_fail(cached, tmp_path, monkeypatch):
    dataset, folder, built = cached
    monkeypatch.setenv("SCDD_CACHE", "")
    check(dataset)
    assert not folder.exists()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SCDD_CACHE", str(tmp_path / "file" / "cache"))
    check(dataset)
    assert len(built) == 2


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("SCDD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert layout_cache.cache_folder() == tmp_path / "scdd"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert layout_cache.cache_folder() == tmp_path / ".cache" / "scdd"


def test_shards_are_cached_too(shard, tmp_path, monkeypatch):
    folder, reopened = shard
    monkeypatch.setattr(layout_cache, "_SMALLEST_CACHED", 10)
    monkeypatch.setenv("SCDD_CACHE", str(tmp_path / "cache"))
    check(reopened())
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr("scdd.data.formats.layout_shards.Shards._index", None)  # would fail if it were asked
    check(reopened())
    (folder / "c/1").unlink()
    with pytest.raises(TypeError):
        layout_of(reopened(), codecs=CODECS)
