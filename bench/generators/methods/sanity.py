"""Generators that a scorer must catch: what they get wrong is known.

``genes_shuffled`` has every gene of a class right and nothing together; ``class_mean`` has no cell-to-cell
differences; ``copy_of_train`` is train itself; ``labels_shuffled`` has the right cells under the wrong names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from generators.methods.made import LABEL, Made, Watch, as_cells, each_class

if TYPE_CHECKING:
    from collections.abc import Callable

    from scipy import sparse

    from generators.tasks import Task


def _drawn(task: Task, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Train rows of the asked classes; again only once all of a class are used."""
    own, rows = task.train.obs[LABEL].to_numpy().astype(str), np.empty(len(labels), dtype=np.int64)
    for name, places in each_class(labels):
        rows[places] = np.resize(rng.permutation(np.flatnonzero(own == name)), len(places))
    return rows


def _copy(task: Task, labels: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    return task.train.X[_drawn(task, labels, rng)]


def _shuffled_genes(task: Task, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    own = task.train.obs[LABEL].to_numpy().astype(str)
    x = np.empty((len(labels), task.train.n_vars), dtype=np.float32)
    for name, places in each_class(labels):
        cells = task.train.X[own == name].toarray()
        which = rng.integers(len(cells), size=(len(places), cells.shape[1]))
        x[places] = np.take_along_axis(cells, which, axis=0)
    return x


def _class_mean(task: Task, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    own = task.train.obs[LABEL].to_numpy().astype(str)
    x = np.empty((len(labels), task.train.n_vars), dtype=np.float32)
    for name, places in each_class(labels):
        cells = task.train.X[own == name].toarray()
        x[places] = np.log1p(1e4 * cells / cells.sum(axis=1, keepdims=True)).mean(axis=0)
    return x


def _shuffled_labels(task: Task, labels: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    return _copy(task, rng.permutation(labels), rng)


def _as_method(draw: Callable[..., Any], *, log1p: bool = False) -> Callable[..., Made]:
    def method(task: Task, labels: np.ndarray, *, seed: int, settings: dict[str, Any]) -> Made:
        watch = Watch()
        cells = as_cells(draw(task, labels, np.random.default_rng(seed)), labels, task.train.var_names)
        if log1p:
            cells.uns["log1p"] = {"base": None}
        return Made(cells, 0.0, watch.lap())

    return method


METHODS = {
    "copy_of_train": _as_method(_copy),
    "genes_shuffled": _as_method(_shuffled_genes),
    "labels_shuffled": _as_method(_shuffled_labels),
    "class_mean": _as_method(_class_mean, log1p=True),
}
