"""The public function: what goes in, what comes out, and what is wrong when it can not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from .._check import (
    require_choice,
    require_device_of,
    require_dims,
    require_float,
    require_integer,
    require_like,
    require_number,
    require_shape,
    require_tensor,
)
from .._dispatch import is_fused
from .._philox import as_seed
from . import ops, reference, tiles
from .weights import DenoiserWeights

if TYPE_CHECKING:
    from .._dispatch import Implementation

Parameterisation = Literal["eps", "v", "x0"]
Levels = tuple["Tensor | None", "Tensor | None", float, float]


def single_step_denoise(
    z: Tensor,
    modulation: Tensor,
    weights: DenoiserWeights,
    *,
    signal: float | Tensor,
    noise: float | Tensor,
    condition: Tensor | None = None,
    eps: Tensor | None = None,
    seed: int | Tensor | None = None,
    parameterisation: Parameterisation = "v",
    mean: Tensor | None = None,
    std: Tensor | None = None,
    norm_eps: float = 1e-6,
    implementation: Implementation = "auto",
) -> Tensor:
    """``x0(z_t, f(z_t, c)) * std + mean`` with ``z_t = signal z + noise eps``: codes to clean latents.

    The single-step conditional diffusion generator of scDD [1]_ with everything but its embeddings in one
    launch: `f` is a residual MLP under adaptive layer norm (adaLN-Zero [2]_),

    ``h = w_in z_t + b_in``, then in every block
    ``h += gate_c * (w2 silu(w1 (norm(h) (1 + scale_c) + shift_c) + b1) + b2)``, then
    ``f = w_out (norm(h) (1 + scale_c) + shift_c) + b_out``,

    and the clean estimate `x0` is ``signal z_t - noise f`` of a `v`, ``(z_t - noise f) / signal`` of an `eps`
    and `f` itself of an `x0`. The weights are frozen: the gradient is of the codes alone.

    Parameters
    ----------
    z
        Codes, ``[B, d]``, d at most 256. float32, bfloat16, float16 or float64. Copied if not contiguous.
    modulation
        ``[C, (3 L + 2) W]``: for each of C conditions shift, scale and gate of each of L blocks, and shift
        and scale of the last norm. With the dtype of `weights`. It is a function of time and conditions;
        compute it once as long as those stay.
    weights
        What :func:`pack_denoiser` made. Their dtype is what matrices are multiplied in, with sums in float32:
        that of `z`, or a 16-bit dtype beside `z` of float32.
    signal, noise
        Levels of the forward process, ``sqrt(a_t)`` and ``sqrt(1 - a_t)``: two numbers, or two tensors
        ``[B]`` with the dtype of `z`.
    condition
        Row of `modulation` of each code, int32 or int64 ``[B]``. Not checked against C, as that would wait
        for the GPU. Without it code `i` has row `i`.
    eps
        Noise of each code, ``[B, d]`` with the dtype of `z`.
    seed
        In place of `eps`: draw it, element `i` from counter `i` of this seed, an int or a tensor of one
        int64. With neither, codes are only scaled.
    parameterisation
        What the network says: ``"eps"``, ``"v"`` or ``"x0"``.
    mean, std
        Of the latents before they were standardised, ``[d]`` with the dtype of `z`; both or neither.
    norm_eps
        Added to the variance of a row.
    implementation
        * ``"auto"``: the Triton kernels on CUDA, else PyTorch.
        * ``"reference"``: the definition in plain PyTorch, which has gradients of everything.
        * ``"triton"``: the kernels, or an error where they can not run.

    Returns
    -------
    Tensor
        Clean latents ``[B, d]`` with the dtype of `z`, differentiable once in `z`; the gradient is
        deterministic.

    Raises
    ------
    TypeError
        An argument is not a tensor, or its dtype is not supported or does not go with the others.
    ValueError
        A shape or device does not fit, something else than `z` asks for a gradient, or a setting is unknown
        or can not be had.

    Notes
    -----
    Guidance ``(1 + w) f(c) - w f(null)`` is linear in the result: pass every code twice, with its condition
    and with that of null, and combine. Two calls in one launch cost less than twice one where few codes leave
    multiprocessors idle. A mean-flow step ``z - u(z)`` is ``signal=1, noise=1`` without `eps`.

    References
    ----------
    .. [1] "scDD: single-cell RNA-seq dataset distillation in latent codes with single-step conditional
       diffusion generator", arXiv 2503.04357.
    .. [2] W. Peebles and S. Xie, "Scalable Diffusion Models with Transformers", ICCV 2023.

    Examples
    --------
    >>> weights = scdd.kernels.pack_denoiser(net.enter, [(b[0], b[2]) for b in net.branches], net.leave)
    >>> clean = scdd.kernels.single_step_denoise(
    ...     codes, modulation, weights, condition=label, eps=eps, signal=0.72, noise=0.69
    ... )
    """
    _check_network(z, modulation, weights)
    _check_rows(z, modulation, condition, eps, mean, std)
    require_choice("parameterisation", parameterisation, get_args(Parameterisation))
    require_number("norm_eps", norm_eps)
    if not norm_eps >= 0:
        raise ValueError(f"norm_eps is {norm_eps}; it is added to a variance and can not be negative")
    if seed is not None and eps is not None:
        raise ValueError("both seed and eps are given; give either: the noise is drawn, or it is there")
    levels = _levels(z, signal, noise)
    drawn = None if seed is None else as_seed(seed, z.device)
    fused = is_fused(implementation, z, limit=_limit(z, weights))
    settings = (parameterisation, norm_eps)
    if not fused:
        return reference.single_step_denoise(
            z, eps, drawn, condition, modulation, weights, *levels, mean, std, *settings
        )  # fmt: skip
    if torch.is_grad_enabled():
        _check_frozen(modulation, *weights, *levels[:2], eps, mean, std)
    given = (z, eps, drawn, condition, modulation)
    parts = (None if part is None else part.contiguous() for part in given)
    mean, std = (None if part is None else part.contiguous() for part in (mean, std))
    packed = tuple(part.contiguous() for part in weights)
    return ops.SingleStepDenoise.apply(*parts, packed, levels, mean, std, *settings)


def _check_network(z: Tensor, modulation: Tensor, weights: DenoiserWeights) -> None:
    require_float("z", z)
    require_dims("z", z, (2,), "[B, d]")
    if not isinstance(weights, DenoiserWeights):
        raise TypeError(f"weights is a {type(weights).__name__}; make it with pack_denoiser")
    first = weights.w1
    require_float("weights.w1", first)
    require_dims("weights.w1", first, (3,), "[L, H, W]")
    (depth, hidden, width), latent = first.shape, weights.w_in.shape[-1]
    if not 0 < z.shape[1] <= latent:
        raise ValueError(f"z has shape {tuple(z.shape)} and the weights take codes of up to {latent} numbers")
    shapes = (
        (width, latent), (width,), (depth, hidden, width), (depth, hidden),
        (depth, width, hidden), (depth, width), (latent, width), (latent,),
    )  # fmt: skip
    for name, part, shape in zip(DenoiserWeights._fields, weights, shapes, strict=True):
        require_like(f"weights.{name}", part, shape, "as pack_denoiser makes it", "weights.w1", first)
    if z.dtype != first.dtype and (z.dtype != torch.float32 or first.dtype.itemsize != 2):
        raise TypeError(
            f"weights have dtype {first.dtype} and z has {z.dtype}; pack them with dtype=z.dtype, "
            "or with a 16-bit dtype beside z of float32"
        )
    require_device_of("weights", first, "z", z)
    require_tensor("modulation", modulation)
    require_dims("modulation", modulation, (2,), "[C, (3 L + 2) W]")
    row = (modulation.shape[0], (3 * depth + 2) * width)
    require_like("modulation", modulation, row, "[C, (3 L + 2) W]", "weights", first)


def _check_rows(
    z: Tensor, modulation: Tensor, condition: Tensor | None, eps: Tensor | None,
    mean: Tensor | None, std: Tensor | None,
) -> None:  # fmt: skip
    if condition is None:
        if len(modulation) != len(z):
            raise ValueError(
                f"modulation has {len(modulation)} rows for {len(z)} codes; "
                "give one to each, or pass condition="
            )
    else:
        require_integer("condition", condition)
        require_shape("condition", condition, (len(z),), "[B]")
        require_device_of("condition", condition, "z", z)
    if eps is not None:
        require_like("eps", eps, tuple(z.shape), "that of z", "z", z)
    if (mean is None) != (std is None):
        raise ValueError("one of mean and std is missing; pass both or neither")
    for name, part in (("mean", mean), ("std", std)):
        if part is not None:
            require_like(name, part, (z.shape[1],), "[d]", "z", z)


def _levels(z: Tensor, signal: float | Tensor, noise: float | Tensor) -> Levels:
    """Levels as two tensors, or as two numbers."""
    if isinstance(signal, Tensor) and isinstance(noise, Tensor):
        for name, level in (("signal", signal), ("noise", noise)):
            require_like(name, level, (len(z),), "[B]", "z", z)
        return signal.contiguous(), noise.contiguous(), 1.0, 0.0
    if isinstance(signal, Tensor) or isinstance(noise, Tensor):
        raise TypeError("one of signal and noise is a tensor; pass two numbers or two tensors [B]")
    require_number("signal", signal)
    require_number("noise", noise)
    return None, None, signal, noise


def _check_frozen(*others: Tensor | None) -> None:
    """Refuse what would silently get no gradient."""
    if any(other is not None and other.requires_grad for other in others):
        raise ValueError(
            "something else than z requires a gradient, and the operator gives one to z alone; detach it, "
            "or use implementation='reference'"
        )


def _limit(z: Tensor, weights: DenoiserWeights) -> str | None:
    """Why the kernels can not take these sizes, if so."""
    _, hidden, width = weights.w1.shape
    if weights.w_in.shape[1] > tiles.MAX_LATENT:
        return f"codes have {z.shape[1]} numbers and the kernels hold at most {tiles.MAX_LATENT}"
    if width > tiles.MAX_WIDTH or width % tiles.MIN_WIDTH or hidden % tiles.MIN_WIDTH:
        return (
            f"the layers are {width} and {hidden} wide and the kernels take multiples of {tiles.MIN_WIDTH} "
            f"up to a width of {tiles.MAX_WIDTH}; pad the layers"
        )
    return None
