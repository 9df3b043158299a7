"""The public function: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch

from .. import _philox
from .._check import (
    require_choice,
    require_device_of,
    require_dims,
    require_float,
    require_like,
    require_number,
    require_shape,
)
from .._dispatch import is_fused
from . import ops, reference
from .tiles import MAX_PATCH

if TYPE_CHECKING:
    from torch import Tensor

    from .._dispatch import Implementation

Prediction = Literal["eps", "v", "x0"]


class DenoiseLoss(NamedTuple):
    """What :func:`denoise_loss` returns."""

    loss: Tensor
    """Weighted mean over the cells, 0-d, float32 (float64 for float64)."""
    cells: Tensor
    """Mean squared error of each cell without its weight, ``[B]``; it gives no gradient."""


def denoise_loss(
    h: Tensor,
    shift: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor,
    x0: Tensor,
    signal: Tensor,
    noise: Tensor,
    *,
    seed: int | Tensor | None = None,
    eps: Tensor | None = None,
    prediction: Prediction = "eps",
    cell_weight: Tensor | None = None,
    norm_eps: float = 1e-6,
    implementation: Implementation = "auto",
) -> DenoiseLoss:
    """``mean_b w[b] mean_g (prediction[b, g] - target[b, g])^2`` of a diffusion transformer's last tokens.

    The final layer of the transformer [1]_, ``(layer_norm(h) (1 + scale) + shift) @ weight.T + bias``, gives
    `P` genes a token, and is compared with the target at once: the prediction is not written. The noise is
    drawn again from the `seed` that :func:`noise_patch_embed` was given. Genes that fill up the last patch
    count nowhere. Arithmetic is in float32 (float64 for float64); the modulated rows are rounded to the
    dtype of `h` before they are multiplied.

    Parameters
    ----------
    h
        Tokens of the last block, ``[B, N, D]``. float32, bfloat16, float16 or float64.
    shift, scale
        Bias and gain of each cell, ``[B, D]``, with the dtype of `h`.
    weight, bias
        The projection, ``[P, D]`` and ``[P]``, with the dtype of `h`. `P` of at most 16.
    x0
        The clean cells, ``[B, G]`` with ``N = ceil(G / P)``, of any floating-point dtype. Read where
        `prediction` is not ``"eps"``; else only their number of genes is.
    signal, noise
        ``sqrt(alpha_bar)`` and ``sqrt(1 - alpha_bar)`` of the time of each cell, ``[B]``.
    seed
        Which noise: an int, or a tensor of one int64 on the device of `h`.
    eps
        The noise itself, ``[B, G]``, in place of `seed`. Where `prediction` is ``"x0"`` neither is needed.
    prediction
        The target: ``"eps"``, the velocity ``"v" = signal eps - noise x0`` [2]_, or ``"x0"``.
    cell_weight
        ``w``, ``[B]``, one for each cell if not given; that of min-SNR [3]_ depends on `prediction`. It may
        want a gradient.
    norm_eps
        Added to the variance.
    implementation
        * ``"auto"``: the Triton kernels on CUDA, else PyTorch.
        * ``"reference"``: the definition in plain PyTorch, which can be differentiated any number of times.
        * ``"triton"``: the kernels, or an error where they can not run.

    Returns
    -------
    DenoiseLoss
        `loss`, differentiable once in `h`, `shift`, `scale`, `weight`, `bias` and `cell_weight`, with
        deterministic gradients; and `cells`, the error of each.

    Raises
    ------
    TypeError
        An argument is not a tensor, or its dtype is not supported or differs from that of `h`.
    ValueError
        A shape or device does not fit, seed and eps are both given or both missing, something wants a
        gradient that gets none, `norm_eps` is negative, or `prediction` or `implementation` is unknown or
        can not be had.

    References
    ----------
    .. [1] W. Peebles and S. Xie, "Scalable Diffusion Models with Transformers", ICCV 2023.
    .. [2] T. Salimans and J. Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022.
    .. [3] T. Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", ICCV 2023.

    Examples
    --------
    >>> tokens = scdd.kernels.noise_patch_embed(
    ...     x0, signal, noise, embed.weight, embed.bias, position, seed=step
    ... )
    >>> loss, cells = scdd.kernels.denoise_loss(
    ...     blocks(tokens), shift, scale, head.weight, head.bias, x0, signal, noise, seed=step
    ... )
    """
    _check_layer(h, shift, scale, weight, bias, norm_eps)
    _check_target(h, weight, x0, signal, noise, eps, cell_weight)
    require_choice("prediction", prediction, get_args(Prediction))
    if (seed is not None and eps is not None) or (prediction != "x0" and seed is None and eps is None):
        raise ValueError("give either seed or eps: the noise is drawn, or it is there")
    seeded = None if seed is None else _philox.as_seed(seed, h.device)
    limit = None
    if len(weight) > MAX_PATCH:
        limit = (
            f"a patch has {len(weight)} genes and the kernels take at most {MAX_PATCH}; use smaller patches"
        )
    compute = reference.denoise_loss
    if is_fused(implementation, h, limit=limit):
        compute = ops.DenoiseLossFunction.apply
    tensors = (h, shift, scale, weight, bias, x0, signal, noise, cell_weight, seeded, eps)
    return DenoiseLoss(*compute(*tensors, prediction, norm_eps))


def _check_layer(
    h: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, norm_eps: float
) -> None:
    """Refuse a final layer that no implementation can take."""
    require_float("h", h)
    require_dims("h", h, (3,), "[B, N, D]")
    width = h.shape[-1]
    if width == 0:
        raise ValueError(f"h has shape {tuple(h.shape)}; give it channels, [B, N, D]")
    require_like("shift", shift, (len(h), width), "[B, D]", "h", h)
    require_like("scale", scale, (len(h), width), "[B, D]", "h", h)
    require_float("weight", weight)
    require_dims("weight", weight, (2,), "[P, D]")
    if len(weight) == 0:
        raise ValueError("weight has no genes; give it the shape [P, D]")
    require_like("weight", weight, (len(weight), width), "[P, D]", "h", h)
    require_like("bias", bias, (len(weight),), "[P]", "h", h)
    require_number("norm_eps", norm_eps)
    if not norm_eps >= 0:
        raise ValueError(f"norm_eps is {norm_eps}; it is added to a variance and can not be negative")


def _check_target(
    h: Tensor, weight: Tensor, x0: Tensor, signal: Tensor, noise: Tensor, eps: Tensor | None,
    cell_weight: Tensor | None,
) -> None:  # fmt: skip
    """Refuse a target that does not fit the tokens, or that would want a gradient."""
    require_float("x0", x0)
    require_dims("x0", x0, (2,), "[B, G]")
    cells, patches, patch = len(h), h.shape[1], len(weight)
    if x0.shape[0] != cells or -(-x0.shape[1] // patch) != patches:
        raise ValueError(
            f"x0 has shape {tuple(x0.shape)}; h has {cells} cells of {patches} patches of {patch} genes, "
            f"so give it the shape [{cells}, G] with ceil(G / {patch}) = {patches}"
        )
    per_cell = {"signal": signal, "noise": noise}
    given = {"cell_weight": cell_weight, "eps": eps}
    for name, value in (
        per_cell | {name: value for name, value in given.items() if value is not None}
    ).items():
        require_float(name, value)
        shape, meaning = (tuple(x0.shape), "[B, G]") if name == "eps" else ((cells,), "[B]")
        require_shape(name, value, shape, meaning)
        require_device_of(name, value, "h", h)
    require_device_of("x0", x0, "h", h)
    fixed: dict[str, Tensor | None] = {"x0": x0, "signal": signal, "noise": noise, "eps": eps}
    for name, wanted in fixed.items():
        if wanted is not None and wanted.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} wants a gradient and gets none; pass {name}.detach()")
