"""What is compared: pools of generated, test and second real cells, and the draws from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scdd.errors import InputError
from scdd.evaluation.generated import opening
from scdd.evaluation.generated.memorising import nearest_train
from scdd.evaluation.generated.space import Cells, MetricSpace
from scdd.evaluation.generated.two_sample import median_distance
from scdd.evaluation.inputs import sample_rows

if TYPE_CHECKING:
    import pandas as pd

    from scdd.evaluation.generated.opening import Opened, Reader
    from scdd.evaluation.generated.settings import Settings


class Draw(NamedTuple):
    """Equally many cells of the same classes: generated, test, and real cells for the floor."""

    generated: Cells
    test: Cells
    floor: Cells
    seed: int


@dataclass(frozen=True)
class World:
    """All that the metrics need.

    ``pools`` are the cells draws come from, ``fitting`` train cells for classifiers. ``units`` are median
    squared distances by space, ``sizes`` cells of each class in a draw, ``share`` how much of the smallest
    pool a draw holds; ``frequencies`` the composition of the sources.
    """

    space: MetricSpace
    genes: pd.Index
    classes: tuple[str, ...]
    pools: dict[str, Cells]
    fitting: Cells
    units: dict[str, float]
    sizes: np.ndarray
    share: float
    frequencies: dict[str, np.ndarray]
    notes: tuple[str, ...]
    settings: Settings

    def draw(self, seed: int) -> Draw:
        """Cells of a seed, ``sizes`` of every class from every pool, without replacement."""
        rng = np.random.default_rng(seed)
        made, test, floor = (_draw(self.pools[n], self.sizes, rng) for n in ("generated", "test", "floor"))
        return Draw(made, test, floor, seed)


def gather(
    generated: Any, train: Any, test: Any, reference: Any, *, label_key: str | None, settings: Settings
) -> World:
    """Open everything, agree on genes and classes, fit the space on reference, fill the pools."""
    parts, notes = _open_all(generated, train, test, reference, label_key, settings.expression)
    sides = [part for name, part in parts.items() if name != "generated"]
    genes, said = opening.shared_genes(parts["generated"], sides)
    readers, read_notes = opening.readers(list(parts.values()), genes)
    rows, split_notes = _part_rows(parts, settings)
    space, units = _fit(parts, readers, rows["reference"], genes, settings)
    pools = {
        name: space.place(readers[side].read(rows[name]), parts[side].codes[rows[name]])
        for name, side in (("generated", "generated"), ("test", "test"), ("floor", "train"))
    }
    if "memorising" in settings.families:
        _measure_to_train(pools, readers["train"], space)
    fitting = space.place(readers["train"].read(rows["fitting"]), parts["train"].codes[rows["fitting"]])
    classes = parts["train"].own
    sizes, share, size_notes = _sizes(pools, len(classes), label_key, settings)
    notes += said + read_notes + split_notes + size_notes
    notes.append(f"{len(space.variable):,} highly variable genes ({space.flavor}) of the reference.")
    notes += _reference_notes(len(rows["reference"]), len(space.components))
    notes += opening.scale_notes(pools["generated"].x, pools["test"].x)
    frequencies = {name: _frequencies(parts[name], len(classes)) for name in ("generated", "train", "test")}
    return World(
        space, genes, classes, pools, fitting, units, sizes, share, frequencies, tuple(notes), settings
    )


def _reference_notes(n: int, components: int) -> list[str]:
    if n >= 20 * components:
        return []
    return [
        f"{n:,} reference cells are few for {components} components, which fit the noise of those very cells;"
        " give reference= or more train cells."
    ]


def _fit(
    parts: dict[str, Opened],
    readers: dict[str, Reader],
    rows: np.ndarray,
    genes: pd.Index,
    settings: Settings,
) -> tuple[MetricSpace, dict[str, float]]:
    """The space of the reference cells, and the median squared distances among them."""
    side = "reference" if "reference" in parts else "train"
    x = readers[side].read(rows)
    how = {"n_genes": settings.n_genes, "n_components": settings.n_components}
    space = MetricSpace.fit(parts[side].atlas.subset(rows), genes, x, **how)
    cells = space.place(x, np.zeros(len(rows), dtype=np.int64))
    return space, {"genes": median_distance(cells.genes), "PCs": median_distance(cells.pcs)}


def _measure_to_train(pools: dict[str, Cells], train: Reader, space: MetricSpace) -> None:
    """Distances of generated and test cells to all train cells, which are read once."""
    made, test = pools["generated"], pools["test"]
    blocks = (space.project(block[:, space.variable].toarray()) for block in train.blocks())
    found = nearest_train(np.vstack([made.pcs, test.pcs]), blocks)
    pools["generated"] = replace(made, to_train=found[: len(made)])
    pools["test"] = replace(test, to_train=found[len(made) :])


def _open_all(
    generated: Any, train: Any, test: Any, reference: Any, label_key: str | None, expression: str
) -> tuple[dict[str, Opened], list[str]]:
    sources = {"generated": generated, "train": train, "test": test}
    kind = {"generated": expression}
    atlases = {
        name: opening.open_cells(name, source, label_key, kind.get(name, "auto"))
        for name, source in sources.items()
    }
    first = opening.with_codes("train", atlases["train"], label_key)
    parts = {"train": first}
    for name in ("generated", "test"):
        parts[name] = opening.with_codes(name, atlases[name], label_key, first.own)
    if reference is not None:
        atlas = opening.open_cells("reference", reference, None)
        parts["reference"] = opening.with_codes("reference", atlas, None)
    notes = opening.check_classes(parts["generated"], first, parts["test"], label_key)
    return parts, notes + opening.leak_notes(atlases["train"], atlases["test"])


def _part_rows(parts: dict[str, Opened], settings: Settings) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rows of the reference, of the pools (four times ``max_cells`` at most) and for the classifiers."""
    codes, most = parts["train"].codes, 4 * settings.max_cells
    if "reference" in parts:
        n = parts["reference"].atlas.n_obs
        kept = sample_rows(parts["reference"].codes, settings.max_reference, 0)
        left = np.arange(len(codes))
        notes = [f"Genes, scales and components are fitted on {len(kept):,} of {n:,} reference cells."]
    else:
        kept = _third(codes, settings.max_reference)
        left = np.setdiff1d(np.arange(len(codes)), kept)
        notes = [
            f"No reference given: {len(kept):,} of {len(codes):,} train cells are set aside for genes, scales"
            " and components; the floor comes from the other train cells."
        ]
    rows = {"reference": kept, "floor": left[sample_rows(codes[left], most, 1)]}
    for name in ("generated", "test"):
        known = np.flatnonzero(parts[name].codes >= 0)
        rows[name] = known[sample_rows(parts[name].codes[known], most, 2)]
    rows["fitting"] = sample_rows(codes, settings.max_fitting, 3)
    return rows, notes


def _third(codes: np.ndarray, most: int) -> np.ndarray:
    """A third of every class, rounded down where a cell more would leave none, ``most`` cells at most."""
    return sample_rows(codes, min(most, len(codes) // 3), 0)


def _sizes(
    pools: dict[str, Cells], n_classes: int, label_key: str | None, settings: Settings
) -> tuple[np.ndarray, float, list[str]]:
    """Cells of every class in a draw: of what the smallest pool has four fifths, for the interval."""
    counts = np.array([np.bincount(pool.codes, minlength=n_classes) for pool in pools.values()])
    least = counts.min(axis=0)
    share = min(0.8 if settings.draws > 1 else 1.0, settings.max_cells / max(least.sum(), 1))
    sizes = np.floor(least * share + 0.5).astype(np.int64)
    total = int(sizes.sum())
    if total < opening.FEWEST:
        raise InputError(
            f"only {total} cells of each side can be compared class by class (the smaller of generated, test "
            f"and train in every class of obs[{label_key!r}]); give at least {opening.FEWEST}"
        )
    notes = [
        f"{settings.draws} draws of {total:,} generated, test and floor cells each"
        + (", of the same classes." if label_key else ".")
    ]
    return sizes, min(total / max(least.sum(), 1), 0.95), notes


def _draw(pool: Cells, sizes: np.ndarray, rng: np.random.Generator) -> Cells:
    rows = [
        rng.choice(np.flatnonzero(pool.codes == code), size=size, replace=False)
        for code, size in enumerate(sizes)
        if size
    ]
    # Mixed: some published metrics depend on the order of rows.
    return pool.take(rng.permutation(np.concatenate(rows)))


def _frequencies(part: Opened, n_classes: int) -> np.ndarray:
    known = part.codes[part.codes >= 0]
    counts = np.bincount(known, minlength=n_classes)
    return counts / max(counts.sum(), 1)
