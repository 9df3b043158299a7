"""Distil, generate and train on enormous single-cell RNA atlases."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that defines it. Loaded on first use, so that `import scdd` pulls in no torch.
_PUBLIC = {
    "Atlas": "scdd.data.atlas",
    "CellDataset": "scdd.data.loading.torch_dataset",
    "CellLoader": "scdd.data.loader",
    "GeneVocabulary": "scdd.data.loading.vocabulary",
    "Preprocessor": "scdd.data.preprocess",
    "cell_statistics": "scdd.data.statistics.cell_statistics",
    "pack": "scdd.data.packed.writing",
    "simulate": "scdd.data.simulation.simulate",
    "streaming_pca": "scdd.data.statistics.pca",
    "write_csr": "scdd.data.writing.writer",
    "Autoencoder": "scdd.models.autoencoder",
    "DiffusionTransformer": "scdd.models.transformer",
    "SCDG": "scdd.models.scdg",
    "WhiteBoxDiffusionTransformer": "scdd.models.transformer",
    "load_model": "scdd.models.saved",
    "distill": "scdd.distillation.distill",
    "evaluate": "scdd.evaluation.evaluate",
    "Report": "scdd.evaluation.report",
    "fidelity": "scdd.evaluation.generated.fidelity",
    "FidelityReport": "scdd.evaluation.generated.report",
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
    from scdd.data.loading.torch_dataset import CellDataset
    from scdd.data.loading.vocabulary import GeneVocabulary
    from scdd.data.packed.writing import pack
    from scdd.data.preprocess import Preprocessor
    from scdd.data.simulation.simulate import simulate
    from scdd.data.statistics.cell_statistics import cell_statistics
    from scdd.data.statistics.pca import streaming_pca
    from scdd.data.writing.writer import write_csr
    from scdd.distillation.distill import distill
    from scdd.errors import DataFileError, InputError, ScddError
    from scdd.evaluation.evaluate import evaluate
    from scdd.evaluation.generated.fidelity import fidelity
    from scdd.evaluation.generated.report import FidelityReport
    from scdd.evaluation.report import Report
    from scdd.models.autoencoder import Autoencoder
    from scdd.models.saved import load_model
    from scdd.models.scdg import SCDG
    from scdd.models.transformer import DiffusionTransformer, WhiteBoxDiffusionTransformer


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'scdd' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
