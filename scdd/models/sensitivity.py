"""How firmly a code holds the cell it makes: ``|ds/dz|``, s the expected log1p expression.

LD3M (Moser et al. 2024) and scDD say that gradients fade over many denoising steps, which is why one step is
taken. This measures it for a trained generator instead of assuming it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from torch import Tensor

    from scdd.models.scdg import SCDG

# Numbers of decoder Jacobian that lie in memory at once.
_AT_ONCE = 2**24


class Sensitivity(NamedTuple):
    """Norms of ``ds/dz`` of every code: ``frobenius`` [n], ``operator`` [n] (largest singular value)."""

    frobenius: np.ndarray
    operator: np.ndarray
    steps: int


def sensitivity(
    model: SCDG,
    *,
    steps: int = 1,
    n: int = 64,
    condition: Mapping[str, Any] | None = None,
    guidance: float | None = None,
    skip: bool = False,
    seed: int = 0,
) -> Sensitivity:
    """Norms of the Jacobian of expected log1p expression in the code, at ``n`` codes.

    Parameters
    ----------
    model
        A trained :class:`scdd.SCDG`.
    steps
        1: the generator's one call, at draws of the class prior (``code_then_noise``) or of noise.
        K > 1: K calls from pure noise, in which the derivative is taken.
    n, condition
        How many codes, and columns of conditions as in :meth:`SCDG.generate`; left out, classes take turns.
    guidance, skip
        As in generation; ``skip`` is LD3M's remedy and needs a denoiser and ``steps > 1``.
    seed
        Of codes, noise and open conditions.

    Notes
    -----
    Exact but for rounding: d backward passes give ``dz0/dz`` [d, d] of every code, d forward-mode passes the
    decoder's ``ds/dz0``; the norms follow from the d x d matrix ``(ds/dz)^T ds/dz``.

    Raises
    ------
    InputError
        Untrained model, unknown conditions, ``n`` below 1, ``steps`` outside the schedule.
    """
    model._require_fit()
    if n < 1:
        raise InputError(f"n={n}; ask for at least one code")
    if not 1 <= steps <= model.config.timesteps:
        raise InputError(f"steps={steps}; it lies in 1..{model.config.timesteps}")
    fields = _fields(model, n, condition, seed)
    code, make = _generator(model, fields, steps, guidance, skip, seed)
    latent, inner = _latent_jacobian(make, code)
    gram = _decoder_gram(model, latent, fields)
    whole = inner.transpose(1, 2) @ gram @ inner
    values = torch.linalg.eigvalsh(whole.double()).clamp_min(0)
    return Sensitivity(values.sum(1).sqrt().numpy(), values[:, -1].sqrt().numpy(), steps)


def _fields(model: SCDG, n: int, condition: Mapping[str, Any] | None, seed: int) -> Tensor:
    given = model.conditions.encode(condition or {}, n)
    if (given[:, 0] < 0).all():
        given[:, 0] = np.arange(n) % model.conditions.sizes[0]
    return torch.from_numpy(model.conditions.complete(given, np.random.default_rng(seed)))


def _generator(
    model: SCDG, fields: Tensor, steps: int, guidance: float | None, skip: bool, seed: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The codes [n, d] and the map from codes to clean latents, noise and conditions bound."""
    stream = torch.Generator().manual_seed(seed)
    dtype = model.net.denoiser.enter.weight.dtype
    eps = torch.randn(len(fields), model.autoencoder.config.latent, generator=stream).to(dtype)
    if steps == 1:
        start = eps if model.config.code_is_noise else model.priors.sample(fields[:, 0], stream).to(dtype)
        return start, lambda z: model.latent(z, eps, fields, guidance=guidance)
    w = model.config.guidance if guidance is None else guidance

    def many(z: Tensor) -> Tensor:
        again = torch.Generator().manual_seed(seed + 1)
        return model.net.many_steps(z, fields, steps=steps, guidance=w, skip=skip, generator=again)

    return eps, many


def _latent_jacobian(make: Callable[[Tensor], Tensor], code: Tensor) -> tuple[Tensor, Tensor]:
    """Clean latents [n, d] and their Jacobians [n, d, d]; rows do not mix, so one pass serves all codes."""
    z = code.clone().requires_grad_()
    with torch.enable_grad():
        latent = make(z)
        rows = [
            torch.autograd.grad(latent[:, k].sum(), z, retain_graph=True)[0] for k in range(latent.shape[1])
        ]
    return latent.detach(), torch.stack(rows, 1)


@torch.no_grad()
def _decoder_gram(model: SCDG, latent: Tensor, fields: Tensor) -> Tensor:
    """``J^T J`` [n, d, d] of the decoder's Jacobians ``J = ds/dz0`` [G, d], a few cells at a time."""
    net, d = model.net.autoencoder, latent.shape[1]
    totals = model._typical_totals(fields).to(latent)
    found = []
    for rows in torch.arange(len(latent)).split(max(_AT_ONCE // (d * model.preprocessor.n_genes), 1)):

        def decode(z: Tensor, size: Tensor = totals[rows]) -> Tensor:
            return net.decode(z, size)

        at = latent[rows]
        columns = [
            torch.func.jvp(decode, (at,), (torch.eye(d).to(at)[k].expand_as(at).contiguous(),))[1]
            for k in range(d)
        ]
        jacobian = torch.stack(columns, 2)
        found.append(jacobian.transpose(1, 2) @ jacobian)
    return torch.cat(found)
