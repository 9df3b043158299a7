"""What a denoiser predicts (eps, v or x0), and the clean estimate that follows from each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Parameterisation = Literal["eps", "v", "x0"]


def target(kind: str, z0: Tensor, eps: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """The regression target of ``z_t = signal z0 + noise eps``; v as in Salimans & Ho 2022."""
    if kind == "eps":
        return eps
    if kind == "v":
        return signal * eps - noise * z0
    if kind == "x0":
        return z0
    raise ValueError(f"parameterisation={kind!r}; choose eps, v or x0")


def clean_estimate(kind: str, output: Tensor, z_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """``z0^`` from what the network said at ``z_t``.

    eps divides by the signal, which at t = T multiplies errors by 157 (linear schedule, T = 1000);
    v and x0 stay bounded.
    """
    if kind == "eps":
        return (z_t - noise * output) / signal
    if kind == "v":
        return signal * z_t - noise * output
    if kind == "x0":
        return output
    raise ValueError(f"parameterisation={kind!r}; choose eps, v or x0")
