"""The diffusion transformer with its objective: what is trained, and what a sampler calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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
    """Coded cells ``x0`` [B, G], where they are zero, codes [B, F] and numbers [B, K] of conditions."""

    x0: Tensor
    zeros: Tensor
    codes: Tensor
    numbers: Tensor


class Drawn(NamedTuple):
    """Coded cells [B, G] from the sampler, and logits that a gene is zero [B, G] or None."""

    x0: Tensor
    zero_logit: Tensor | None


class TransformerDiffusion(nn.Module):
    """``E_t w(t) |f(sqrt(a_t) x0 + sqrt(1 - a_t) eps, t, c) - target|^2``, and a hurdle for zeros.

    ``w(t)`` is min-SNR-gamma weighting (Hang et al. 2023): for eps ``min(snr, g) / snr``, for v
    ``min(snr, g) / (snr + 1)``, for x0 ``min(snr, g)``.
    """

    def __init__(self, genes: int, config: TransformerConfig, *, conditions: Sequence[int], numbers: int):
        super().__init__()
        self.config = config
        self.net = DiffusionTransformerNet(genes, config.shape, conditions=conditions, numbers=numbers)
        self.schedule = getattr(NoiseSchedule, config.schedule)(config.timesteps)
        snr = self.schedule.alpha_bar.double() / (1 - self.schedule.alpha_bar.double())
        self.register_buffer("weights", _weights(snr, config), persistent=False)

    weights: Tensor

    def loss(self, batch: CellsToLearn, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms of the objective for one batch; the generator lives on the CPU."""
        n, device = len(batch.x0), batch.x0.device
        t = torch.randint(1, self.schedule.steps + 1, (n,), generator=generator)
        seed = torch.randint(2**62, (), generator=generator).to(device)
        keep = torch.rand(n, 1, generator=generator) >= self.config.condition_dropout
        keep, t = keep.to(device), t.to(device)
        terms = self.net.loss(
            batch.x0,
            self.schedule.signal(t)[:, 0],
            self.schedule.noise(t)[:, 0],
            t / self.schedule.steps,
            torch.where(keep, batch.codes, -1),
            torch.where(keep, batch.numbers, torch.nan),
            seed=seed,
            prediction=self.config.parameterisation,  # type: ignore[arg-type]
            weight=self.weights[t],
            zeros=batch.zeros,
        )
        if "zeros" in terms:
            terms["zeros"] = self.config.weight_zeros * terms["zeros"]
        if self.config.weight_orthonormal:
            terms["orthonormal"] = self.config.weight_orthonormal * self.net.deviation()
        return terms

    @torch.no_grad()
    def draw(
        self, codes: Tensor, numbers: Tensor, noise: Tensor, *, sampler: str, steps: int, guidance: float,
        eta: float, seed: int,
    ) -> Drawn:  # fmt: skip
        """Cells of conditions [B, F], [B, K] from noise [B, G]; computed where the weights lie."""
        device = self.weights.device
        codes, numbers, noise = (value.to(device) for value in (codes, numbers, noise))
        chosen = plan(self.schedule, sampler, steps, self.config.parameterisation, eta=eta)  # type: ignore[arg-type]
        dtype = torch.bfloat16 if self.config.precision.startswith("bf16") else torch.float32
        net = prepared_for_sampling(self.net, dtype)
        given = Conditioned(net, codes, numbers, dtype)
        none = torch.full_like(codes, -1), torch.full_like(numbers, torch.nan)
        free = Conditioned(net, *none, dtype) if guidance else None

        def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            return given(x, t).prediction, None if free is None else free(x, t).prediction

        x0 = sample(denoise, self.schedule, noise, chosen, guidance=1 + guidance, seed=seed)
        if self.net.zero is None:
            return Drawn(x0, None)
        # the network judges zeros where there is hardly noise left
        last = torch.full((len(x0),), 1 / self.schedule.steps, device=device)
        return Drawn(x0, given(x0, last).zero_logit)


def _weights(snr: Tensor, config: TransformerConfig) -> Tensor:
    """Weight of every time [T + 1], of mean 1 over 1..T."""
    if config.min_snr <= 0:
        return torch.ones(len(snr))
    capped = snr.clamp(max=config.min_snr)
    found = {"eps": capped / snr, "v": capped / (snr + 1), "x0": capped}[config.parameterisation]
    found[0] = 0.0
    return (found / found[1:].mean()).float()
