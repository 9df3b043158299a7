"""The verb: are generated cells like real ones, metric by metric, against what real cells score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from scdd.data.threads import thread_count
from scdd.errors import InputError
from scdd.evaluation.generated import by_class, families, published
from scdd.evaluation.generated.gathering import gather
from scdd.evaluation.generated.readings import ALL, long_table, mean_of_classes, tabulate
from scdd.evaluation.generated.report import Details, FidelityReport
from scdd.evaluation.generated.settings import FAMILIES, Settings
from scdd.evaluation.generated.views import view
from scdd.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from scdd.evaluation.generated.gathering import Draw, World
    from scdd.evaluation.generated.readings import Reading

_ALWAYS = {
    "two-sample": (families.two_sample,),
    "transport": (families.transport,),
    "support": (families.filled,),
    "genes": (families.genes,),
    "co-expression": (families.co_expression,),
    "memorising": (by_class.copied,),
}
_WITH_LABELS = {
    "two-sample": (by_class.distances,),
    "support": (by_class.filled,),
    "genes": (by_class.genes,),
    "markers": (by_class.fold_changes,),
    "conditions": (by_class.purity, by_class.learning),
    "composition": (families.composition,),
}


def fidelity(
    generated: Any,
    *,
    train: Any,
    test: Any,
    reference: Any = None,
    label_key: str | None = None,
    metrics: Sequence[str] | None = None,
    compat: Iterable[str] = (),
    max_cells: int = 2_000,
    draws: int = 3,
    seed: int = 0,
    n_genes: int = 2_000,
    expression: str = "auto",
    threads: int | None = None,
    progress: bool = True,
) -> FidelityReport:
    """Judge generated cells: ``excess = value(generated, test) - value(real, test)`` of every metric.

    The floor of every row is what a second real sample, of train, scores against test: as many cells of the
    same classes. Genes, scales and principal components are fitted on reference cells, never on cells that
    are compared. Intervals of the excess are over draws of four fifths of the cells, as a delete-d
    jackknife.

    Parameters
    ----------
    generated
        AnnData, path or Atlas with counts or log1p CP10k, made by any tool. Genes are matched by name.
    train, test
        Real cells: what the generator was trained on, and what it never saw (by donor where there are
        donors).
    reference
        Further real cells to fit the metric space on. None: a third of train is set aside for it, and is
        not in the floor.
    label_key
        Column of ``obs`` with the class, or the condition that was asked for. None: nothing by class.
    metrics
        Some of ``two-sample, transport, support, genes, co-expression, markers, conditions, memorising,
        composition``; all for None.
    compat
        Published variants to add as rows of their own, of which none is comparable with ours:
        ``"scrdit", "scdiffusion", "cfgen-2025", "cfgen-2026", "groundgan"``.
    max_cells
        Cells of each side in a draw, of the same classes; distances cost their square.
    draws, seed
        How many draws, and the first seed.
    n_genes
        Highly variable genes of the metric space.
    expression
        Kind of the generated values, where it is not whole counts or log1p: ``"fractional"``. Real cells of
        another kind are given as an ``Atlas``.
    threads
        Of the random forests; one a core by default. They change no result.
    progress
        Show a progress bar where there is a terminal.

    Returns
    -------
    FidelityReport
        A tidy table, a summary, figures; ``save`` writes CSV, HTML or Markdown.

    Raises
    ------
    InputError
        No or too few genes in common, a missing label column, generated classes that train lacks, too few
        cells, values that are NaN, negative or of mixed kinds, an unknown metric.
    """
    n_threads = thread_count(threads)
    settings = Settings(
        max_cells=max_cells,
        draws=draws,
        seed=seed,
        families=_chosen("metrics", metrics, FAMILIES),
        compat=_chosen("compat", compat, ()),
        n_genes=n_genes,
        expression=expression,
        threads=n_threads,
    )
    return judge(generated, train, test, reference, label_key=label_key, settings=settings, progress=progress)


def judge(
    generated: Any,
    train: Any,
    test: Any,
    reference: Any,
    *,
    label_key: str | None,
    settings: Settings,
    progress: bool,
) -> FidelityReport:
    """`fidelity` with every number of `Settings` open."""
    # Forests grow in ``threads`` threads; those of OpenMP and BLAS spin while they wait, which on a busy
    # machine costs ten times the work, and their sums depend on how many they are.
    with threadpool_limits(1):
        world = gather(generated, train, test, reference, label_key=label_key, settings=settings)
        readings = _measure(world, label_key is not None, progress=progress)
        seen = view(world.draw(settings.seed), world)
    table, each = tabulate(readings, world.share), long_table(readings)
    details = Details(
        label_key=label_key,
        classes=world.classes if label_key else (),
        cells=int(world.sizes.sum()),
        genes=tuple(world.genes),
        variable_genes=tuple(world.genes[world.space.variable]),
        settings=settings,
        notes=world.notes,
    )
    return FidelityReport(table, each, details, seen)


def _measure(world: World, labelled: bool, *, progress: bool) -> list[list[Reading]]:
    settings = world.settings
    tasks = _tasks(settings, labelled)
    found: list[list[Reading]] = []
    steps = settings.draws * len(tasks) + len(settings.compat)
    with progress_bar("Fidelity", steps, enabled=progress) as advance:
        for number in range(settings.draws):
            draw, readings = world.draw(settings.seed + number), []
            for name, task in tasks:
                readings += task(draw, world)
                advance(note=name)
            readings += mean_of_classes(readings)
            for name in settings.compat if not number else ():
                readings += published.variant(name, draw, world)
                advance(note=name)
            total = len(draw.test)
            found.append([r._replace(cells=total) if r.group == ALL else r for r in readings])
    return found


def _tasks(settings: Settings, labelled: bool) -> list[tuple[str, Callable[[Draw, World], list[Reading]]]]:
    found: list[tuple[str, Callable[[Draw, World], list[Reading]]]] = []
    for name in settings.families:
        found += [(name, task) for task in _ALWAYS.get(name, ())]
        found += [(name, task) for task in _WITH_LABELS.get(name, ()) if labelled]
    if not found:
        raise InputError(f"metrics={list(settings.families)} need classes; name their column with label_key")
    return found


def _chosen(option: str, wanted: Iterable[str] | None, every: tuple[str, ...]) -> tuple[str, ...]:
    if wanted is None:
        return every
    if isinstance(wanted, str):
        raise InputError(f"{option}={wanted!r}; give a list of names, e.g. [{wanted!r}]")
    chosen = tuple(wanted)
    # In a fixed order: a set has none, and the table should not depend on it.
    return tuple(sorted(chosen)) if isinstance(wanted, (set, frozenset)) else chosen
