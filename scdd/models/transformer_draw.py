"""Drawing cells from a diffusion transformer: once, or recorded as a CUDA graph and replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from scdd.diffusion.samplers import plan, run
from scdd.errors import InputError
from scdd.nn.sampling import Conditioned, prepared_for_sampling, refresh

if TYPE_CHECKING:
    from collections.abc import Callable

    from scdd.diffusion.schedule import NoiseSchedule
    from scdd.models.transformer_config import TransformerConfig
    from scdd.nn.transformer import Clean, DiffusionTransformerNet, TransformerShape

# Calls before a graph is recorded: kernels are compiled and libraries set up in them.
_WARM_UP = 2


class Drawn(NamedTuple):
    """Coded cells [B, G], noised still where counts are modelled; logits of zeros [B, G] or None."""

    x0: Tensor
    zero_logit: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Drawn:
        """``function`` of every tensor that there is."""
        return Drawn(*(None if value is None else function(value) for value in self))  # type: ignore[arg-type]


class Network(Protocol):
    """A network under fixed conditions."""

    def __call__(self, x: Tensor, t: Tensor) -> Clean:
        """What it says of noised cells."""


def sampling_device(name: str) -> torch.device:
    """The GPU that ``name`` stands for ("auto": if there is one), else the CPU."""
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise InputError(f"device={name!r} but PyTorch sees no CUDA device; pass device='cpu' or 'auto'")
        return torch.device(name)
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu")


def last_time(config: TransformerConfig, schedule: NoiseSchedule) -> int:
    """Where diffusion ends: at 0, or where counts are drawn from cells of signal share ``decode_signal``."""
    if not config.shape.counts:
        return 0
    return max(1, int((schedule.alpha_bar >= config.decode_signal).sum()) - 1)


def compute_dtype(config: TransformerConfig) -> torch.dtype:
    """What the blocks of a sampler compute in."""
    return torch.bfloat16 if config.precision.startswith("bf16") else torch.float32


class _Loop:
    """The calls of one sampler: times, coefficients and guidance, fixed."""

    def __init__(
        self, config: TransformerConfig, schedule: NoiseSchedule, device: torch.device, *, sampler: str,
        steps: int, guidance: float, eta: float,
    ):  # fmt: skip
        end = last_time(config, schedule)
        chosen = plan(schedule, sampler, steps, config.parameterisation, eta=eta, last=end)  # type: ignore[arg-type]
        self.times = (chosen.times[:-1] / schedule.steps).tolist()
        self.table = chosen.coefficients.to(device)
        # the network judges zeros where there is hardly noise left
        self.last, self.guidance = 1 / schedule.steps, guidance

    def seeds(self, seed: int) -> Tensor:
        """One number a step."""
        return torch.arange(seed, seed + len(self.table), device=self.table.device)

    def __call__(
        self, given: Network, free: Network | None, noise: Tensor, seeds: Tensor,
        shape: TransformerShape,
    ) -> Drawn:  # fmt: skip
        def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            return given(x, t).prediction, None if free is None else free(x, t).prediction

        x0 = run(denoise, noise, self.times, self.table, seeds, guidance=1 + self.guidance)
        if not shape.hurdle:
            return Drawn(x0)
        last = torch.full((len(x0),), self.last, device=x0.device)
        if free is not None and self.guidance == -1:
            given = free  # which ignores the conditions, and so must what is read off in the end
        return Drawn(x0, given(x0, last).zero_logit)


@torch.no_grad()
def draw_once(
    net: DiffusionTransformerNet, config: TransformerConfig, schedule: NoiseSchedule, codes: Tensor,
    numbers: Tensor, noise: Tensor, *, seed: int, **how: Any,
) -> Drawn:  # fmt: skip
    """Cells of conditions [B, F], [B, K] from noise [B, G], on the device of these."""
    loop, dtype = _Loop(config, schedule, noise.device, **how), compute_dtype(config)
    ready = prepared_for_sampling(net, dtype).to(noise.device)
    given, free = Conditioned(ready, codes, numbers, dtype), None
    if loop.guidance:
        free = Conditioned(ready, torch.full_like(codes, -1), torch.full_like(numbers, torch.nan), dtype)
    return loop(given, free, noise, loop.seeds(seed), net.shape)


class _Whole(NamedTuple):
    """A network under conditions, a row of modulation for every cell."""

    net: DiffusionTransformerNet
    codes: Tensor
    numbers: Tensor
    dtype: torch.dtype

    def __call__(self, x: Tensor, t: Tensor) -> Clean:
        return self.net.clean(x, self.net.rows(t, self.codes, self.numbers, self.dtype), t, self.codes)


class RecordedDraw:
    """:func:`draw_once` for one shape of block and one sampler, as a CUDA graph.

    A call copies weights, conditions, noise and seeds to where the graph reads them, so that it is never out
    of date, and replays. With ``record=False`` the same steps run one by one, on any device: for tests.
    """

    def __init__(
        self, net: DiffusionTransformerNet, config: TransformerConfig, schedule: NoiseSchedule, codes: Tensor,
        numbers: Tensor, noise: Tensor, *, record: bool = True, **how: Any,
    ):  # fmt: skip
        if record and noise.device.type != "cuda":
            raise InputError(
                f"graph=True on {noise.device}; CUDA graphs need a GPU: leave it out, or device='cuda'"
            )
        self.loop, self.dtype = _Loop(config, schedule, noise.device, **how), compute_dtype(config)
        self.ready = prepared_for_sampling(net, self.dtype).to(noise.device)
        self.codes, self.numbers, self.noise = codes.clone(), numbers.clone(), noise.clone()
        self.seeds = self.loop.seeds(0)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.found: Drawn | None = None
        if record:
            self._record()

    @torch.no_grad()
    def __call__(
        self, net: DiffusionTransformerNet, codes: Tensor, numbers: Tensor, noise: Tensor, seed: int
    ) -> Drawn:
        """What :func:`draw_once` returns."""
        refresh(self.ready, net)
        held = (self.codes, self.numbers, self.noise, self.seeds)
        for here, value in zip(held, (codes, numbers, noise, self.loop.seeds(seed)), strict=True):
            here.copy_(value)
        if self.graph is None:
            return self._run()
        self.graph.replay()
        assert self.found is not None
        return self.found.map(torch.Tensor.clone)

    @torch.no_grad()
    def _run(self) -> Drawn:
        """The calls, without a look at any value: every condition has a row of its own."""
        given = _Whole(self.ready, self.codes, self.numbers, self.dtype)
        null = torch.full_like(self.codes, -1), torch.full_like(self.numbers, torch.nan)
        free = _Whole(self.ready, *null, self.dtype) if self.loop.guidance else None
        return self.loop(given, free, self.noise, self.seeds, self.ready.shape)

    def _record(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.found = self._run()
