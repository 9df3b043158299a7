"""SCDG as a module: frozen autoencoder, conditional one-step denoiser of its codes, frozen classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scdd.diffusion.mean_flow import adaptive_loss, mean_flow_step, mean_flow_target, sample_times
from scdd.diffusion.one_step import code_then_noise, ddim
from scdd.diffusion.parameterisation import clean_estimate, target
from scdd.diffusion.schedule import NoiseSchedule
from scdd.nn.denoiser import Denoiser
from scdd.nn.embeddings import drop_conditions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scdd.nn.autoencoder import AutoencoderNet
    from scdd.nn.heads import Observed


class Conditioned(NamedTuple):
    """Cells and their condition codes [B, F]."""

    observed: Observed
    codes: Tensor


class LatentBatch(NamedTuple):
    """What the denoiser is trained on: encoded cells ``z0`` [B, d] with conditions ``codes`` [B, F].

    The first rows are those of ``cells``, whose expression the quality terms look at. The encoder is
    frozen, so that the other rows need not be read and encoded again.
    """

    z0: Tensor
    codes: Tensor
    cells: Observed


class QualityWeights(NamedTuple):
    """Weights of the generation-quality terms beside the diffusion loss."""

    latent: float
    expression: float
    classifier: float


class SCDGNet(nn.Module):
    """Single-step conditional diffusion generator (after scDD, arXiv 2503.04357; reconstructed).

    ``L = L_diff + a_t (l_z |z0^ - z0|^2 / d + l_x |D(z0^) - x|^2 / G + l_c CE(h(D(z0^)), y))``

    The quality terms are weighted by the signal share ``a_t``: near pure noise the clean estimate is the
    class mean, and asking it to be the cell would only blur it.
    """

    def __init__(
        self,
        autoencoder: AutoencoderNet,
        latent: int,
        conditions: Sequence[int],
        *,
        width: int,
        depth: int,
        timesteps: int,
        objective: str,
        parameterisation: str,
        condition_dropout: float,
        quality: QualityWeights,
    ):
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False)
        self.denoiser = Denoiser(latent, conditions, width=width, depth=depth)
        self.classifier = nn.Linear(autoencoder.gene_mean.numel(), conditions[0])
        self.schedule = NoiseSchedule.linear(timesteps)
        self.objective, self.parameterisation = objective, parameterisation
        self.condition_dropout, self.quality = condition_dropout, quality

    def train(self, mode: bool = True) -> SCDGNet:
        """Training mode for the denoiser only: the autoencoder's batch statistics never move."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    def classifier_loss(self, batch: Conditioned, generator: torch.Generator) -> dict[str, Tensor]:
        """Softmax regression of the label on standardised expression: the judge ``h``, trained first."""
        return {"classifier": F.cross_entropy(self.judge(batch.observed.x), batch.codes[:, 0])}

    def judge(self, x: Tensor) -> Tensor:
        """Logits [B, C] of log1p CP10k [B, G]."""
        scaled = (x - self.autoencoder.gene_mean) / self.autoencoder.gene_std
        return self.classifier(scaled.clamp(-5, 5)) / scaled.shape[1] ** 0.5

    def loss(self, batch: LatentBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms of the objective for one batch."""
        z0 = batch.z0
        codes = drop_conditions(batch.codes, self.condition_dropout, generator)
        eps = torch.randn(z0.shape, generator=generator).to(z0)
        if self.objective == "mean_flow":
            return {"mean_flow": self._mean_flow_loss(z0, eps, codes, generator)}
        t = torch.randint(1, self.schedule.steps + 1, (len(z0),), generator=generator).to(z0.device)
        signal, noise = self.schedule.signal(t), self.schedule.noise(t)
        z_t = signal * z0 + noise * eps
        output = self.denoiser(z_t, t / self.schedule.steps, codes)
        wanted = target(self.parameterisation, z0, eps, signal, noise)
        clean = clean_estimate(self.parameterisation, output, z_t, signal, noise)
        weight = signal.square()[:, 0]
        return {"diffusion": F.mse_loss(output, wanted), **self._quality(clean, batch, weight)}

    def _quality(self, clean: Tensor, batch: LatentBatch, weight: Tensor) -> dict[str, Tensor]:
        q, n, terms = self.quality, len(batch.cells.x), {}
        if q.latent:
            terms["latent"] = q.latent * (weight * (clean - batch.z0).square().mean(1)).mean()
        if q.expression or q.classifier:
            decoded = self.autoencoder.decode(clean[:n], batch.cells.totals)
            error = (decoded - batch.cells.x).square().mean(1)
            terms["expression"] = q.expression * (weight[:n] * error).mean()
            entropy = F.cross_entropy(self.judge(decoded), batch.codes[:n, 0], reduction="none")
            terms["label"] = q.classifier * (weight[:n] * entropy).mean()
        return terms

    def _mean_flow_loss(self, z0: Tensor, eps: Tensor, codes: Tensor, generator: torch.Generator) -> Tensor:
        t, span = (times.to(z0) for times in sample_times(len(z0), generator))
        z_t, velocity = z0 + t[:, None] * (eps - z0), eps - z0

        def u(z: Tensor, at: Tensor, over: Tensor) -> Tensor:
            return self.denoiser(z, at, codes, over)

        return adaptive_loss(u(z_t, t, span) - mean_flow_target(u, z_t, t, span, velocity))

    def one_step(self, code: Tensor, eps: Tensor, codes: Tensor, *, t_star: int, guidance: float) -> Tensor:
        """The clean latent [B, d] of a code in one network call (two with guidance)."""
        if self.objective == "mean_flow":
            return mean_flow_step(self._guided(codes, guidance, span=True), code)
        denoise = self._guided(codes, guidance)
        return code_then_noise(denoise, self.schedule, self.parameterisation, code, eps, t_star)

    def many_steps(
        self, noise: Tensor, codes: Tensor, *, steps: int, guidance: float, skip: bool = False
    ) -> Tensor:
        """The clean latent [B, d] of pure noise in ``steps`` calls: the multi-step rival of one step."""
        if self.objective == "mean_flow":
            return self._flow(noise, codes, steps, guidance)
        denoise = self._guided(codes, guidance)
        return ddim(denoise, self.schedule, self.parameterisation, noise, steps, skip=skip)

    def _flow(self, z: Tensor, codes: Tensor, steps: int, guidance: float) -> Tensor:
        u = self._guided(codes, guidance, span=True)
        width = torch.full((len(z),), 1.0 / steps, device=z.device)
        for number in range(steps):
            z = z - u(z, 1 - number * width, width) / steps
        return z

    def _guided(self, codes: Tensor, guidance: float, *, span: bool = False) -> Callable[..., Tensor]:
        """``(1 + w) f(c) - w f(null)`` with the conditions bound."""

        def call(z: Tensor, t: Tensor, over: Tensor | None = None) -> Tensor:
            kept = self.denoiser(z, t, codes, over if span else None)
            if guidance == 0:
                return kept
            null = self.denoiser(z, t, torch.full_like(codes, -1), over if span else None)
            return (1 + guidance) * kept - guidance * null

        return call
