"""What every trained model shares: a folder of JSON and safetensors, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file, save

import scdd
from scdd.errors import DataFileError, InputError
from scdd.output import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

    from scdd.data.preprocess import Preprocessor

_FORMAT = 1
_FILES = {"config.json", "weights.safetensors"}


class Model(ABC):
    """A model over cells; subclasses define ``_config`` and ``_tensors`` and rebuild from both."""

    preprocessor: Preprocessor
    fitted: bool = False

    @abstractmethod
    def _config(self) -> dict[str, Any]:
        """JSON-able settings, enough to rebuild the model."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """All weights by name."""

    @classmethod
    @abstractmethod
    def _rebuild(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """The model of saved settings and weights."""

    def _require_fit(self) -> None:
        if not self.fitted:
            raise InputError(f"{type(self).__name__} is not trained yet; call .fit() first")

    def save(self, path: str | Path) -> None:
        """Write the folder ``path`` (config.json, weights.safetensors), replacing an earlier model."""
        self._require_fit()
        path = Path(path)
        _refuse_other_content(path)
        with atomic_path(path) as temporary:
            temporary.mkdir()
            tensors = {name: value.detach().contiguous().cpu() for name, value in self._tensors().items()}
            # Written here, for safetensors says of a full disk what is no OSError.
            (temporary / "weights.safetensors").write_bytes(save(tensors))
            head = {"format": _FORMAT, "class": type(self).__name__, "version": scdd.__version__}
            (temporary / "config.json").write_text(json.dumps({**head, **self._config()}, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a folder written by :meth:`save`.

        Raises
        ------
        DataFileError
            The folder is missing, incomplete or unreadable.
        InputError
            It holds another class of model.
        """
        path = Path(path)
        try:
            config = json.loads((path / "config.json").read_text())
            tensors = load_file(path / "weights.safetensors")
        except Exception as error:
            raise DataFileError(
                f"{path} is not a saved {cls.__name__} ({error}); copy the folder again, "
                "config.json and weights.safetensors, or train and save the model once more"
            ) from error
        if config.get("class") != cls.__name__:
            raise InputError(
                f"{path} holds a {config.get('class')}; load it with scdd.{config.get('class')}.load"
            )
        model = cls._rebuild(config, tensors)
        model.fitted = True
        return model

    def weights_hash(self) -> str:
        """A short hash of all weights: which generator made a distilled set."""
        digest = hashlib.sha256()
        for name, value in sorted(self._tensors().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def _refuse_other_content(path: Path) -> None:
    """An earlier model may be replaced; a folder that holds anything else may not."""
    if path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - _FILES):
        raise DataFileError(
            f"{path} exists and is no saved model, or holds other files; choose another output"
        )
