"""SCDG as a module: frozen autoencoder, conditional one-step denoiser of its codes, frozen classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scdd.diffusion.consistency import (
    NoiseLevels,
    consistency_loss,
    consistency_step,
    consistency_steps,
    grid_size,
)
from scdd.diffusion.distilled import student_loss, student_map, teacher_map
from scdd.diffusion.mean_flow import adaptive_loss, mean_flow_step, mean_flow_target, sample_times
from scdd.diffusion.one_step import code_then_noise, ddim
from scdd.diffusion.parameterisation import clean_estimate, target
from scdd.diffusion.schedule import NoiseSchedule
from scdd.nn.denoiser import Denoiser
from scdd.nn.embeddings import drop_conditions
from scdd.nn.frozen_denoiser import FrozenDenoiser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scdd.diffusion.parameterisation import Parameterisation
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


class TeacherBatch(NamedTuple):
    """What the student is regressed on: pure noise [B, d], its clean latent [B, d], conditions [B, F]."""

    noise: Tensor
    clean: Tensor
    codes: Tensor


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

    That is the objective ``code_then_noise``. ``mean_flow`` and ``consistency`` train the same network as a
    map from noise. ``distilled`` trains it as a denoiser too, and then a second one, the student, as its map.
    """

    seen_batches: Tensor

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
        parameterisation: Parameterisation,
        condition_dropout: float,
        quality: QualityWeights,
        steps: int,
        grid: int,
    ):
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False)
        self.denoiser = Denoiser(latent, conditions, width=width, depth=depth)
        self.classifier = nn.Linear(autoencoder.gene_mean.numel(), conditions[0])
        self.schedule = NoiseSchedule.linear(timesteps)
        self.objective = objective
        self.parameterisation: Parameterisation = parameterisation
        self.condition_dropout, self.quality = condition_dropout, quality
        self.steps, self.grid, self.levels = steps, grid, NoiseLevels()
        self._packed: FrozenDenoiser | None = None
        if objective == "consistency":
            # In a buffer, so that a checkpoint of the weights also says how fine the grid is.
            self.register_buffer("seen_batches", torch.zeros((), dtype=torch.long))
        if objective == "distilled":
            self.student = Denoiser(latent, conditions, width=width, depth=depth).requires_grad_(False)

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
        batch = batch._replace(z0=self.autoencoder.posterior_draw(batch.z0, generator))
        z0 = batch.z0
        codes = drop_conditions(batch.codes, self.condition_dropout, generator)
        eps = torch.randn(z0.shape, generator=generator).to(z0)
        if self.objective == "mean_flow":
            return {"mean_flow": self._mean_flow_loss(z0, eps, codes, generator)}
        if self.objective == "consistency":
            return {"consistency": self._consistency_loss(z0, eps, codes, generator)}
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

    def _consistency_loss(self, z0: Tensor, eps: Tensor, codes: Tensor, generator: torch.Generator) -> Tensor:
        size = grid_size(int(self.seen_batches), self.steps, min(10, self.grid), self.grid)
        if self.training:  # validation looks at the grid and does not refine it
            self.seen_batches += 1
        lower, upper = self.levels.draw_pairs(self.levels.grid(size), len(z0), generator)
        network = self._guided(codes, 0.0, training=True)
        return consistency_loss(network, z0, eps, lower.to(z0), upper.to(z0), self.levels)

    def start_student(self) -> None:
        """Only the student moves from here on; it begins as a teacher that predicts v and says the means."""
        self.requires_grad_(False)
        self.student.load_state_dict(self.denoiser.state_dict())
        if self.parameterisation != "v":
            nn.init.zeros_(self.student.leave.weight)
            nn.init.zeros_(self.student.leave.bias)
        self.student.requires_grad_(True)

    def student_loss(self, batch: TeacherBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Squared error of the student's one call on pairs of the teacher."""
        student = self._guided(batch.codes, 0.0, student=True, training=True)
        return {"student": student_loss(student, self.schedule, batch.noise, batch.clean)}

    def teach(self, noise: Tensor, codes: Tensor, *, steps: int, guidance: float) -> Tensor:
        """The teacher's clean latents [B, d] of pure noise, the ODE followed closely; no graph."""
        network = self._frozen(self.denoiser)

        def denoise(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            null = None if guidance == 0 else network(z, t, torch.full_like(codes, -1))
            return network(z, t, codes), null

        return teacher_map(denoise, self.schedule, self.parameterisation, noise, steps, guidance=guidance)

    def one_step(self, code: Tensor, eps: Tensor, codes: Tensor, *, t_star: int, guidance: float) -> Tensor:
        """The clean latent [B, d] of a code in one network call (two with guidance, but for a student)."""
        if self.objective == "mean_flow":
            return mean_flow_step(self._guided(codes, guidance, span=True), code)
        if self.objective == "consistency":
            return consistency_step(self._guided(codes, guidance), code, self.levels)
        if self.objective == "distilled":
            return student_map(self._guided(codes, 0.0, student=True), self.schedule, code)
        denoise = self._guided(codes, guidance)
        return code_then_noise(denoise, self.schedule, self.parameterisation, code, eps, t_star)

    def many_steps(
        self,
        noise: Tensor,
        codes: Tensor,
        *,
        steps: int,
        guidance: float,
        skip: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The clean latent [B, d] of pure noise in ``steps`` calls: the multi-step rival of one step.

        ``generator`` draws the noise that ``consistency`` adds between calls (seed 0 without it).
        """
        if self.objective == "mean_flow":
            return self._flow(noise, codes, steps, guidance)
        denoise = self._guided(codes, guidance)
        if self.objective == "consistency":
            stream = generator or torch.Generator().manual_seed(0)
            return consistency_steps(denoise, noise, self.levels, steps, stream)
        return ddim(denoise, self.schedule, self.parameterisation, noise, steps, skip=skip)

    def _flow(self, z: Tensor, codes: Tensor, steps: int, guidance: float) -> Tensor:
        u = self._guided(codes, guidance, span=True)
        width = torch.full((len(z),), 1.0 / steps, device=z.device)
        for number in range(steps):
            z = z - u(z, 1 - number * width, width) / steps
        return z

    def _guided(
        self,
        codes: Tensor,
        guidance: float,
        *,
        span: bool = False,
        student: bool = False,
        training: bool = False,
    ) -> Callable[..., Tensor]:
        """``(1 + w) f(c) - w f(null)`` with the conditions bound; rows have one time unless ``training``."""
        own = self.student if student else self.denoiser
        network = own if training else self._frozen(own)

        def call(z: Tensor, t: Tensor, over: Tensor | None = None) -> Tensor:
            kept = network(z, t, codes, over if span else None)
            if guidance == 0:
                return kept
            null = network(z, t, torch.full_like(codes, -1), over if span else None)
            return (1 + guidance) * kept - guidance * null

        return call

    def _frozen(self, network: Denoiser) -> Denoiser | FrozenDenoiser:
        """``network`` with packed weights if none of them is trained: the same map, in fewer operations."""
        if any(p.requires_grad for p in network.parameters()):
            return network
        packed = self._packed
        if packed is None or packed.denoiser is not network or not packed.is_current():
            packed = self._packed = FrozenDenoiser(network)
        return packed
