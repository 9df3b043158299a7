"""The diffusion transformer with its objective: what is trained, and what a sampler calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from scdd.diffusion.samplers import plan, sample
from scdd.diffusion.schedule import NoiseSchedule
from scdd.nn.sampling import Conditioned, prepared_for_sampling
from scdd.nn.transformer import DiffusionTransformerNet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scdd.models.transformer_config import TransformerConfig


class CellsToLearn(NamedTuple):
    """Coded cells ``x0`` [B, G], where they are zero, codes [B, F] and numbers [B, K] of conditions.

    Where counts are modelled also those [B, G], and totals [B].
    """

    x0: Tensor
    zeros: Tensor
    codes: Tensor
    numbers: Tensor
    counts: Tensor | None = None
    totals: Tensor | None = None


class Drawn(NamedTuple):
    """Coded cells [B, G] from the sampler, and logits that a gene is zero, or mean counts, [B, G] or None."""

    x0: Tensor
    zero_logit: Tensor | None
    rate: Tensor | None = None


class TransformerDiffusion(nn.Module):
    """``E_t w(t) |f(sqrt(a_t) x0 + sqrt(1 - a_t) eps, t, c) - target|^2``, and a head.

    Where counts are modelled, diffusion ends at the time ``last``, of signal share ``decode_signal``, and
    counts are drawn given the noised cell, as the decoder of a variational diffusion model is (Kingma et al.
    2021). There a cell's state can be told from all genes together, and the count of a single gene cannot:
    what is left are the independent counts of a known state, a negative binomial. Cells are diffused around
    the mean of their class, ``anchor`` [C + 1, G] (last: zeros, for no class).

    ``w(t)`` is min-SNR-gamma weighting (Hang et al. 2023): for eps ``min(snr, g) / snr``, for v
    ``min(snr, g) / (snr + 1)``, for x0 ``min(snr, g)``.
    """

    def __init__(self, genes: int, config: TransformerConfig, *, conditions: Sequence[int], numbers: int):
        super().__init__()
        self.config = config
        self.net = DiffusionTransformerNet(genes, config.shape, conditions=conditions, numbers=numbers)
        self.schedule = getattr(NoiseSchedule, config.schedule)(config.timesteps)
        snr = self.schedule.alpha_bar.double() / (1 - self.schedule.alpha_bar.double())
        shares = self.schedule.alpha_bar
        self.last = int((shares >= config.decode_signal).sum()) - 1 if config.shape.counts else 0
        self.register_buffer("weights", _weights(snr, config, self.last), persistent=False)
        if config.shape.counts:
            self.register_buffer("anchor", torch.zeros(conditions[0] + 1, genes))

    weights: Tensor
    anchor: Tensor

    def centred(self, x0: Tensor, codes: Tensor) -> Tensor:
        """Coded cells [B, G] less the mean of the class that conditions [B, F] say."""
        return x0 - self._anchors(codes) if self.config.shape.counts else x0

    def _anchors(self, codes: Tensor) -> Tensor:
        label = codes[:, 0]
        return self.anchor[torch.where(label < 0, len(self.anchor) - 1, label)]

    def loss(self, batch: CellsToLearn, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms of the objective for one batch; the generator lives on the CPU."""
        n, device = len(batch.x0), batch.x0.device
        t = torch.randint(max(self.last, 1), self.schedule.steps + 1, (n,), generator=generator)
        seed = torch.randint(2**62, (), generator=generator).to(device)
        keep = torch.rand(n, 1, generator=generator) >= self.config.condition_dropout
        keep, t = keep.to(device), t.to(device)
        codes = torch.where(keep, batch.codes, -1)
        terms = self.net.loss(
            self.centred(batch.x0, codes),
            self.schedule.signal(t)[:, 0],
            self.schedule.noise(t)[:, 0],
            t / self.schedule.steps,
            codes,
            torch.where(keep, batch.numbers, torch.nan),
            seed=seed,
            prediction=self.config.parameterisation,  # type: ignore[arg-type]
            weight=self.weights[t],
            zeros=batch.zeros,
            counts=batch.counts,
            totals=batch.totals,
        )
        if "zeros" in terms:
            terms["zeros"] = self.config.weight_zeros * terms["zeros"]
        if self.config.weight_orthonormal:
            terms["orthonormal"] = self.config.weight_orthonormal * self.net.deviation()
        return terms

    @torch.no_grad()
    def draw(
        self, codes: Tensor, numbers: Tensor, totals: Tensor, noise: Tensor, *, sampler: str, steps: int,
        guidance: float, eta: float, seed: int,
    ) -> Drawn:  # fmt: skip
        """Cells of conditions [B, F], [B, K], totals [B] from noise [B, G]; where the weights lie."""
        device = self.weights.device
        codes, numbers, totals, noise = (v.to(device) for v in (codes, numbers, totals, noise))
        how: Any = {"eta": eta, "last": self.last}
        chosen = plan(self.schedule, sampler, steps, self.config.parameterisation, **how)  # type: ignore[arg-type]
        dtype = torch.bfloat16 if self.config.precision.startswith("bf16") else torch.float32
        net = prepared_for_sampling(self.net, dtype)
        given = Conditioned(net, codes, numbers, dtype)
        none = torch.full_like(codes, -1), torch.full_like(numbers, torch.nan)
        free = Conditioned(net, *none, dtype) if guidance else None

        anchor = self._anchors(codes) if self.net.counts is not None else None

        def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            kept = given(x, t).prediction if anchor is None else self._around(anchor, given, x, t)
            return kept, None if free is None else free(x, t).prediction

        x0 = sample(denoise, self.schedule, noise, chosen, guidance=1 + guidance, seed=seed)
        if anchor is not None:
            last = torch.full((len(x0),), self.last, device=device)
            around = x0 - self.schedule.signal(last) * anchor
            return Drawn(x0, None, given.rate(around, last / self.schedule.steps, totals))
        if self.net.zero is None:
            return Drawn(x0, None)
        # the network judges zeros where there is hardly noise left
        last = torch.full((len(x0),), 1 / self.schedule.steps, device=device)
        return Drawn(x0, given(x0, last).zero_logit)

    def _around(self, anchor: Tensor, network: Conditioned, x: Tensor, t: Tensor) -> Tensor:
        """What a network of cells less ``anchor`` [B, G] says of whole cells ``x`` [B, G] at times [B]."""
        at = (t * self.schedule.steps).round().long()
        found = network(x - self.schedule.signal(at) * anchor, t).prediction
        if self.config.parameterisation == "v":
            return found - self.schedule.noise(at) * anchor
        return found + anchor if self.config.parameterisation == "x0" else found


def _weights(snr: Tensor, config: TransformerConfig, last: int) -> Tensor:
    """Weight of every time [T + 1], of mean 1 over those that are trained."""
    if config.min_snr <= 0:
        return torch.ones(len(snr))
    capped = snr.clamp(max=config.min_snr)
    found = {"eps": capped / snr, "v": capped / (snr + 1), "x0": capped}[config.parameterisation]
    found[0] = 0.0
    return (found / found[max(last, 1) :].mean()).float()
