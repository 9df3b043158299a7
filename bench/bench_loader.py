"""Rows to a dense, normalised batch: `scdd._csr.gather_dense` against scipy and numpy.

`python bench/bench_loader.py` prints the table of bench/README.md; `pytest bench/bench_loader.py` fronts
the same two functions with pytest-benchmark. Both are given the same rows, genes and cell totals to find.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from scipy import sparse

from scdd import _csr

if TYPE_CHECKING:
    from collections.abc import Callable

N_CELLS, N_GENES, PER_CELL, N_CHOSEN = 50_000, 20_000, 1_000, 2_000
TARGET_SUM = 1e4
REPEATS = 15


class Problem(NamedTuple):
    """A simulated atlas and the genes wanted of it."""

    matrix: sparse.csr_matrix
    chosen: np.ndarray
    column_of_gene: np.ndarray


def make_problem(*, n_cells: int = N_CELLS, seed: int = 0) -> Problem:
    """Counts with sorted genes, Poisson row sizes around PER_CELL and mostly ones, as cells have them."""
    rng = np.random.default_rng(seed)
    # Gene popularity is skewed, so that chosen genes are met as often as highly variable genes would be.
    weight = rng.lognormal(sigma=1.0, size=N_GENES)
    cumulative = np.cumsum(weight / weight.sum())
    rows = []
    for size in rng.poisson(PER_CELL, size=n_cells):
        rows.append(np.unique(np.searchsorted(cumulative, rng.random(size)).clip(max=N_GENES - 1)))
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    indices = np.concatenate(rows).astype(np.int32)
    data = rng.geometric(0.5, size=len(indices)).astype(np.float32)
    chosen = np.sort(rng.choice(N_GENES, N_CHOSEN, replace=False))
    column_of_gene = np.full(N_GENES, -1, dtype=np.int32)
    column_of_gene[chosen] = np.arange(N_CHOSEN)
    return Problem(
        sparse.csr_matrix((data, indices, indptr), shape=(n_cells, N_GENES)), chosen, column_of_gene
    )


def arrays_of(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As the extension takes them."""
    return problem.matrix.data, problem.matrix.indices, problem.matrix.indptr.astype(np.int64)


def with_scipy(problem: Problem, rows: np.ndarray) -> np.ndarray:
    """The usual way: slice rows, sum them, slice columns, scale, densify, log1p."""
    batch = problem.matrix[rows]
    totals = np.asarray(batch.sum(axis=1), dtype=np.float64).ravel()
    batch = batch[:, problem.chosen]
    scale = np.divide(TARGET_SUM, totals, out=np.zeros_like(totals), where=totals > 0).astype(np.float32)
    # log1p on the stored values only: scipy at its best.
    batch.data = np.log1p(batch.data * np.repeat(scale, np.diff(batch.indptr)))
    return batch.toarray()


def with_csr(
    problem: Problem, rows: np.ndarray, arrays: tuple[np.ndarray, np.ndarray, np.ndarray], threads: int
) -> np.ndarray:
    """The same in one pass."""
    out = np.empty((len(rows), N_CHOSEN), dtype=np.float32)
    _csr.gather_dense(*arrays, rows, problem.column_of_gene, out, None, TARGET_SUM, True, threads=threads)
    return out


class Cost(NamedTuple):
    """Seconds of one call: on the clock, and of all processors together."""

    wall: float
    cpu: float


def cost(function: Callable[[], object]) -> Cost:
    """Of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def compare(problem: Problem, batch_size: int) -> dict[str, Cost]:
    """Medians of interleaved runs: a busy neighbour slows all candidates alike."""
    arrays = arrays_of(problem)
    compact = (arrays[0].astype(np.uint8), arrays[1].astype(np.uint16), arrays[2])
    rng = np.random.default_rng(batch_size)
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "scipy + numpy": lambda rows: with_scipy(problem, rows),
        "gather_dense, 1 thread": lambda rows: with_csr(problem, rows, arrays, 1),
        "gather_dense, 2 threads": lambda rows: with_csr(problem, rows, arrays, 2),
        "gather_dense, 1 thread, uint8 counts, uint16 genes": lambda rows: with_csr(
            problem, rows, compact, 1
        ),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        rows = rng.choice(problem.matrix.shape[0], batch_size, replace=False)
        results = [way(rows) for way in ways.values()]
        for result in results[1:]:
            np.testing.assert_allclose(result, results[0], rtol=1e-5)
        for name, way in ways.items():
            # Fresh rows for each: none finds its rows in the cache because another has just read them.
            rows = rng.choice(problem.matrix.shape[0], batch_size, replace=False)
            costs[name].append(cost(lambda way=way, rows=rows: way(rows)))
    return {name: Cost(*np.median(all_costs, axis=0)) for name, all_costs in costs.items()}


def main() -> None:
    """Print the table."""
    problem = make_problem()
    print("| batch | way | ms a batch | cells/s | wall ratio | CPU ratio |\n|---|---|---|---|---|---|")
    for batch_size in (512, 4096):
        costs = compare(problem, batch_size)
        base = costs["scipy + numpy"]
        for name, own in costs.items():
            ratios = f"{base.wall / own.wall:.1f} | {base.cpu / own.cpu:.1f}"
            print(
                f"| {batch_size} | {name} | {own.wall * 1e3:.2f} | {batch_size / own.wall:,.0f} | {ratios} |"
            )


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(n_cells=10_000)


@pytest.mark.parametrize("way", ["scipy", "gather_dense"])
@pytest.mark.parametrize("batch_size", [512, 4096])
def test_dense_batch(benchmark, problem: Problem, way: str, batch_size: int) -> None:
    rows = np.random.default_rng(0).choice(problem.matrix.shape[0], batch_size, replace=False)
    arrays = arrays_of(problem)
    run = with_scipy if way == "scipy" else lambda p, r: with_csr(p, r, arrays, 2)
    benchmark(run, problem, rows)


if __name__ == "__main__":
    main()
