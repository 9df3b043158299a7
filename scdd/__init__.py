"""Distil, generate and train on enormous single-cell RNA atlases."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that defines it. Loaded on first use, so that `import scdd` pulls in no torch.
_PUBLIC = {
    "Atlas": "scdd.data.atlas",
    "CellLoader": "scdd.data.loader",
    "Preprocessor": "scdd.data.preprocess",
    "simulate": "scdd.data.simulate",
    "Autoencoder": "scdd.models.autoencoder",
    "SCDG": "scdd.models.scdg",
    "distill": "scdd.distillation.distill",
    "evaluate": "scdd.evaluation.evaluate",
    "Report": "scdd.evaluation.report",
    "ScddError": "scdd.errors",
    "InputError": "scdd.errors",
    "DataFileError": "scdd.errors",
}
__all__ = [
    "__version__",
    *sorted(_PUBLIC),
]

if TYPE_CHECKING:
    from scdd.data.atlas import Atlas
    from scdd.data.loader import CellLoader
    from scdd.data.preprocess import Preprocessor
    from scdd.data.simulate import simulate
    from scdd.distillation.distill import distill
    from scdd.errors import DataFileError, InputError, ScddError
    from scdd.evaluation.evaluate import evaluate
    from scdd.evaluation.report import Report
    from scdd.models.autoencoder import Autoencoder
    from scdd.models.scdg import SCDG


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'scdd' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
