"""Checkpoints of a training run: written whole or not at all, resumed only by the same run."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch

from scdd.errors import DataFileError, InputError
from scdd.output import atomic_path

if TYPE_CHECKING:
    from pathlib import Path


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()  # torch says of a full disk what is no OSError
    torch.save(state, content)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_checkpoint(path: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The saved state, None if there is none; a checkpoint of another configuration is refused."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataFileError(
            f"{path} is not a readable checkpoint ({error}); delete it to start anew"
        ) from error
    differing = [key for key, value in config.items() if state["config"].get(key) != value]
    if differing:
        key = differing[0]
        raise InputError(
            f"{path} was made with {key}={state['config'].get(key)!r}, not {config[key]!r}; "
            "delete it, or continue with the same settings"
        )
    return state
