"""Time functions that take turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import time
from statistics import quantiles
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Larger than the second-level cache of any GPU, so that every run finds its inputs in main memory.
_CACHE_BYTES = 256 * 2**20


class Spread(NamedTuple):
    """Microseconds a call: the 20th, 50th and 80th percentile, of so many calls."""

    p20: float
    p50: float
    p80: float
    rounds: int


class Clock:
    """Microseconds that a call takes on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._flush = torch.empty(_CACHE_BYTES, dtype=torch.int8, device=device)
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def __call__(self, function: Callable[[], object]) -> float:
        """Time one call, with cold caches on a GPU."""
        if not self._cuda:
            start = time.perf_counter()
            function()
            return 1e6 * (time.perf_counter() - start)
        # while the flush runs the launches queue behind it, so that their own cost is not timed
        self._flush.zero_()
        self._events[0].record()
        function()
        self._events[1].record()
        torch.cuda.synchronize()
        return 1e3 * self._events[0].elapsed_time(self._events[1])


def spreads(
    functions: Mapping[str, Callable[[], object]], clock: Clock, *, rounds: int, seconds: float
) -> dict[str, Spread]:
    """Time each function `rounds` times in turns, or fewer when `seconds` are over; never under five times."""
    for function in functions.values():
        for _ in range(3):
            function()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= 5 and time.perf_counter() > end:
            break
        for name, function in functions.items():
            samples[name].append(clock(function))
    return {name: _spread(times) for name, times in samples.items()}


def _spread(times: list[float]) -> Spread:
    deciles = quantiles(times, n=10)
    return Spread(deciles[1], deciles[4], deciles[7], len(times))


def peak_bytes(function: Callable[[], object], device: torch.device) -> int | None:
    """Most memory that a call holds beyond what was held before; None where PyTorch does not count it."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(device) - held
