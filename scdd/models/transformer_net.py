"""The diffusion transformer with its objective: what is trained, and what a sampler calls."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from scdd.diffusion.schedule import NoiseSchedule
from scdd.models.transformer_draw import Drawn, RecordedDraw, draw_once, sampling_device
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
        self._graphs: dict[tuple[Any, ...], RecordedDraw] = {}

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
        eta: float, seed: int, graph: bool = False,
    ) -> Drawn:  # fmt: skip
        """Cells of conditions [B, F], [B, K] from noise [B, G].

        Computed on ``config.device`` ("auto" is a GPU where there is one); what is drawn comes back to where
        the noise was. ``graph`` (CUDA) records the calls once and replays them for further blocks like this.
        """
        how: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance": guidance, "eta": eta}
        device = sampling_device(self.config.device)
        given = codes.to(device), numbers.to(device), noise.to(device)
        if graph:
            x0, zero = self._recorded(given, **how)(self.net, *given, seed)
        else:
            x0, zero = draw_once(self.net, self.config, self.schedule, *given, seed=seed, **how)
        return Drawn(x0.to(noise.device), None if zero is None else zero.to(noise.device))

    def _recorded(self, given: tuple[Tensor, Tensor, Tensor], **how: Any) -> RecordedDraw:
        key = (*(tuple(value.shape) for value in given), str(given[0].device), *how.values())
        if key not in self._graphs:
            self._graphs[key] = RecordedDraw(self.net, self.config, self.schedule, *given, **how)
        return self._graphs[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> TransformerDiffusion:
        """Without recordings, which hold addresses of this very module."""
        graphs, self._graphs = self._graphs, {}
        try:
            twin = self.__class__.__new__(self.__class__)
            memo[id(self)] = twin
            twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        finally:
            self._graphs = graphs
        return twin


def _weights(snr: Tensor, config: TransformerConfig) -> Tensor:
    """Weight of every time [T + 1], of mean 1 over 1..T."""
    if config.min_snr <= 0:
        return torch.ones(len(snr))
    capped = snr.clamp(max=config.min_snr)
    found = {"eps": capped / snr, "v": capped / (snr + 1), "x0": capped}[config.parameterisation]
    found[0] = 0.0
    return (found / found[1:].mean()).float()
