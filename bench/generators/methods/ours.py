"""The generators of scdd, by their presets; settings are those of their configurations."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import scdd
from generators.methods.made import LABEL, Made, Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from generators.tasks import Task

_WARM_UP, _TIMED = 2, 12


def _as_method(model: Callable[[], Any], preset: str | None = None) -> Callable[..., Made]:
    def method(task: Task, labels: np.ndarray, *, seed: int, settings: dict[str, Any]) -> Made:
        """Settings: any of the model; ``sample`` is passed to generate(), ``minutes`` bounds the training."""
        changes = {"preset": preset, **settings} if preset else dict(settings)
        how, minutes = changes.pop("sample", {}), changes.pop("minutes", None)
        if minutes is not None:
            changes["steps"] = _steps_within(model(), task, minutes, changes)
        watch = Watch()
        fitted = model()(task.train, label_key=LABEL, seed=seed, **changes).fit(progress=False)
        trained = watch.lap()
        note = "" if minutes is None else f"{changes['steps']} steps, in {trained / 60:.0f} minutes"
        cells = fitted.generate(condition={LABEL: labels}, seed=seed, progress=False, **how)
        return Made(cells, trained, watch.lap(), note)

    return method


def _steps_within(model: Any, task: Task, minutes: float, changes: dict[str, Any]) -> int:
    """Training steps that fit in the time, from the difference of two short runs."""
    seconds = []
    for steps in (_WARM_UP, _WARM_UP + _TIMED):
        start = time.perf_counter()
        model(task.train, label_key=LABEL, **{**changes, "steps": steps}).fit(progress=False)
        seconds.append(time.perf_counter() - start)
    each = max((seconds[1] - seconds[0]) / _TIMED, 1e-3)
    return max(1, int(60 * minutes / each))


METHODS = {
    "scdg": _as_method(lambda: scdd.SCDG, "counts"),
    "dit": _as_method(lambda: scdd.DiffusionTransformer),
    "whitebox": _as_method(lambda: scdd.WhiteBoxDiffusionTransformer),
    "dit_published": _as_method(lambda: scdd.DiffusionTransformer, "published"),
    "whitebox_published": _as_method(lambda: scdd.WhiteBoxDiffusionTransformer, "published"),
}
