"""Opening a saved model without knowing of which class it is."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from scdd.errors import DataFileError, InputError

if TYPE_CHECKING:
    from scdd.models.base import Model

# Class -> module, imported when it is needed.
_CLASSES = {
    "SCDG": "scdd.models.scdg",
    "DiffusionTransformer": "scdd.models.transformer",
    "WhiteBoxDiffusionTransformer": "scdd.models.transformer",
    "Autoencoder": "scdd.models.autoencoder",
}


def load_model(path: str | Path) -> Model:
    """The model in a folder that ``save`` wrote: of the class that its config.json names.

    Raises
    ------
    DataFileError
        No such folder, or it holds no saved model.
    InputError
        The class is of another version of scdd.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataFileError(f"{path} does not exist or is no folder; a model is the folder that save() wrote")
    try:
        name = json.loads((path / "config.json").read_text())["class"]
    except FileNotFoundError as error:
        raise DataFileError(
            f"{path} holds no saved model (no config.json); name a folder written by `scdd train` or save()"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFileError(f"{path}/config.json is not that of a saved model ({error!r})") from error
    if name not in _CLASSES:
        raise InputError(
            f"{path} holds a {name!r}, which this scdd does not know; it knows {', '.join(_CLASSES)}"
        )
    kind: type[Model] = getattr(importlib.import_module(_CLASSES[name]), name)
    return kind.load(path)
