"""scdd's own loader in the settings that are measured. All that is known here of its interface is in `loader_of`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from cases import N_TOKENS, Case, Stream
from peers import chosen_genes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scdd import Atlas

CHECKED_CELLS = 64


def atlas_of(path: Path) -> Atlas:
    """An h5ad, or the datasets of an annbatch collection as one atlas."""
    from scdd import Atlas

    return Atlas(str(path) if path.is_file() else [str(p) for p in sorted(path.glob("dataset_*"))])


def loader_of(atlas: Atlas, case: Case, *, block: int | None, cache: Path | None) -> Any:
    """The loader as a user would call it: two cores, a gibibyte, shuffled."""
    from scdd import CellLoader

    genes = None
    if case.output == "dense":
        genes = list(atlas.var_names[chosen_genes(atlas.n_vars)])
    options: dict[str, Any] = {"output": case.output, "normalise": case.output == "dense"}
    if case.output == "tokens":
        options = {"output": "tokens", "max_genes": N_TOKENS}
    return CellLoader(
        atlas,
        batch_size=case.batch,
        genes=genes,
        shuffle=True,
        seed=0,
        block_size=block,
        cache=cache,
        **options,
    )


def check(batch: Any, atlas: Atlas, case: Case) -> None:
    """Compare some cells of a batch with the rows as anndata reads them: no speed of a loader that is wrong."""
    rows = batch.row_ids[:CHECKED_CELLS]
    if case.output == "tokens":
        return
    expected = atlas.read(rows)
    if case.output == "csr":
        found = batch.x[: len(rows)]
        if (found != expected).nnz:
            raise SystemExit(f"{case.contender}: a batch differs from the rows of {case.source}")
        return
    totals = np.asarray(expected.sum(axis=1), dtype=np.float64)
    dense = np.log1p(expected[:, chosen_genes(atlas.n_vars)].toarray() * (1e4 / np.maximum(totals, 1)))
    np.testing.assert_allclose(batch.x[: len(rows)], dense, rtol=1e-5, atol=1e-6)


def opened(
    *, block: int | None = None, cached: bool = False, window: int | None = None
) -> Callable[[Path, Case], Stream]:
    """An opener as those of the peers, but of the folder: the cache lies beside the files."""

    def open_case(folder: Path, case: Case) -> Stream:
        path = case.path(folder)
        cache = folder / "gzip.packed" if cached else None
        atlas = atlas_of(path)
        loader = loader_of(atlas, case, block=block, cache=cache)
        iterator = iter(loader)
        check(next(iterator), atlas, case)
        del iterator
        if cached:  # the first epoch fills it
            for _ in loader:
                pass
        plan = loader.plan()
        note = f"variance inflation {plan.variance_inflation:.2f}"
        loader = loader_of(atlas, case, block=block, cache=cache)

        def epoch() -> Iterator[float]:
            return (float(len(batch.row_ids)) for batch in loader)  # tokens have no shape of cells

        return Stream(epoch, plan.window, round(plan.block_size), (cache,) if cache else (), note)

    return open_case


OURS = {
    "scdd": opened(),
    "scdd-32": opened(block=32),
    "scdd-64": opened(block=64),
    "scdd-512": opened(block=512),
    "scdd-cache": opened(cached=True),
}
