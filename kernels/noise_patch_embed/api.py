"""The public functions: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from .. import _philox
from .._check import (
    FLOATS,
    require_device_of,
    require_dims,
    require_float,
    require_like,
    require_shape,
    require_whole,
)
from .._dispatch import is_fused
from . import ops, reference
from .tiles import MAX_PATCH

if TYPE_CHECKING:
    from torch import Tensor

    from .._dispatch import Implementation


class NoisedTokens(NamedTuple):
    """What :func:`noise_patch_embed_with_input` returns."""

    tokens: Tensor
    """The embedded patches, ``[B, N, D]``."""
    noised: Tensor
    """``x_t = signal x0 + noise eps``, ``[B, G]``, in the dtype of the weight, as it was embedded."""


def noise_patch_embed(
    x0: Tensor,
    signal: Tensor,
    noise: Tensor,
    weight: Tensor,
    bias: Tensor,
    position: Tensor,
    *,
    seed: int | Tensor | None = None,
    eps: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """``patches(signal x0 + noise eps) @ weight.T + bias + position``, the tokens of noised cells.

    The forward process of diffusion [1]_ and the patch embedding of a diffusion transformer [2]_ in one pass:
    the noise is drawn where it is added, and neither it nor the noised cells are read again. The genes of a
    cell are cut into ``N = ceil(G / P)`` patches of `P`; where `P` does not divide `G` the last is filled up
    with zeros, which get no noise. The noise is a function of `seed` alone, that of :func:`patch_noise`, so
    that the loss can draw it again. Arithmetic is in float32 (float64 where the weight is); the noised cells
    are rounded to the dtype of `weight` before they are embedded.

    Parameters
    ----------
    x0
        Cells, ``[B, G]``, of any floating-point dtype.
    signal, noise
        ``sqrt(alpha_bar)`` and ``sqrt(1 - alpha_bar)`` of the time of each cell, ``[B]``. They get no
        gradient.
    weight, bias
        The embedding of a patch, ``[D, P]`` and ``[D]``; their dtype is that of the result. `P` of at most
        32.
    position
        What is added to each token, ``[N, D]``.
    seed
        Which noise: an int, or a tensor of one int64 on the device of `x0`, which a CUDA graph can change
        between its replays. Equal seeds give equal noise.
    eps
        The noise itself, ``[B, G]``, in place of `seed`. It gets no gradient.
    implementation
        * ``"auto"``: the Triton kernels on CUDA, else PyTorch.
        * ``"reference"``: the definition in plain PyTorch, which can be differentiated any number of times.
        * ``"triton"``: the kernels, or an error where they can not run.

    Returns
    -------
    Tensor
        ``[B, N, D]`` in the dtype of `weight`. Differentiable once in `weight`, `bias`, `position` and `x0`;
        the gradients are deterministic, and that of `x0` costs another pass over the gradient of the tokens.

    Raises
    ------
    TypeError
        An argument is not a tensor, or its dtype is not supported or differs from that of `weight`.
    ValueError
        A shape or device does not fit, not exactly one of `seed` and `eps` is given, something wants a
        gradient that gets none, or `implementation` is unknown or can not be had.

    References
    ----------
    .. [1] J. Ho, A. Jain and P. Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020.
    .. [2] W. Peebles and S. Xie, "Scalable Diffusion Models with Transformers", ICCV 2023.

    Examples
    --------
    >>> tokens = scdd.kernels.noise_patch_embed(
    ...     x0, signal, noise, embed.weight, embed.bias, position, seed=step
    ... )
    """
    tensors = (x0, signal, noise, weight, bias, position)
    return _noise_patch_embed(tensors, seed, eps, implementation)[0]


def noise_patch_embed_with_input(
    x0: Tensor,
    signal: Tensor,
    noise: Tensor,
    weight: Tensor,
    bias: Tensor,
    position: Tensor,
    *,
    seed: int | Tensor | None = None,
    eps: Tensor | None = None,
    implementation: Implementation = "auto",
) -> NoisedTokens:
    """Return the tokens of :func:`noise_patch_embed` and the noised cells that they embed.

    Parameters
    ----------
    x0, signal, noise, weight, bias, position, seed, eps, implementation
        As in :func:`noise_patch_embed`.

    Returns
    -------
    NoisedTokens
        `tokens` and `noised`; the second is differentiable in `x0`.

    Raises
    ------
    TypeError, ValueError
        As in :func:`noise_patch_embed`.

    Examples
    --------
    >>> tokens, noised = scdd.kernels.noise_patch_embed_with_input(
    ...     x0, signal, noise, embed.weight, embed.bias, position, seed=step
    ... )
    """
    tensors = (x0, signal, noise, weight, bias, position)
    return NoisedTokens(*_noise_patch_embed(tensors, seed, eps, implementation))


def patch_noise(
    seed: int | Tensor,
    cells: int,
    genes: int,
    *,
    patch: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the noise that ``seed`` stands for in the operators over patches, ``[cells, genes]``.

    Philox [1]_ counts in patches: element `j` of patch `n` of cell `b` is number ``j % 4`` of counter
    ``(b N + n) ceil(patch / 4) + j // 4``. The noise of a cell depends on its place in the batch and on the
    number of patches, not on how many cells follow.

    Parameters
    ----------
    seed
        Which noise: an int, or a tensor of one int64 on `device`.
    cells, genes
        The shape of the noise.
    patch
        Genes a patch: those of the embedding that draws the same noise.
    dtype
        Of the result. float64 carries on from the same uniform float32 numbers; 16 bits round the float32
        numbers.
    device
        Where the result lies.

    Returns
    -------
    Tensor
        Standard normal numbers ``[cells, genes]``, without a gradient; the same on every device up to the
        rounding of float32.

    Raises
    ------
    TypeError
        `seed` is neither an int nor a tensor of int64, a size is not a whole number, or `dtype` is not
        supported.
    ValueError
        `seed` does not fit 64 bits or lies on another device, or a size is negative or `patch` below 1.

    References
    ----------
    .. [1] J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Examples
    --------
    >>> eps = scdd.kernels.patch_noise(step, *x0.shape, patch=embed.weight.shape[1])
    >>> tokens = scdd.kernels.noise_patch_embed(
    ...     x0, signal, noise, embed.weight, embed.bias, position, eps=eps
    ... )
    """
    for name, size in (("cells", cells), ("genes", genes), ("patch", patch)):
        require_whole(name, size)
    if dtype not in FLOATS:
        raise TypeError(f"dtype is {dtype}; choose torch.float32, bfloat16, float16 or float64")
    if cells < 0 or genes < 0 or patch < 1:
        raise ValueError(
            f"cells is {cells}, genes {genes} and patch {patch}; give sizes, and a patch of genes"
        )
    return _philox.patch_noise(_philox.as_seed(seed, torch.device(device)), cells, genes, patch, dtype)


def _noise_patch_embed(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    seed: int | Tensor | None,
    eps: Tensor | None,
    implementation: Implementation,
) -> tuple[Tensor, Tensor]:
    _check(*tensors, seed=seed, eps=eps)
    x0, weight = tensors[0], tensors[3]
    seeded = None if seed is None else _philox.as_seed(seed, x0.device)
    limit = None
    if weight.shape[1] > MAX_PATCH:
        limit = (
            f"a patch has {weight.shape[1]} genes and the kernels take at most {MAX_PATCH}; cut smaller ones"
        )
    if is_fused(implementation, weight, limit=limit):
        return ops.NoisePatchEmbed.apply(*tensors, seeded, eps)
    return reference.noise_patch_embed(*tensors, seed=seeded, eps=eps)


def _check(
    x0: Tensor, signal: Tensor, noise: Tensor, weight: Tensor, bias: Tensor, position: Tensor,
    seed: int | Tensor | None, eps: Tensor | None,
) -> None:  # fmt: skip
    """Refuse what no implementation can take."""
    require_float("x0", x0)
    require_dims("x0", x0, (2,), "[B, G]")
    require_float("weight", weight)
    require_dims("weight", weight, (2,), "[D, P]")
    width, patch = weight.shape
    if width == 0 or patch == 0:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; give it channels and genes, [D, P]")
    require_device_of("weight", weight, "x0", x0)
    require_like("bias", bias, (width,), "[D]", "weight", weight)
    patches = -(-x0.shape[1] // patch)
    require_like("position", position, (patches, width), "[ceil(G / P), D]", "weight", weight)
    if (seed is None) == (eps is None):
        raise ValueError("give either seed or eps: the noise is drawn, or it is there")
    without_gradient = {"signal": signal, "noise": noise} | ({} if eps is None else {"eps": eps})
    for name, value in without_gradient.items():
        require_float(name, value)
        shape, meaning = (tuple(x0.shape), "[B, G]") if name == "eps" else ((x0.shape[0],), "[B]")
        require_shape(name, value, shape, meaning)
        require_device_of(name, value, "x0", x0)
        if value.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} wants a gradient and gets none; pass {name}.detach()")
