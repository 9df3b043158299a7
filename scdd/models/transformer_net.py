"""The diffusion transformer with its objective: what is trained, and what a sampler calls."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from scdd.diffusion.parameterisation import target
from scdd.diffusion.schedule import NoiseSchedule
from scdd.errors import InputError
from scdd.models.transformer_draw import Drawn, RecordedDraw, draw_once, last_time, sampling_device
from scdd.nn.linear_start import LinearStart
from scdd.nn.transformer import DiffusionTransformerNet, compute_dtype

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


class TransformerDiffusion(nn.Module):
    """``E_t w(t) |f(sqrt(a_t) x0 + sqrt(1 - a_t) eps, t, c) - target|^2``, and a head.

    Means over genes; where counts are modelled, plus the mean over the directions of the linear start.

    Where counts are modelled, diffusion ends at the time ``last``, of signal share ``decode_signal``, and
    counts are drawn given the noised cell, as by the decoder of a variational diffusion model (Kingma et al.
    2021). There a cell's state can be told from all genes together, and the count of a single gene cannot:
    what is left are the independent counts of a known state, a negative binomial. Its likelihood is asked at
    that time alone: dispersions that also had to serve noisier cells would be those of unknown states.

    ``w(t)`` is min-SNR-gamma weighting (Hang et al. 2023): for eps ``min(snr, g) / snr``, for v
    ``min(snr, g) / (snr + 1)``, for x0 ``min(snr, g)``.
    """

    def __init__(self, genes: int, config: TransformerConfig, *, conditions: Sequence[int], numbers: int):
        super().__init__()
        self.config = config
        self.schedule = getattr(NoiseSchedule, config.schedule)(config.timesteps)
        start = None
        if config.shape.counts:
            # fewer directions than genes: what they do not span has a variance of its own
            rank = min(config.shape.linear_rank, genes - 1)
            kind: Any = config.parameterisation
            start = LinearStart(genes, conditions[0], rank, self.schedule.alpha_bar, kind)
        self.net = DiffusionTransformerNet(
            genes, config.shape, conditions=conditions, numbers=numbers, start=start
        )
        self.last = last_time(config, self.schedule)
        if config.sampling_steps > config.timesteps - self.last:
            raise InputError(
                f"sampling_steps={config.sampling_steps}; counts are drawn from time {self.last} of "
                f"timesteps={config.timesteps}, which leaves {config.timesteps - self.last} steps"
            )
        snr = self.schedule.alpha_bar.double() / (1 - self.schedule.alpha_bar.double())
        self.register_buffer("weights", _weights(snr, config, self.last), persistent=False)
        self._graphs: dict[tuple[Any, ...], RecordedDraw] = {}

    weights: Tensor

    def loss(self, batch: CellsToLearn, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms of the objective for one batch; the generator lives on the CPU."""
        n, device = len(batch.x0), batch.x0.device
        t = torch.randint(max(self.last, 1), self.schedule.steps + 1, (n,), generator=generator)
        seed = torch.randint(2**62, (), generator=generator).to(device)
        keep = torch.rand(n, 1, generator=generator) >= self.config.condition_dropout
        keep, t = keep.to(device), t.to(device)
        codes, numbers = torch.where(keep, batch.codes, -1), torch.where(keep, batch.numbers, torch.nan)
        time, weight = t / self.schedule.steps, self.weights[t]
        if batch.counts is not None and batch.totals is not None:
            terms = self._counted(batch, t, codes, numbers, generator)
        else:
            terms = self.net.loss(
                batch.x0,
                self.schedule.signal(t)[:, 0],
                self.schedule.noise(t)[:, 0],
                time,
                codes,
                numbers,
                seed=seed,
                prediction=self.config.parameterisation,  # type: ignore[arg-type]
                weight=weight,
                zeros=batch.zeros,
            )
        if "zeros" in terms:
            terms["zeros"] = self.config.weight_zeros * terms["zeros"]
        if self.config.weight_orthonormal:
            terms["orthonormal"] = self.config.weight_orthonormal * self.net.deviation()
        return terms

    def _counted(
        self, batch: CellsToLearn, t: Tensor, codes: Tensor, numbers: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The terms from the linear start, around the means of the classes, with the likelihood of counts."""
        start, head, time = self.net.start, self.net.counts, t / self.schedule.steps
        assert start is not None, "the shape has counts=True"
        assert head is not None, "the shape has counts=True"
        assert batch.counts is not None, "the loader gives counts"
        assert batch.totals is not None, "the loader gives totals"
        eps, other = (torch.randn(batch.x0.shape, generator=generator).to(batch.x0) for _ in range(2))
        signal, noise = start.levels(time)
        cells = start.centre(signal * batch.x0 + noise * eps, time, codes)
        rows = self.net.rows(time, codes, numbers, compute_dtype(batch.x0))
        wanted = target(start.kind, batch.x0 - cells.anchor, eps, signal, noise)
        missed = self.net.centred(cells, rows) - wanted
        # how cells of a class differ lies in a few directions, which a mean over genes would hardly count
        error = missed.square().mean(1) + (missed @ start.basis).square().mean(1)
        signal, noise = start.levels(self._last_of(batch.x0))
        scores = self._scores(signal * batch.x0 + noise * other, codes)
        counts = head.loss(scores, codes[:, 0], batch.counts, batch.totals, generator)
        return {"diffusion": (self.weights[t] * error).mean(), **counts}

    def draw_counts(
        self, noised: Tensor, codes: Tensor, totals: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Counts [B, G] of cells [B, G] noised to the time ``last``, of conditions [B, F] and totals [B]."""
        assert self.net.counts is not None, "the shape has counts=True"
        return self.net.counts.draw(self._scores(noised, codes), codes[:, 0], totals, generator)

    def _scores(self, noised: Tensor, codes: Tensor) -> Tensor:
        start = self.net.start
        assert start is not None, "the shape has counts=True"
        return start.scores(start.centre(noised, self._last_of(noised), codes))

    def _last_of(self, cells: Tensor) -> Tensor:
        return torch.full((len(cells),), self.last / self.schedule.steps, device=cells.device)

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
            drawn = self._recorded(given, **how)(self.net, *given, seed)
        else:
            drawn = draw_once(self.net, self.config, self.schedule, *given, seed=seed, **how)
        return drawn.map(lambda value: value.to(noise.device))

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


def _weights(snr: Tensor, config: TransformerConfig, last: int) -> Tensor:
    """Weight of every time [T + 1], of mean 1 over those that are trained."""
    if config.min_snr <= 0:
        return torch.ones(len(snr))
    capped = snr.clamp(max=config.min_snr)
    found = {"eps": capped / snr, "v": capped / (snr + 1), "x0": capped}[config.parameterisation]
    found[0] = 0.0
    return (found / found[max(last, 1) :].mean()).float()
