"""From the options of `train` to a model: what goes with which kind, and what it is called there."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import typer

from scdd.cli.settings import known_settings, read_settings
from scdd.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from scdd.data.atlas import Atlas

_TRANSFORMERS = ("dit", "whitebox")
# What goes with some kinds only. With others it would be ignored, which is an error.
_ONLY_FOR: dict[str, tuple[str, ...]] = {
    "condition": ("scdg", *_TRANSFORMERS),
    "objective": ("scdg",),
    "head": ("scdg", "autoencoder"),
    "width": ("scdg", *_TRANSFORMERS),
    "depth": ("scdg", *_TRANSFORMERS),
    "patch": _TRANSFORMERS,
    "heads": _TRANSFORMERS,
    "variant": ("whitebox",),
}
# Settings of SCDG that its autoencoder has as well; the others that both have, it hands on itself.
_OF_BOTH_STAGES = ("steps", "batch_size", "lr", "validate_every")


@dataclass(frozen=True)
class Request:
    """What was asked for; refused at once where it cannot be meant.

    ``options`` are those of the command by name, None where absent; ``settings`` the items of ``--set``.
    """

    kind: str
    label: str | None
    options: dict[str, Any]
    settings: list[str]
    preset: str | None
    seed: int
    device: str

    def __post_init__(self) -> None:
        for name, kinds in _ONLY_FOR.items():
            if self.options[name] is not None and self.kind not in kinds:
                raise InputError(f"--{name} goes with {' and '.join(kinds)}, not with {self.kind}")
        if self.kind != "autoencoder" and self.label is None:
            raise InputError(f"{self.kind} is conditioned on classes: name their obs column with --label")
        self._refuse_what_cannot_be_trained()

    def _refuse_what_cannot_be_trained(self) -> None:
        """Whatever is wrong with the settings is said before cells are read."""
        from scdd.train.config import TrainConfig, make_fabric

        config = self.config
        names = {field.name for field in fields(TrainConfig)} & {field.name for field in fields(config)}
        make_fabric(TrainConfig(**{name: getattr(config, name) for name in names}))

    @property
    def config(self) -> Any:
        """The configuration of the model."""
        from scdd.models.config import resolve_config
        from scdd.models.transformer_config import resolve

        changes = {**self._changes(), **self._set(), "seed": self.seed, "device": self.device}
        if self.kind == "scdg":
            return resolve_config(self.preset or "fast", changes)
        if self.kind == "autoencoder":
            inner = {f"autoencoder_{name}": value for name, value in changes.items()}
            return resolve_config(self.preset or "fast", inner).autoencoder
        kind = {"dit": "attention", "whitebox": "white_box"}[self.kind]
        return resolve(kind, self.preset or "default", changes)

    def _changes(self) -> dict[str, Any]:
        """Options by the names of settings."""
        given = {k: v for k, v in self.options.items() if v is not None and k != "condition"}
        if "genes" in given:
            given["n_top_genes"] = given.pop("genes") or None
        if (variant := given.pop("variant", None)) is not None:
            from scdd.models.white_box_variants import variant_switches

            given |= variant_switches(variant)
        if self.kind != "scdg":
            return given
        own = {f"autoencoder_{k}" if k in ("head", "n_top_genes") else k: v for k, v in given.items()}
        if "steps" in given:
            own["student_steps"] = given["steps"]
        return own | {f"autoencoder_{name}": given[name] for name in _OF_BOTH_STAGES if name in given}

    def _set(self) -> dict[str, Any]:
        """The items of --set, typed; what has an option of its own is not given twice."""
        read = read_settings(self.settings, self._known())
        for name in read:
            if self.options.get(name) is not None or name in ("seed", "device"):
                raise InputError(f"--set {name} is an option of its own: --{name.replace('_', '-')}")
        return read

    def _known(self) -> dict[str, Any]:
        from scdd.models.config import AutoencoderConfig, SCDGConfig
        from scdd.models.transformer_config import TransformerConfig
        from scdd.nn.transformer import TransformerShape

        if self.kind in _TRANSFORMERS:
            return known_settings(TransformerConfig, TransformerShape)
        if self.kind == "autoencoder":
            return known_settings(AutoencoderConfig)
        return known_settings(SCDGConfig) | known_settings(AutoencoderConfig, prefix="autoencoder_")

    def model(self, cells: Atlas) -> Any:
        """The model over these cells, not trained yet."""
        if self.kind == "autoencoder":
            from scdd.models.autoencoder import Autoencoder

            return Autoencoder(cells, label_key=self.label, config=self.config)
        import scdd

        names = {"scdg": "SCDG", "dit": "DiffusionTransformer", "whitebox": "WhiteBoxDiffusionTransformer"}
        columns = self.options["condition"] or ()
        model = getattr(scdd, names[self.kind])
        return model(cells, label_key=self.label, conditions=columns, config=self.config)

    def fit(self, model: Any, *, checkpoints: Path | None, log: Path | None, progress: bool) -> None:
        """Train it; says how that went."""
        if log is not None and log.suffix == ".csv":
            raise InputError(f"--log {log} is the name of a file; give a folder")
        if model.atlas.in_memory is None:
            typer.echo(f"{model.atlas.name} is too large to hold in memory: batches stream from its files")
        place = checkpoints
        if checkpoints is not None and self.kind != "scdg":
            place = checkpoints / f"{self.kind}.pt"
        try:
            model.fit(checkpoint=place, log=log, progress=progress)
        except KeyboardInterrupt as stop:
            if str(stop):
                typer.echo(f"scdd: {stop}", err=True)
            raise
        history = model.history if isinstance(model.history, dict) else {self.kind: model.history}
        for stage, rows in history.items():
            typer.echo(_how_it_went(stage, rows))


def _how_it_went(stage: str, rows: list[dict[str, float]]) -> str:
    judged = {row["validation"]: row["step"] for row in reversed(rows) if "validation" in row}
    said = f"{stage}: {rows[-1]['step']:,} steps, loss {rows[-1]['loss']:.4f}"
    if not judged:
        return f"{said}, no cells held out for validation"
    best = min(judged)
    return f"{said}, validation loss {best:.4f} at step {judged[best]:,}, whose weights are kept"
