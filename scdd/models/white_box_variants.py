"""The kinds of white-box block, each a set of switches of the transformer's shape under one name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scdd.nn.transformer import TransformerShape


@dataclass(frozen=True, kw_only=True)
class WhiteBoxVariant:
    """What one name stands for; every field but ``meaning`` is one of ``TransformerShape``."""

    meaning: str
    mixer: str = "subspace"
    token_map: str = "ista"
    tied: bool = False
    residual: bool = True
    learned_threshold: bool = True
    positive_gates: bool | Literal["attention"] = "attention"

    @property
    def switches(self) -> dict[str, Any]:
        """The settings of the shape."""
        return {name: value for name, value in asdict(self).items() if name != "meaning"}


VARIANTS: Mapping[str, WhiteBoxVariant] = MappingProxyType({
    "default": WhiteBoxVariant(meaning="published, but attention's gate positive and thresholds learned"),
    "published": WhiteBoxVariant(
        meaning="White-Box DiT's code: free output map, gates of any sign, threshold 0.1",
        learned_threshold=False, positive_gates=False,
    ),
    "signed_gates": WhiteBoxVariant(meaning="default, gates of any sign", positive_gates=False),
    "positive_gates": WhiteBoxVariant(meaning="default, both gates positive", positive_gates=True),
    "tied": WhiteBoxVariant(meaning="default, recombined by beta U, beta > 0", tied=True),
    "residual_free": WhiteBoxVariant(
        meaning="default, the sparse code replaces the stream, as in CRATE", residual=False
    ),
    "derived": WhiteBoxVariant(
        meaning="tied and residual-free: all that CRATE's derivation asks for", tied=True, residual=False
    ),
    "alpha": WhiteBoxVariant(
        meaning="default with CRATE-alpha's overcomplete dictionary", token_map="overcomplete"
    ),
    "token_statistics": WhiteBoxVariant(
        meaning="default with ToST's attention, linear in the tokens", mixer="statistics"
    ),
    "tost": WhiteBoxVariant(
        meaning="ToST's own block: token statistics and a perceptron",
        mixer="statistics", token_map="mlp", learned_threshold=False, positive_gates=False,
    ),
})  # fmt: skip


def variant_switches(name: str) -> dict[str, Any]:
    """The settings of the shape that a variant stands for.

    Raises
    ------
    InputError
        There is none of that name.
    """
    if name not in VARIANTS:
        known = "; ".join(f"{known} ({variant.meaning})" for known, variant in VARIANTS.items())
        raise InputError(f"variant={name!r}; choose one of: {known}")
    return VARIANTS[name].switches


def variant_of(shape: TransformerShape) -> str:
    """The name of the variant that a shape is, or ``"custom"``."""
    for name, variant in VARIANTS.items():
        if all(getattr(shape, switch) == value for switch, value in variant.switches.items()):
            return name
    return "custom"
