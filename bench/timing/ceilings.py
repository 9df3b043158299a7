"""What this very machine can do: bytes a second of a copy, operations a second of a matrix product."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .clock import Clock, spreads

_COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}
_MATMUL_WIDTH = {"cuda": 8192, "cpu": 1024}


class Ceilings(NamedTuple):
    """Measured limits; bytes count what is read and what is written."""

    copy_bytes_per_s: float
    matmul_flops_per_s: float


def measure(device: torch.device, dtype: torch.dtype, clock: Clock) -> Ceilings:
    """Copy a large buffer and multiply two large matrices of random numbers (zeros would flatter a GPU)."""
    source = torch.empty(_COPY_BYTES[device.type], dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    width = _MATMUL_WIDTH[device.type]
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    timed = spreads(
        {"copy": lambda: target.copy_(source), "matmul": lambda: torch.mm(a, b, out=out)},
        clock, rounds=20, seconds=5,
    )  # fmt: skip
    return Ceilings(
        copy_bytes_per_s=2 * source.numel() / (1e-6 * timed["copy"].p50),
        matmul_flops_per_s=2 * width**3 / (1e-6 * timed["matmul"].p50),
    )
