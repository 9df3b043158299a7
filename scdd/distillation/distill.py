"""`scdd.distill`: a labelled atlas in, a few rows a class out, by scDD or by a simple rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from scdd.data.atlas import Atlas
from scdd.data.preprocess import Preprocessor
from scdd.distillation.artefact import Rows, as_anndata, provenance
from scdd.distillation.budget import rows_per_class
from scdd.distillation.candidates import Candidates
from scdd.distillation.codes import initial_codes
from scdd.distillation.optimise import Codes, MatchingConfig, optimise
from scdd.distillation.rendering import Background, Renderer
from scdd.distillation.selectors import SELECTORS
from scdd.errors import InputError
from scdd.models.scdg import SCDG

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import anndata

METHODS = ("scdd", "kmeans_decode", *SELECTORS)
# Matching settings of each preset; those of the generator are in scdd.models.config.
MATCHING = {
    "fast": MatchingConfig(),
    "quality": MatchingConfig(iterations=600, width=1_024),
    "faithful": MatchingConfig(objective="dc+dm", iterations=1_000, lr=0.01, support=0.0, depth=2),
}


class Task(NamedTuple):
    """What every method is given."""

    atlas: Atlas
    label_key: str
    names: list[str]
    budget: np.ndarray
    preprocessor: Preprocessor
    candidates: Candidates
    seed: int


def distill(
    atlas: Any,
    *,
    label_key: str,
    cells_per_class: int | None = None,
    total: int | None = None,
    allocation: str = "balanced",
    method: str = "scdd",
    preset: str = "fast",
    init: str | None = None,
    rendering: str | None = None,
    shrinkage: float = 0.8,
    generator: SCDG | None = None,
    conditions: Sequence[str] = (),
    n_top_genes: int | None = 2_000,
    genes: Iterable[str] | None = None,
    expression: str = "counts",
    layer: str = "auto",
    device: str = "auto",
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | None = None,
    matching: dict[str, Any] | None = None,
    **changes: Any,
) -> anndata.AnnData:
    """Distil an atlas into a few rows a class.

    Parameters
    ----------
    atlas
        Training cells: an :class:`scdd.Atlas`, AnnData, path or list of paths. Keep test cells out of it.
    label_key
        The ``obs`` column of the classes.
    cells_per_class, total, allocation
        The budget: rows for each class, or rows in all, ``"balanced"`` or ``"proportional"``. 10 rows a
        class if neither is given.
    method
        ``"scdd"``, ``"kmeans_decode"`` (cluster centres of the codes, decoded, weighted by cluster mass),
        or a rule over real cells: see ``scdd.distillation.selectors.SELECTORS``.
    preset
        ``"fast"`` (a laptop), ``"quality"``, or ``"faithful"``: scDD as reconstructed from its abstract,
        i.e. random codes, means only, gradient and distribution matching.
    init
        Where codes start: ``"random"``, ``"prior"``, ``"real"``, ``"kmeans"`` or a selector's name.
    rendering, shrinkage
        ``"spectrum"``, ``"mean"`` or ``"draw"``: see :mod:`scdd.distillation.rendering`.
    generator
        A trained :class:`scdd.SCDG` to reuse; trained here if absent.
    conditions
        Further ``obs`` columns for the generator; their values follow the training composition.
    matching, **changes
        Single settings of :class:`MatchingConfig`, and of :class:`scdd.models.config.SCDGConfig`.

    Returns
    -------
    AnnData
        X: log1p CP10k float32. ``obs``: the label, ``weight`` (mean 1 in each class) and ``n_cells`` (real
        cells a row stands for). ``uns["scdd"]``: provenance. ``obsm["X_code"]``: the codes, for scdd.

    Raises
    ------
    InputError
        Missing column, unlabelled cells, a class of one cell, an impossible budget, unknown names.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r}; choose one of {', '.join(METHODS)}")
    if preset not in MATCHING:
        raise InputError(f"preset={preset!r}; choose one of {', '.join(MATCHING)}")
    unused = [*changes, *(["generator"] if generator else [])] if method in SELECTORS else []
    unused += list(changes) if generator else []
    if unused:
        raise InputError(f"{unused[0]}= has no effect with method={method!r} and a given generator or a rule")
    if generator is not None and genes is not None and list(genes) != list(generator.preprocessor.genes):
        raise InputError("genes= differs from the genes that the generator was trained on; leave it out")
    if cells_per_class is None and total is None:
        cells_per_class = 10
    atlas = Atlas.of(atlas, expression=expression, layer=layer).within_memory()
    labels = atlas.labels(label_key)
    budget = rows_per_class(labels, cells_per_class=cells_per_class, total=total, allocation=allocation)
    if len(labels.names) < 2:
        raise InputError(
            f"obs[{label_key!r}] has one class ({labels.names[0]!r}); distillation needs two or more"
        )
    if generator is None and preset == "faithful" and genes is None:
        n_top_genes = None
    preprocessor = (
        generator.preprocessor if generator else Preprocessor.fit(atlas, n_top_genes=n_top_genes, genes=genes)
    )
    candidates = Candidates(atlas, labels.codes, preprocessor, seed=seed)
    task = Task(atlas, label_key, labels.names, budget, preprocessor, candidates, seed)
    settings: dict[str, Any] = {
        "budget": {"cells_per_class": cells_per_class, "total": total, "allocation": allocation},
        "genes": preprocessor.n_genes,
        "preset": preset,
        "conditions": list(conditions),
        "source_expression": atlas.expression,
    }
    if method in SELECTORS:
        rows = _select(task, method)
    else:
        if generator is None:
            changes = {"seed": seed, "device": device, **changes}
            generator = SCDG(
                atlas,
                label_key=label_key,
                conditions=conditions,
                preset=preset,
                preprocessor=preprocessor,
                **changes,
            ).fit(checkpoint=checkpoint, progress=progress)
        _check_generator(generator, task)
        if method == "kmeans_decode":
            rows = _decode_clusters(task, generator)
        else:
            faithful = preset == "faithful"
            choice = {
                "init": init or ("random" if faithful or generator.config.code_is_noise else "kmeans"),
                "rendering": rendering or ("mean" if faithful else "spectrum"),
                "shrinkage": 0.0 if faithful else shrinkage,
                "code_noise": faithful,
            }
            config = MatchingConfig(**{**MATCHING[preset].__dict__, **(matching or {})})
            rows = _optimise(task, generator, config, progress=progress, **choice)  # type: ignore[arg-type]
            settings |= {**choice, "matching": dict(config.__dict__)}
    return as_anndata(
        task.preprocessor,
        label_key,
        labels.names,
        rows,
        provenance(task.atlas, method, seed, settings, generator),
    )


def _select(task: Task, method: str) -> Rows:
    """Rows of a rule over real cells, class by class."""
    rng = np.random.default_rng(task.seed)
    chosen = [
        SELECTORS[method].function(task.candidates.cells(k), int(n), rng) for k, n in enumerate(task.budget)
    ]
    label = np.repeat(np.arange(len(chosen)), [len(c.weight) for c in chosen])
    rows = np.concatenate([c.rows for c in chosen])
    names = np.array([str(task.atlas.obs.index[r]) if r >= 0 else "" for r in rows], dtype=object)
    # A capped class stands for all of its cells, not only for those that were looked at.
    mass = [c.weight * task.candidates.sizes[k] / c.weight.sum() for k, c in enumerate(chosen)]
    return Rows(np.concatenate([c.expression for c in chosen]), label, np.concatenate(mass), source=names)


def _decode_clusters(task: Task, generator: SCDG) -> Rows:
    """Per-class k-means of the codes, decoded, weighted by cluster mass (cf. DDOQ, arXiv 2501.07681)."""
    rng = np.random.default_rng(task.seed)
    rule = SELECTORS["weighted_centroids"].function
    codes, mass, label = [], [], []
    for k, n in enumerate(task.budget):
        cells = task.candidates.cells(k)
        z = generator.autoencoder.net.encode(torch.from_numpy(cells.expression)).numpy()
        chosen = rule(cells._replace(expression=z, embedding=z), int(n), rng)
        codes.append(chosen.expression)
        mass.append(chosen.weight * task.candidates.sizes[k] / chosen.weight.sum())
        label.append(np.full(len(chosen.weight), k))
    z, which = np.concatenate(codes), np.concatenate(label)
    own = torch.from_numpy(_classes(task, generator)[which])
    totals = generator.priors.typical_totals(own).numpy()
    return Rows(generator.autoencoder.decode(z, totals), which, np.concatenate(mass), codes=z)


def _optimise(
    task: Task,
    generator: SCDG,
    config: MatchingConfig,
    *,
    init: str,
    rendering: str,
    shrinkage: float,
    code_noise: bool,
    progress: bool,
) -> Rows:
    """scDD: codes optimised through the frozen generator, then rendered."""
    label = torch.from_numpy(np.repeat(np.arange(len(task.budget)), task.budget))
    rank = torch.from_numpy(np.concatenate([np.arange(n) for n in task.budget]))
    fields = torch.from_numpy(_fields(task, generator, label.numpy()))
    classes = _classes(task, generator)
    own = torch.from_numpy(classes)[label]  # the generator may know more classes than this atlas has
    start = initial_codes(generator, task.candidates, task.budget, classes, init, task.seed)
    # Matching codes carry no noise of their own: a frozen draw would displace each row by a random
    # direction of its class, which one row a class cannot average out.
    eps = torch.zeros_like(start)
    if code_noise or generator.config.code_is_noise:
        eps = torch.randn(start.shape, generator=torch.Generator().manual_seed(task.seed + 1))

    def latent(z: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return generator.latent(z, eps[rows], fields[rows])

    renderer = Renderer(
        generator.autoencoder.net, rank, torch.from_numpy(task.budget)[label],
        generator.priors.typical_totals(own), _background(task.candidates),
        rendering=rendering, shrinkage=shrinkage, seed=task.seed,
    )  # fmt: skip
    net = generator.autoencoder.net

    def excess(z: torch.Tensor) -> torch.Tensor:
        if generator.config.code_is_noise:
            return (z.square().mean(1) - 1).clamp_min(0)
        return generator.priors.excess(z, own)

    codes = Codes(start, label, latent, excess)
    scale = net.gene_mean, net.gene_std
    z, history = optimise(codes, renderer, task.candidates, scale, config, seed=task.seed, progress=progress)
    with torch.no_grad():
        x = renderer.rows(latent(z, torch.arange(len(z)))).numpy()
    mass = task.candidates.sizes[label.numpy()] / task.budget[label.numpy()]
    return Rows(x, label.numpy(), mass, codes=z.numpy(), depth=renderer.depth.numpy(), history=history)


def _classes(task: Task, generator: SCDG) -> np.ndarray:
    """The generator's number of every class of the task, int64 [C]."""
    known = generator.conditions.values[0]
    return np.array([known.index(name) for name in task.names], dtype=np.int64)


def _fields(task: Task, generator: SCDG, label: np.ndarray) -> np.ndarray:
    """Condition codes of every row: its class, and other columns as they go with it in training."""
    values = np.array(task.names, dtype=object)[label]
    fields = generator.conditions.encode({task.label_key: values}, len(label))
    return generator.conditions.complete(fields, np.random.default_rng(task.seed))


def _background(candidates: Candidates) -> Background:
    """Mean over classes, each counted alike, and the pooled within-class standard deviation."""
    means, squares = [], []
    for k in range(candidates.classes):
        x = torch.from_numpy(candidates.expression(k))
        means.append(x.mean(0))
        squares.append(x.var(0, correction=0))
    return Background(torch.stack(means).mean(0), torch.stack(squares).mean(0).sqrt().clamp_min(1e-3))


def _check_generator(generator: SCDG, task: Task) -> None:
    generator._require_fit()
    if generator.label_key != task.label_key:
        raise InputError(f"the generator was trained on obs[{generator.label_key!r}], not {task.label_key!r}")
    unknown = set(task.names) - set(generator.conditions.values[0])
    if unknown:
        raise InputError(
            f"the generator does not know the class {sorted(unknown)[0]!r}; train it on this atlas"
        )
