"""Types of the C++ extension; its docstrings say the rest."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.generic]
_CsrParts = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int64], NDArray[np.float64]]

def row_totals(
    data: _Array, indptr: NDArray[np.int64], rows: NDArray[np.int64] | None = None
) -> NDArray[np.float64]: ...
def validate(indptr: NDArray[np.int64], indices: _Array, n_rows: int, n_vars: int, nnz: int) -> None: ...
def check_values(data: _Array) -> tuple[int, int, int, bool]: ...
def gather_dense(
    data: _Array,
    indices: _Array,
    indptr: NDArray[np.int64],
    rows: NDArray[np.int64],
    column_of_gene: NDArray[np.int32],
    out: np.ndarray,
    totals: NDArray[np.float64] | None = None,
    target_sum: float = 0.0,
    log1p: bool = False,
    mean: np.ndarray | None = None,
    inverse_std: np.ndarray | None = None,
    clip: float = 0.0,
    bfloat16: bool = False,
    threads: int = 1,
) -> NDArray[np.float64]: ...
def gather_csr(
    data: _Array,
    indices: _Array,
    indptr: NDArray[np.int64],
    rows: NDArray[np.int64],
    column_of_gene: NDArray[np.int32] | None = None,
    n_vars: int | None = None,
    target_sum: float = 0.0,
    log1p: bool = False,
    data_buffer: NDArray[np.float32] | None = None,
    indices_buffer: NDArray[np.int32] | None = None,
    threads: int = 1,
) -> _CsrParts: ...
def column_moments(
    data: _Array,
    indices: _Array,
    indptr: NDArray[np.int64],
    n_vars: int,
    row_scale: NDArray[np.float64] | None,
    log1p: bool,
    clip_max: NDArray[np.float64] | None,
    sum: NDArray[np.float64],
    sum_of_squares: NDArray[np.float64],
    nonzero: NDArray[np.float64],
    threads: int = 1,
) -> None: ...
def row_statistics(
    data: _Array,
    indices: _Array,
    indptr: NDArray[np.int64],
    n_vars: int,
    mask: NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]: ...
def csr_times_dense(
    data: _Array,
    indices: _Array,
    indptr: NDArray[np.int64],
    n_vars: int,
    dense: np.ndarray,
    row_scale: NDArray[np.float64] | None,
    log1p: bool,
    out: np.ndarray,
    threads: int = 1,
) -> None: ...
def csr_transposed_times_dense(
    data: _Array,
    indices: _Array,
    indptr: NDArray[np.int64],
    n_vars: int,
    dense: np.ndarray,
    row_scale: NDArray[np.float64] | None,
    log1p: bool,
    out: NDArray[np.float64],
    threads: int = 1,
) -> None: ...
def codecs() -> dict[str, str | None]: ...
def decode_chunk(
    encoded: bytes | bytearray | memoryview | NDArray[np.uint8],
    steps: list[tuple[str, int, int]],
    filter_mask: int,
    chunk_bytes: int,
    wanted: int,
) -> NDArray[np.uint8]: ...
def pack_rows(
    data: _Array, indices: _Array, indptr: NDArray[np.int64], n_vars: int, threads: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]: ...
def unpack_rows(
    bytes: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64] | None,
    n_vars: int,
    threads: int = 1,
    simd: str = "auto",
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int64]]: ...
def packed_totals(
    bytes: NDArray[np.uint8], offsets: NDArray[np.int64], rows: NDArray[np.int64] | None = None
) -> NDArray[np.float64]: ...
def packed_simd() -> list[str]: ...
def widen(numbers: _Array, genes: bool, lead: int = 0, simd: str = "scalar") -> tuple[_Array, bool]: ...
def gather_tokens(
    data: _Array,
    indices: _Array,
    indptr: NDArray[np.int64],
    rows: NDArray[np.int64],
    token_of_gene: NDArray[np.int32],
    gene_scale: NDArray[np.float32] | None = None,
    max_genes: int = 2046,
    target_sum: float = 1e4,
    log1p: bool = True,
    logged: bool = False,
    detected: NDArray[np.int32] | None = None,
    max_tokens: int = 2147483647,
    threads: int = 1,
) -> tuple[
    NDArray[np.int32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int32], NDArray[np.float64]
]: ...
def tile_schedule(
    starts: NDArray[np.int64], tile_rows: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...
def bin_values(
    values: NDArray[np.float32], edges: NDArray[np.float32], threads: int = 1
) -> NDArray[np.int16]: ...

class StoreError(OSError): ...
class DecodeError(ValueError): ...
class Cancelled(Exception): ...

class Cancel:
    def request(self) -> None: ...
    @property
    def requested(self) -> bool: ...

class WindowMemory:
    edge_bytes: int
    def __init__(self, segment_bytes: int = 2**21, edge_bytes: int = 0) -> None: ...

class _Rows:
    """As the functions of these names, of the source's own rows."""

    n_rows: int
    n_vars: int
    def gather_dense(
        self, rows: np.ndarray, column_of_gene: np.ndarray, out: np.ndarray, **how: Any
    ) -> np.ndarray: ...
    def gather_csr(self, rows: np.ndarray, column_of_gene: np.ndarray | None = None, **how: Any) -> tuple: ...
    def gather_tokens(
        self, rows: np.ndarray, token_of_gene: np.ndarray, gene_scale: Any = None, **how: Any
    ) -> tuple: ...

class Window(_Rows):
    nbytes: int
    def __init__(self, n_rows: int, n_vars: int, memory: WindowMemory) -> None: ...
    def totals(self, rows: NDArray[np.int64]) -> NDArray[np.float64]: ...
    def put_rows(
        self,
        data: _Array,
        indices: _Array,
        indptr: NDArray[np.int64],
        rows: NDArray[np.int64],
        slots: NDArray[np.int64],
        column_of_gene: NDArray[np.int32] | None = None,
        *,
        n_vars: int,
    ) -> tuple[int, int, int, int]: ...

class PackedRows(_Rows):
    def __init__(
        self, bytes: NDArray[np.uint8], offsets: NDArray[np.int64], n_vars: int, simd: str = "auto"
    ) -> None: ...

class ChunkedArray:
    length: int
    chunk_length: int
    stored: bool
    cheap_prefix: bool
    def __init__(
        self,
        name: str,
        paths: list[str],
        file_of_chunk: NDArray[np.int32],
        offsets: NDArray[np.int64],
        sizes: NDArray[np.int64],
        masks: NDArray[np.uint32],
        chunk_length: int,
        length: int,
        dtype: str,
        swapped: bool,
        steps: list[tuple[str, int, int]],
        fill_value: float = 0.0,
    ) -> None: ...
    def read(self, begin: int, end: int) -> NDArray[np.uint8]: ...

class StoredCsr:
    cheap_prefix: bool
    def __init__(
        self, place: str, data: ChunkedArray, indices: ChunkedArray, indptr: NDArray[np.int64], n_vars: int
    ) -> None: ...
    def read(
        self, rows: NDArray[np.int64], threads: int = 1, cancel: Cancel | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int64], tuple[int, int, int, int]]: ...
    def read_into(
        self,
        window: Window,
        rows: NDArray[np.int64],
        slots: NDArray[np.int64],
        column_of_gene: NDArray[np.int32] | None = None,
        threads: int = 1,
        cancel: Cancel | None = None,
    ) -> tuple[int, int, int, int]: ...
