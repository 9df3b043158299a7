"""Types of the C++ extension; its docstrings say the rest."""

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.generic]

def gather_dense(
    data: _Array,
    indices: _Array,
    indptr: NDArray[np.int64],
    rows: NDArray[np.int64],
    column_of_gene: NDArray[np.int32],
    out: NDArray[np.float32],
    totals: NDArray[np.float64] | None = None,
    target_sum: float = 0.0,
    log1p: bool = False,
    mean: np.ndarray | None = None,
    inverse_std: np.ndarray | None = None,
    clip: float = 0.0,
    threads: int = 1,
) -> NDArray[np.float64]: ...
def gather_csr(
    data: _Array,
    indices: _Array,
    indptr: NDArray[np.int64],
    rows: NDArray[np.int64],
    column_of_gene: NDArray[np.int32] | None = None,
    n_vars: int | None = None,
    threads: int = 1,
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int64]]: ...
def row_totals(
    data: _Array, indptr: NDArray[np.int64], rows: NDArray[np.int64] | None = None
) -> NDArray[np.float64]: ...
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
) -> None: ...
def validate(indptr: NDArray[np.int64], indices: _Array, n_rows: int, n_vars: int, nnz: int) -> None: ...
def check_values(data: _Array) -> tuple[int, int, int, bool]: ...
