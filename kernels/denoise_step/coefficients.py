"""What tells the samplers apart: six numbers for each pair of times.

Every update here is ``x0 = clamp(c[0] x + c[1] output)`` and then ``c[2] x + c[3] x0 + c[4] previous +
c[5] eps``. The first two follow from what the network predicts, the others from the solver. They are computed
in float64 from ``alpha_bar``, wherever it lies, without waiting for a device: whole schedules at once give a
table [steps, 6], a row of which is what :func:`denoise_step` wants.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .._check import require_choice, require_device_of, require_float, require_number, require_shape

Prediction = Literal["eps", "v", "x0"]
Variance = Literal["posterior", "beta"]


def ddim_coefficients(
    alpha_bar: float | Tensor,
    alpha_bar_next: float | Tensor,
    *,
    prediction: Prediction = "eps",
    eta: float = 0.0,
) -> Tensor:
    """``x' = a' x0 + sqrt(s'^2 - sigma^2) eps + sigma z``: the step of DDIM [1]_ from one time to a cleaner
    one.

    ``a = sqrt(alpha_bar)``, ``s = sqrt(1 - alpha_bar)`` and ``sigma = eta (s' / s) sqrt(1 - a^2 / a'^2)``.

    Parameters
    ----------
    alpha_bar, alpha_bar_next
        Of the time at hand, below 1, and of the next, which is larger: numbers, or tensors of one shape,
        such as those of all steps of a schedule or of the time of each cell.
    prediction
        What the network says: ``"eps"``, ``"v" = a eps - s x0`` or ``"x0"``.
    eta
        0 is deterministic, 1 has the noise of DDPM.

    Returns
    -------
    Tensor
        float32, ``[..., 6]`` on the device of the tensors.

    Raises
    ------
    TypeError
        A time is neither a number nor a floating-point tensor, or `eta` is not a number.
    ValueError
        Two tensors differ in shape or device, numbers are out of range (the values of tensors are not
        looked at, as that would wait for a GPU), `eta` is negative, or `prediction` is unknown.

    References
    ----------
    .. [1] J. Song, C. Meng and S. Ermon, "Denoising Diffusion Implicit Models", ICLR 2021.

    Examples
    --------
    >>> table = scdd.kernels.ddim_coefficients(alpha_bar[times[:-1]], alpha_bar[times[1:]])
    >>> x = scdd.kernels.denoise_step(x, network(x, times[0]), table[0])
    """
    now, after = _times(alpha_bar, alpha_bar_next)
    require_number("eta", eta)
    if not eta >= 0:
        raise ValueError(f"eta is {eta}; it scales a deviation and can not be negative")
    noise, noise_after = (1 - now).sqrt(), (1 - after).sqrt()
    sigma = eta * noise_after / noise * (1 - now / after).clamp(min=0).sqrt()
    along = (1 - after - sigma.square()).clamp(min=0).sqrt() / noise
    return _stack(now, prediction, along, after.sqrt() - along * now.sqrt(), torch.zeros_like(now), sigma)


def ddpm_coefficients(
    alpha_bar: float | Tensor,
    alpha_bar_next: float | Tensor,
    *,
    prediction: Prediction = "eps",
    variance: Variance = "posterior",
) -> Tensor:
    """Mean and deviation of ``q(x' | x, x0)``: the ancestral step of DDPM [1]_, also over several times at
    once.

    With ``alpha = alpha_bar / alpha_bar_next`` and ``beta = 1 - alpha`` the mean is
    ``(a' beta x0 + sqrt(alpha) s'^2 x) / s^2``.

    Parameters
    ----------
    alpha_bar, alpha_bar_next, prediction
        As in :func:`ddim_coefficients`.
    variance
        ``"posterior"``, ``beta s'^2 / s^2``, or ``"beta"``, which is larger. The step to clean cells gets no
        noise either way.

    Returns
    -------
    Tensor
        float32, ``[..., 6]`` on the device of the tensors.

    Raises
    ------
    TypeError, ValueError
        As in :func:`ddim_coefficients`, or `variance` is unknown.

    References
    ----------
    .. [1] J. Ho, A. Jain and P. Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020.

    Examples
    --------
    >>> table = scdd.kernels.ddpm_coefficients(alpha_bar[times[:-1]], alpha_bar[times[1:]])
    >>> x = scdd.kernels.denoise_step(x, network(x, times[0]), table[0], seed=0)
    """
    now, after = _times(alpha_bar, alpha_bar_next)
    require_choice("variance", variance, get_args(Variance))
    alpha = now / after
    beta = (1 - alpha).clamp(min=0)
    of_x = alpha.sqrt() * (1 - after) / (1 - now)
    posterior = beta * (1 - after) / (1 - now)
    square = posterior if variance == "posterior" else torch.where(after < 1, beta, posterior)
    of_x0 = after.sqrt() * beta / (1 - now)
    return _stack(now, prediction, of_x, of_x0, torch.zeros_like(now), square.sqrt())


def dpm_solver_coefficients(
    alpha_bar: float | Tensor,
    alpha_bar_next: float | Tensor,
    alpha_bar_last: float | Tensor | None = None,
    *,
    prediction: Prediction = "eps",
) -> Tensor:
    """``x' = (s' / s) x - a' expm1(-h) D``: a step of DPM-Solver++(2M) [1]_, data prediction, no noise.

    With ``lambda = log(a / s)``, ``h = lambda' - lambda`` and ``r = (lambda - lambda_last) / h`` the
    direction is ``D = (1 + 1 / (2 r)) x0 - 1 / (2 r) previous``. The first step, where there is no
    `previous`, and the one to clean cells, where h is infinite, are of first order: ``D = x0``.

    Parameters
    ----------
    alpha_bar, alpha_bar_next, prediction
        As in :func:`ddim_coefficients`.
    alpha_bar_last
        Of the time before, at which `previous` was estimated; not given in the first step.

    Returns
    -------
    Tensor
        float32, ``[..., 6]`` on the device of the tensors.

    Raises
    ------
    TypeError, ValueError
        As in :func:`ddim_coefficients`.

    References
    ----------
    .. [1] C. Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
       2022.

    Examples
    --------
    >>> first = scdd.kernels.dpm_solver_coefficients(alpha_bar[times[0]], alpha_bar[times[1]])
    >>> x, previous = scdd.kernels.denoise_step_with_estimate(x, network(x, times[0]), first)
    >>> now, after, last = alpha_bar[times[1]], alpha_bar[times[2]], alpha_bar[times[0]]
    >>> second = scdd.kernels.dpm_solver_coefficients(now, after, last)
    >>> x = scdd.kernels.denoise_step(x, network(x, times[1]), second, previous=previous)
    """
    now, after = _times(alpha_bar, alpha_bar_next)
    step = _log_ratio(after) - _log_ratio(now)
    beyond = torch.zeros_like(now)
    if alpha_bar_last is not None:
        last, _ = _times(alpha_bar_last, alpha_bar, ("alpha_bar_last", "alpha_bar"))
        beyond = step / (2 * (_log_ratio(now) - _log_ratio(last)))
        beyond = torch.where(step.isfinite(), beyond, 0.0)
    towards = -after.sqrt() * torch.expm1(-step)
    along = ((1 - after) / (1 - now)).sqrt()
    return _stack(now, prediction, along, towards * (1 + beyond), -towards * beyond, torch.zeros_like(now))


def _times(
    alpha_bar: float | Tensor,
    alpha_bar_next: float | Tensor,
    names: tuple[str, str] = ("alpha_bar", "alpha_bar_next"),
) -> tuple[Tensor, Tensor]:
    """Both in float64, of one shape and on one device."""
    tensors = []
    for name, value in zip(names, (alpha_bar, alpha_bar_next), strict=True):
        if isinstance(value, Tensor):
            require_float(name, value)
            tensors.append(value)
        else:
            require_number(name, value)
    device = tensors[0].device if tensors else None
    if len(tensors) == 2:
        require_device_of(names[1], tensors[1], names[0], tensors[0])
        if tensors[0].ndim and tensors[1].ndim:
            require_shape(names[1], tensors[1], tuple(tensors[0].shape), f"that of {names[0]}")
    # a number is filled in where the tensors are: to copy it there would wait for the device
    now, after = (
        value.to(device, torch.float64)
        if isinstance(value, Tensor)
        else torch.full((), value, dtype=torch.float64, device=device)
        for value in (alpha_bar, alpha_bar_next)
    )
    if not tensors and not (0 < now <= after <= 1 and now < 1):
        raise ValueError(
            f"{names[0]} is {alpha_bar} and {names[1]} is {alpha_bar_next}; they grow towards 1 as noise is "
            "removed, and the first is below 1"
        )
    return torch.broadcast_tensors(now, after)


def _log_ratio(alpha_bar: Tensor) -> Tensor:
    """``log(a / s)``, infinite for clean cells."""
    return 0.5 * (alpha_bar.log() - torch.log1p(-alpha_bar))


def _stack(now: Tensor, prediction: str, *solver: Tensor) -> Tensor:
    """Put the estimate of x0 before what the solver makes of it, [..., 6]."""
    require_choice("prediction", prediction, get_args(Prediction))
    signal, noise = now.sqrt(), (1 - now).sqrt()
    if prediction == "eps":
        estimate = (1 / signal, -noise / signal)
    elif prediction == "v":
        estimate = (signal, -noise)
    else:
        estimate = (torch.zeros_like(now), torch.ones_like(now))
    return torch.stack((*estimate, *solver), -1).to(torch.float32)
