"""Settings of the autoencoder and of SCDG, with three presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.diffusion.parameterisation import Parameterisation


@dataclass(frozen=True)
class AutoencoderConfig:
    """See :class:`scdd.nn.autoencoder.AutoencoderNet` for the symbols.

    ``validation`` is the share of the training cells held out to judge by (0: none, as distillation has it),
    every ``validate_every`` steps; ``patience`` evaluations without a gain of ``min_delta`` end training.
    """

    latent: int = 32
    hidden: tuple[int, ...] = (256, 256)
    head: str = "gaussian"
    dropout: float = 0.1
    kl_weight: float = 0.0
    label_weight: float = 50.0
    n_top_genes: int | None = 2_000
    flavor: str = "auto"
    steps: int = 600
    batch_size: int = 128
    lr: float = 1e-3
    device: str = "auto"
    precision: str = "32-true"
    seed: int = 0
    validation: float | None = 0.0
    validate_every: int = 100
    patience: int = 10
    min_delta: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.head not in ("gaussian", "nb"):
            raise InputError(f"head={self.head!r}; choose gaussian (log1p data) or nb (counts)")
        if self.latent < 1 or not self.hidden:
            raise InputError(f"latent={self.latent}, hidden={self.hidden}: both need at least one unit")


# What is trained, and what a code is: a clean latent in the first, the noise in all others.
OBJECTIVES = ("code_then_noise", "mean_flow", "consistency", "distilled")


@dataclass(frozen=True)
class SCDGConfig:
    """Settings of the single-step generator; ``t_star`` and ``T`` as in ``docs/scdd.md``.

    ``validation`` and the settings after it: as in :class:`AutoencoderConfig`, for each stage.
    ``consistency_grid`` is how many noise levels ``objective="consistency"`` ends with. The student of
    ``"distilled"`` is trained in ``student_steps`` batches on ``student_pairs`` pairs, each of which costs
    its teacher ``teacher_steps`` calls; ``guidance`` is baked into it.
    """

    autoencoder: AutoencoderConfig = AutoencoderConfig()
    objective: str = "code_then_noise"
    parameterisation: Parameterisation = "v"
    width: int = 128
    depth: int = 3
    timesteps: int = 1_000
    t_star: int = 250
    guidance: float = 0.0
    condition_dropout: float = 0.1
    weight_latent: float = 1.0
    weight_expression: float = 1.0
    weight_classifier: float = 0.1
    steps: int = 1_500
    batch_size: int = 256
    quality_batch: int = 64
    classifier_steps: int = 300
    lr: float = 1e-3
    ema: float = 0.999
    consistency_grid: int = 160
    student_steps: int = 1_500
    student_pairs: int = 16_384
    teacher_steps: int = 20
    device: str = "auto"
    precision: str = "32-true"
    seed: int = 0
    validation: float | None = 0.0
    validate_every: int = 100
    patience: int = 10
    min_delta: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.autoencoder, dict):
            object.__setattr__(self, "autoencoder", AutoencoderConfig(**self.autoencoder))
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective={self.objective!r}; choose one of {', '.join(OBJECTIVES)}")
        if self.parameterisation not in ("v", "x0", "eps"):
            raise InputError(f"parameterisation={self.parameterisation!r}; choose v, x0 or eps")
        if not 1 <= self.t_star <= self.timesteps:
            raise InputError(f"t_star={self.t_star}; it lies in 1..{self.timesteps}")
        if not 1 <= self.teacher_steps <= self.timesteps:
            raise InputError(f"teacher_steps={self.teacher_steps}; it lies in 1..{self.timesteps}")
        for name, least in (("consistency_grid", 2), ("student_steps", 1), ("student_pairs", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}; give at least {least}")

    @property
    def code_is_noise(self) -> bool:
        """Whether codes are pure noise; otherwise they are clean latents."""
        return self.objective != "code_then_noise"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


# `faithful` reconstructs scDD from its abstract and building blocks; no setting of the authors is public.
PRESETS: dict[str, SCDGConfig] = {
    "fast": SCDGConfig(),
    # counts out: what `generate` is compared with other generators by
    "counts": SCDGConfig(
        autoencoder=AutoencoderConfig(latent=16, head="nb", kl_weight=1.0, steps=1_200),
        objective="distilled",
        steps=3_000,
        batch_size=512,
        weight_expression=0.0,
        weight_classifier=0.0,
        student_steps=3_000,
    ),
    "quality": SCDGConfig(
        autoencoder=AutoencoderConfig(latent=64, hidden=(512, 512), steps=6_000),
        width=512,
        depth=4,
        steps=12_000,
        batch_size=512,
        quality_batch=128,
        classifier_steps=1_000,
        consistency_grid=640,
        student_steps=12_000,
        student_pairs=65_536,
    ),
    "faithful": SCDGConfig(
        autoencoder=AutoencoderConfig(
            latent=128,
            hidden=(1_024, 1_024, 1_024),
            label_weight=0.0,
            n_top_genes=None,
            steps=150_000,
            batch_size=128,
            lr=5e-4,
        ),
        width=512,
        depth=4,
        steps=600_000,
        batch_size=128,
        lr=1e-4,
        ema=0.9999,
    ),
}


_SHARED = ("seed", "device", "precision", "validation", "patience", "compile")


def resolve_config(preset: str, changes: dict[str, Any]) -> SCDGConfig:
    """A preset with single settings changed; names of the autoencoder's settings carry ``autoencoder_``.

    ``seed``, ``device``, ``precision``, ``validation``, ``patience`` and ``compile`` apply to both stages.
    """
    if preset not in PRESETS:
        raise InputError(f"preset={preset!r}; choose one of {', '.join(PRESETS)}")
    config, own = PRESETS[preset], {f.name for f in fields(SCDGConfig)}
    shared = {k: v for k, v in changes.items() if k in _SHARED}
    outer = {k: v for k, v in changes.items() if not k.startswith("autoencoder_")}
    inner = {k.removeprefix("autoencoder_"): v for k, v in changes.items() if k.startswith("autoencoder_")}
    unknown = [k for k in outer if k not in own]
    unknown += [k for k in inner if k not in {f.name for f in fields(AutoencoderConfig)}]
    if unknown:
        raise InputError(f"unknown setting {unknown[0]!r}; see scdd.models.config.SCDGConfig for their names")
    return replace(config, autoencoder=replace(config.autoencoder, **{**shared, **inner}), **outer)
