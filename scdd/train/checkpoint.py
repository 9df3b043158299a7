"""Checkpoints of a training run: written whole or not at all, resumed only by the same run."""

from __future__ import annotations

import io
import json
import warnings
from typing import TYPE_CHECKING, Any

import torch

from scdd.errors import DataFileError, InputError
from scdd.output import atomic_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# What may change from one part of a run to the next: how fast it goes, and how carefully.
FREE = (
    "lr", "clip", "device", "precision", "compile", "checkpoint_every", "patience", "min_delta",
)  # fmt: skip


def identifying(settings: Mapping[str, Any]) -> str:
    """JSON of settings, nested ones too, without those that a resumed run may change."""

    def kept(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: kept(inner) for name, inner in value.items() if name not in FREE}

    return json.dumps(kept(dict(settings)), sort_keys=True)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()  # torch says of a full disk what is no OSError
    torch.save(state, content)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_checkpoint(path: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The saved state, None if there is none; a checkpoint of another configuration is refused.

    Another learning rate, precision or device is not: a run that diverged goes on with a lower one.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataFileError(
            f"{path} is not a readable checkpoint ({error}); delete it to start anew"
        ) from error
    changed = [key for key, value in config.items() if state["config"].get(key) != value]
    if differing := [key for key in changed if key not in FREE]:
        key = differing[0]
        raise InputError(
            f"{path} was made with {key}={state['config'].get(key)!r}, not {config[key]!r}; "
            "delete it, or continue with the same settings"
        )
    if changed:
        said = ", ".join(f"{key}={config[key]!r} (before: {state['config'].get(key)!r})" for key in changed)
        warnings.warn(f"{path} is continued with {said}", stacklevel=2)
    return state
