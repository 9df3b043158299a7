"""In what form a matrix lies in a file: order, chunks, codecs, number types, bytes; from metadata alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

# What users call the filters of HDF5, by their registered number.
_FILTERS = {
    1: "gzip",
    2: "shuffle",
    3: "fletcher32",
    4: "szip",
    5: "nbit",
    6: "scaleoffset",
    32000: "lzf",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32026: "blosc2",
}
_ORDERS = {"csr_matrix": "CSR", "csr": "CSR", "csc_matrix": "CSC", "csc": "CSC"}


class ArrayForm(NamedTuple):
    """How one array lies.

    Attributes
    ----------
    dtype : of its elements, as stored
    shape : of the array
    chunks : shape of a chunk; None where the array is one piece
    codecs : names, in the order in which they are applied
    stored_bytes : what it takes on disk
    """

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None
    codecs: tuple[str, ...]
    stored_bytes: int

    @property
    def encoding(self) -> str:
        """Codecs in words."""
        return " + ".join(self.codecs) or "not compressed"


class Form(NamedTuple):
    """How a matrix lies.

    Attributes
    ----------
    order : ``"CSR"``, ``"CSC"`` or ``"dense"``
    n_obs : cells
    arrays : ``data`` and ``indices`` of a sparse matrix, ``values`` of a dense one
    stored_bytes : on disk, row pointers included
    """

    order: str
    n_obs: int
    arrays: dict[str, ArrayForm]
    stored_bytes: int

    @property
    def codecs(self) -> str:
        """What its values are compressed by, in words; empty where by nothing."""
        used = dict.fromkeys(codec for array in self.arrays.values() for codec in array.codecs)
        return " + ".join(used)

    def lines(self) -> list[str]:
        """One line on the whole and one for each kind of array."""
        types = ", ".join(f"{name} {array.dtype}" for name, array in self.arrays.items())
        per_cell = self.stored_bytes / max(self.n_obs, 1)
        said = [f"{self.order}: {types}; {per_cell:,.0f} bytes a cell on disk"]
        described: dict[str, list[str]] = {}
        for name, array in self.arrays.items():
            described.setdefault(self._pieces(array), []).append(name)
        return said + [f"{' and '.join(names)}: {pieces}" for pieces, names in described.items()]

    def _pieces(self, array: ArrayForm) -> str:
        if array.chunks is None:
            return f"contiguous, {array.encoding}"
        size = " x ".join(f"{n:,}" for n in array.chunks)
        cells = f", {self._cells(array):,.1f} cells each" if self.order != "CSC" else ""
        return f"chunks of {size}{cells}, {array.encoding}"

    def _cells(self, array: ArrayForm) -> float:
        assert array.chunks is not None
        longest = array.shape[0] if self.order == "CSR" else self.n_obs
        return min(array.chunks[0], longest) * self.n_obs / max(longest, 1)


def form_of(path: Path | str, *names: str) -> Form | None:
    """The form of the first of these elements that an ``.h5ad``, ``.zarr`` or 10x ``.h5`` has, or None.

    A `str` is the URL of a remote one.
    """
    root = _open(path)
    if root is None:
        return None
    try:
        element = next((root[name] for name in names if name in root), None)
        return None if element is None else _element_form(element)
    finally:
        getattr(root, "close", lambda: None)()


def _element_form(element: Any) -> Form:
    encoding = str(element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", "")))
    if hasattr(element, "keys"):
        # The columns of a 10x matrix are cells, so that what it calls CSC is the CSR of cells.
        parts = {name: _array_form(element[name]) for name in ("data", "indices")}
        n_major = int(element["indptr"].shape[0]) - 1
        order = _ORDERS.get(encoding, "CSR")
        shape = element.attrs.get("shape", element.attrs.get("h5sparse_shape"))
        n_obs = n_major if order == "CSR" else int(shape[0])
        size = sum(part.stored_bytes for part in parts.values()) + _stored_bytes(element["indptr"])
        return Form(order, n_obs, parts, size)
    array = _array_form(element)
    return Form("dense", array.shape[0], {"values": array}, array.stored_bytes)


def _open(path: Path | str) -> Any:
    """The root of a file or store that can hold matrices in parts; None for anything else."""
    import h5py

    if isinstance(path, str):
        from scdd.data.formats.remote import RemoteFiles
        from scdd.data.formats.remote_root import open_root

        return open_root(RemoteFiles(path))
    if path.is_file():
        return h5py.File(path, "r") if h5py.is_hdf5(path) else None
    if not any((path / name).exists() for name in (".zgroup", "zarr.json")):
        return None
    import zarr

    return zarr.open_group(str(path), mode="r")


def _array_form(array: Any) -> ArrayForm:
    chunks = None if array.chunks is None else tuple(int(n) for n in array.chunks)
    shape = tuple(int(n) for n in array.shape)
    codecs = _filters(array) if hasattr(array, "id") else _zarr_codecs(array.metadata.to_dict())
    return ArrayForm(str(array.dtype), shape, chunks, codecs, _stored_bytes(array))


def _stored_bytes(array: Any) -> int:
    return int(array.id.get_storage_size() if hasattr(array, "id") else array.nbytes_stored())


def _filters(dataset: Any) -> tuple[str, ...]:
    plist = dataset.id.get_create_plist()
    found = (plist.get_filter(number) for number in range(plist.get_nfilters()))
    return tuple(_FILTERS.get(number, f"HDF5 filter {number}") for number, *_ in found)


def _zarr_codecs(metadata: dict[str, Any]) -> tuple[str, ...]:
    if int(metadata["zarr_format"]) == 2:
        applied = [*(metadata.get("filters") or ()), metadata.get("compressor")]
        return tuple(_zarr_name(codec["id"], codec) for codec in applied if codec)
    codecs = [_named(codec) for codec in metadata["codecs"]]
    for name, options in codecs:
        if name == "sharding_indexed":
            codecs = [_named(codec) for codec in options["codecs"]]
    return tuple(_zarr_name(name, options) for name, options in codecs if name != "bytes")


def _named(codec: Any) -> tuple[str, dict[str, Any]]:
    return (codec, {}) if isinstance(codec, str) else (codec["name"], codec.get("configuration") or {})


def _zarr_name(name: str, options: dict[str, Any]) -> str:
    inner = options.get("cname")
    own = name.removeprefix("numcodecs.")
    return f"{own} ({getattr(inner, 'value', inner)})" if inner else own
