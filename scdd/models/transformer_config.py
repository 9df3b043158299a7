"""Settings of the diffusion transformers, with their presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from scdd.errors import InputError
from scdd.models.white_box_variants import variant_switches
from scdd.nn.transformer import TransformerShape


@dataclass(frozen=True)
class TransformerConfig:
    """Settings of :class:`scdd.DiffusionTransformer` and :class:`scdd.WhiteBoxDiffusionTransformer`.

    ``order`` is file or correlation (patches of genes that vary together). ``schedule`` is linear or cosine.
    ``min_snr`` caps the weight of a time at that signal-to-noise ratio (Hang et al. 2023); 0 weights all
    times of the parameterisation alike. ``library`` conditions on the total count of a cell, which makes
    samples counts. With ``zeros="counts"`` diffusion ends where the signal's share of the variance is
    ``decode_signal``, and counts are drawn from there. ``weight_orthonormal`` prices ``|U^T U - I|^2`` of a
    white box's subspaces.

    ``validation`` is the share of the training cells held out to judge the moving average by, every
    ``validate_every`` steps (None: a tenth, where that is 32 cells or more; see
    :func:`scdd.models.validation.hold_out`). After ``patience`` evaluations without a gain of ``min_delta``
    training ends; 0: never early.
    """

    shape: TransformerShape = field(default_factory=TransformerShape)
    n_top_genes: int | None = 2_000
    flavor: str = "auto"
    order: str = "file"
    zeros: str = "hurdle"
    library: bool = True
    parameterisation: str = "v"
    schedule: str = "cosine"
    timesteps: int = 1_000
    min_snr: float = 5.0
    weight_zeros: float = 0.1
    decode_signal: float = 0.5
    weight_orthonormal: float = 0.0
    condition_dropout: float = 0.1
    sampler: str = "dpm++"
    sampling_steps: int = 20
    guidance: float = 0.0
    steps: int = 5_000
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-2
    ema: float = 0.999
    device: str = "auto"
    precision: str = "32-true"
    seed: int = 0
    validation: float | None = None
    validate_every: int = 250
    patience: int = 10
    min_delta: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.shape, dict):
            object.__setattr__(self, "shape", TransformerShape(**self.shape))
        object.__setattr__(
            self, "shape", replace(self.shape, counts=self.zeros == "counts", hurdle=self.zeros == "hurdle")
        )
        if self.zeros == "counts" and not self.library:
            raise InputError("zeros='counts' draws counts of a library size; leave library=True")
        if self.zeros == "counts" and self.batch_size < 2:
            raise InputError(f"batch_size={self.batch_size}; batch norm of the count head needs 2 or more")
        if not 0 < self.decode_signal < 1:
            raise InputError(f"decode_signal={self.decode_signal}; it lies between 0 and 1")
        choices = {
            "zeros": ("counts", "hurdle", "negated", "plain"),
            "order": ("file", "correlation"),
            "schedule": ("linear", "cosine"),
            "parameterisation": ("v", "x0", "eps"),
            "sampler": ("dpm++", "ddim", "ddpm", "flow"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}={getattr(self, name)!r}; choose one of {', '.join(known)}")
        if not 1 <= self.sampling_steps <= self.timesteps:
            raise InputError(f"sampling_steps={self.sampling_steps}; it lies in 1..{self.timesteps}")
        if self.weight_orthonormal and self.shape.mixer == "attention":
            raise InputError(
                f"weight_orthonormal={self.weight_orthonormal} needs subspaces and mixer='attention' has none"
            )
        if self.shape.width % self.shape.heads:
            raise InputError(f"width={self.shape.width} is no multiple of heads={self.shape.heads}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


# `published`: the sizes, coding, schedule, sampler and optimiser of scRDiT's and WBDiT's code.
_PUBLISHED = TransformerConfig(
    shape=TransformerShape(learned_positions=False),
    zeros="negated", library=False, parameterisation="eps", schedule="linear", min_snr=0.0,
    condition_dropout=0.1, sampler="ddim", sampling_steps=100, batch_size=16, lr=3e-4, ema=0.0,
    validation=0.0,
)  # fmt: skip
# No cells are held out: by validation loss a small atlas is learnt in a few hundred steps, and by every
# two-sample test (on mouse intestine, which no table shows) cells went on becoming more like real ones.
_DEFAULT = TransformerConfig(
    shape=TransformerShape(patch=64, width=128, heads=4, depth=3, modulation="low_rank"),
    order="correlation", zeros="counts", schedule="linear", steps=2_000, batch_size=64, lr=2e-3, ema=0.995,
    validation=0.0,
)  # fmt: skip
PRESETS = {
    "attention": {"default": _DEFAULT, "published": _PUBLISHED},
    "white_box": {
        "default": replace(
            _DEFAULT,
            shape=replace(_DEFAULT.shape, **variant_switches("default")),
        ),
        "published": replace(
            _PUBLISHED,
            shape=replace(_PUBLISHED.shape, **variant_switches("published")),
            zeros="plain",
            lr=1e-4,
        ),
    },
}


def resolve(kind: str, preset: str, changes: dict[str, Any]) -> TransformerConfig:
    """A preset with single settings changed, those of the shape among them by their own names."""
    if preset not in PRESETS[kind]:
        raise InputError(f"preset={preset!r}; choose one of {', '.join(PRESETS[kind])}")
    own, inner = ({f.name for f in fields(c)} for c in (TransformerConfig, TransformerShape))
    if unknown := [name for name in changes if name not in own | inner]:
        raise InputError(f"unknown setting {unknown[0]!r}; choose among {', '.join(sorted(own | inner))}")
    config = PRESETS[kind][preset]
    if changes.get("library") is False and config.zeros == "counts":
        changes = {"zeros": "hurdle", **changes}  # counts are of a library size
    shape = replace(config.shape, **{k: v for k, v in changes.items() if k in inner})
    return replace(config, shape=shape, **{k: v for k, v in changes.items() if k in own})
