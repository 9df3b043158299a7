"""The parameters of simulated atlases: a count model by class and batch, and how one is designed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scdd.errors import InputError


@dataclass(frozen=True)
class CountModel:
    """Parameters of the simulator, for K classes, B batches and G genes."""

    fraction: np.ndarray  # float64 [K, G], rows sum to 1
    batch_factor: np.ndarray  # float64 [B, G], 1 where a batch does nothing
    dispersion: np.ndarray  # float64 [G], α > 0
    log_size_mean: np.ndarray  # float64 [K], m
    log_size_sd: np.ndarray  # float64 [K], v
    proportion: np.ndarray  # float64 [K, B], of all cells, sums to 1
    var_names: pd.Index
    classes: list[str]
    batches: list[str]
    origin: str  # "design" or the name of the reference


def design_count_model(
    *,
    n_genes: int = 2_000,
    n_classes: int = 8,
    n_batches: int = 1,
    class_imbalance: float = 10.0,
    marker_fold: float = 8.0,
    batch_effect: float = 0.15,
    dispersion: float = 0.3,
    library_size: float = 1_500.0,
    library_sd: float = 0.35,
    seed: int = 0,
) -> CountModel:
    """Design a model: log-normal genes, f_cg ∝ e^(2 z_g), times `marker_fold` where g marks class c.

    Every class has up to 50 markers of its own, none below the median gene. Class proportions fall
    geometrically, p_c ∝ r^(−c/(K−1)), and batches are equally large with h_bg = e^(`batch_effect` z_bg).

    Parameters
    ----------
    n_genes, n_classes, n_batches
        G, K, B; every class needs a gene.
    class_imbalance
        r, largest class over smallest, at least 1.
    marker_fold, batch_effect, dispersion
        Fold change of markers, standard deviation of log h, α of every gene.
    library_size, library_sd
        Median counts of a cell and the standard deviation of their logarithm.
    seed
        Of the genes, markers and batch factors.

    Raises
    ------
    InputError
        A number out of range, or more classes than genes.
    """
    sizes = {"n_genes": n_genes, "n_classes": n_classes, "n_batches": n_batches}
    for name, value in {**sizes, "class_imbalance": class_imbalance}.items():
        at_least(name, value, 1, whole=name in sizes)
    for name, number in {
        "marker_fold": marker_fold,
        "dispersion": dispersion,
        "library_size": library_size,
    }.items():
        if not 0 < number < np.inf:
            raise InputError(f"{name} is {number!r}: give a positive number")
    for name, number in {"batch_effect": batch_effect, "library_sd": library_sd}.items():
        at_least(name, number, 0, whole=False)
    if n_classes > n_genes:
        raise InputError(f"n_classes is {n_classes} but n_genes {n_genes}: every class needs a marker gene")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    fraction = np.tile(rng.lognormal(0.0, 2.0, n_genes), (n_classes, 1))
    n_markers = max(1, min(50, n_genes // (2 * n_classes)))
    markers = rng.permutation(n_genes)[: n_classes * n_markers].reshape(n_classes, n_markers)
    # A fold change of a gene that is never seen marks nothing.
    fraction[:, markers.ravel()] = np.maximum(fraction[:, markers.ravel()], np.median(fraction))
    fraction[np.arange(n_classes)[:, None], markers] *= marker_fold
    proportion = class_imbalance ** -np.linspace(0.0, 1.0, n_classes)
    factor = (
        rng.lognormal(0.0, batch_effect, (n_batches, n_genes)) if n_batches > 1 else np.ones((1, n_genes))
    )
    return CountModel(
        fraction=fraction / fraction.sum(axis=1, keepdims=True),
        batch_factor=factor,
        dispersion=np.full(n_genes, dispersion),
        log_size_mean=np.full(n_classes, np.log(library_size)),
        log_size_sd=np.full(n_classes, library_sd),
        proportion=np.repeat((proportion / proportion.sum() / n_batches)[:, None], n_batches, axis=1),
        var_names=pd.Index(_numbered("gene", n_genes, 4)),
        classes=_numbered("class", n_classes),
        batches=_numbered("batch", n_batches),
        origin="design",
    )


def _numbered(stem: str, count: int, width: int = 1) -> list[str]:
    """Names numbered from 1, padded to one width so that sorting keeps their order."""
    width = max(width, len(str(count)))
    return [f"{stem}_{i + 1:0{width}d}" for i in range(count)]


def at_least(name: str, value: float, least: int, *, whole: bool = True) -> None:
    """Refuse what is no number, or no whole one, of at least ``least``."""
    kinds = (int, np.integer) if whole else (int, float, np.number)
    if isinstance(value, bool) or not isinstance(value, kinds) or not np.isfinite(value) or value < least:
        raise InputError(f"{name} is {value!r}: give a {'whole ' if whole else ''}number of at least {least}")
