"""How cells are written as vectors that diffusion can learn, and read back from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scdd.errors import InputError

if TYPE_CHECKING:
    from scdd.data.preprocess import Preprocessor

TARGET_SUM = 1e4
CODINGS = ("counts", "hurdle", "negated", "plain")
# Of a gene's standard deviations: what a rare count is cut to, so that it does not drown all other genes.
_CEILING = 10.0
# All of a cell in one gene, on the largest scale of log data (a million). Networks hardly trained say
# more, and no reader of log1p data accepts it.
_MOST = math.log1p(1e6)


@dataclass(frozen=True)
class CellCode:
    """``x0 = (v - shift) / scale`` of log1p CP10k ``v`` [B, G], in which zeros may have a value of their own.

    ``"hurdle"``: zeros lie at -1, clearly below the smallest count, and the network also says how probable
    a zero is. ``"negated"``: zeros lie at -10 and nothing is scaled, as scRDiT has it. ``"plain"``: zeros
    are zeros. ``"counts"``: every gene has mean 0 and variance 1, and counts are drawn by a head of
    their own.
    """

    kind: str
    shift: float
    scale: float
    gene_shift: Tensor | None = None
    gene_scale: Tensor | None = None

    @classmethod
    def fit(cls, kind: str, preprocessor: Preprocessor, detected: Tensor) -> CellCode:
        """Mean and spread over all values of the training cells; ``detected`` [G]: share of cells above 0."""
        if kind not in CODINGS:
            raise InputError(f"zeros={kind!r}; choose one of {', '.join(CODINGS)}")
        if kind == "negated":
            return cls(kind, 0.0, 1.0)
        assert preprocessor.mean is not None, "the preprocessor was fitted"
        assert preprocessor.std is not None, "the preprocessor was fitted"
        mean = torch.from_numpy(preprocessor.mean).double()
        second = torch.from_numpy(preprocessor.std).double().square() + mean.square()
        if kind == "hurdle":
            zero = 1 - detected.double()
            mean, second = mean - zero, second + zero
        shift = mean.mean()
        return cls(kind, float(shift), float((second.mean() - shift.square()).sqrt().clamp_min(1e-3)))

    @classmethod
    def of_genes(cls, mean: Any, std: Any) -> CellCode:
        """The coding ``"counts"`` for genes of these means and standard deviations [G]."""
        return cls("counts", 0.0, 1.0, torch.as_tensor(mean), torch.as_tensor(std))

    @property
    def _zero(self) -> float:
        return {"hurdle": -1.0, "negated": -10.0, "plain": 0.0}[self.kind]

    def encode(self, v: Tensor) -> Tensor:
        """log1p CP10k [B, G] to x0."""
        if self.gene_shift is not None and self.gene_scale is not None:
            return ((v - self.gene_shift) / self.gene_scale).clamp(-_CEILING, _CEILING)
        if self.kind != "plain":
            v = torch.where(v == 0, self._zero, v)
        return (v - self.shift) / self.scale

    def decode(self, x0: Tensor, zero_logit: Tensor | None, generator: torch.Generator) -> Tensor:
        """x0 back to log1p CP10k, within [0, log1p(10^6)]; with logits [B, G] zeros are drawn."""
        v = (x0 * self.scale + self.shift).clamp_max(_MOST)
        if self.kind == "hurdle":
            if zero_logit is None:
                return torch.where(v > self._zero / 2, v.clamp_min(0), 0.0)
            drawn = torch.rand(v.shape, generator=generator).to(v.device)
            return torch.where(drawn < torch.sigmoid(zero_logit), 0.0, v.clamp_min(0))
        return v.clamp_min(0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"kind": self.kind, "shift": self.shift, "scale": self.scale}


def to_counts(v: Tensor, totals: Tensor) -> Tensor:
    """The counts [B, G] whose log1p CP10k is nearest to ``v`` in cells of ``totals`` [B].

    What is above zero stays so. Values of a real cell lie on a lattice, ``log1p(10^4 k / total)``: a
    classifier sees at once what lies beside it.
    """
    raw = torch.expm1(v) * totals[:, None] / TARGET_SUM
    return torch.where(v > 0, raw.round().clamp_min(1), 0.0)
