"""How like real cells the rows look: zeros, library sizes, genes detected, class means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scdd.evaluation.inputs import CellSet, Inputs


@dataclass(frozen=True)
class Fidelity:
    """Real cells against distilled rows, over the shared genes.

    Attributes
    ----------
    zero_real, zero_distilled
        Share of zeros of every gene [G].
    library_real, library_distilled
        ``sum_g expm1(x_g)`` of every cell [n], at most 10,000.
    detected_real, detected_distilled
        Genes above zero of every cell [n].
    class_correlation
        Pearson correlation of class means over genes, by class name; NaN where a mean is constant.
    """

    zero_real: np.ndarray
    zero_distilled: np.ndarray
    library_real: np.ndarray
    library_distilled: np.ndarray
    detected_real: np.ndarray
    detected_distilled: np.ndarray
    class_correlation: dict[str, float]


def measure(inputs: Inputs, *, n_real: int = 4_000, seed: int = 0) -> Fidelity:
    """Compare the distilled rows with up to about ``n_real`` real cells of the same class mix.

    Without the same mix, a set of ten rows a class would differ from an atlas by its classes alone.
    """
    made = inputs.distilled
    real = _same_mix(inputs.real, made, len(inputs.classes), n_real, seed)
    return Fidelity(
        (real.x == 0).mean(axis=0),
        (made.x == 0).mean(axis=0),
        _library(real.x),
        _library(made.x),
        (real.x > 0).sum(axis=1),
        (made.x > 0).sum(axis=1),
        _class_correlation(inputs),
    )


def _same_mix(real: CellSet, made: CellSet, n_classes: int, n_real: int, seed: int) -> CellSet:
    wanted = made.class_sizes(n_classes).astype(float)
    wanted[real.class_sizes(n_classes) == 0] = 0.0
    if not wanted.any():
        return real
    rng = np.random.default_rng(seed)
    kept = []
    for code in np.flatnonzero(wanted):
        members = np.flatnonzero(real.codes == code)
        size = max(1, round(n_real * wanted[code] / wanted.sum()))
        # A class with too few cells is gone through again and again, or the mix would not hold.
        kept.append(np.resize(rng.permutation(members), size))
    return real.take(np.concatenate(kept))


def _library(x: np.ndarray) -> np.ndarray:
    return np.expm1(x, dtype=np.float64).sum(axis=1)


def _class_correlation(inputs: Inputs) -> dict[str, float]:
    found = {}
    for code, name in enumerate(inputs.classes):
        real, made = inputs.real.codes == code, inputs.distilled.codes == code
        if real.any() and made.any():
            weight = None if inputs.distilled.weight is None else inputs.distilled.weight[made]
            found[name] = _pearson(inputs.real.x[real].mean(axis=0), _mean(inputs.distilled.x[made], weight))
    return found


def _mean(x: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    return np.average(x.astype(np.float64), axis=0, weights=weight)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")
