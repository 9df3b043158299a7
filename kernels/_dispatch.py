"""How an operator finds its implementation, and how it is made known to PyTorch."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

Implementation = Literal["auto", "reference", "triton"]

# Both are read once: Triton itself reads TRITON_INTERPRET when a kernel is defined, and a compiled graph must
# not search the disk for a package.
INTERPRET: Final = os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "yes", "y"}
TRITON_INSTALLED: Final = importlib.util.find_spec("triton") is not None

TRITON_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)

_Result = TypeVar("_Result")

_LIBRARY = torch.library.Library("scdd", "FRAGMENT")


def define(
    schema: str,
    *,
    reference: Callable[..., object],
    kernel: Callable[..., object],
    fake: Callable[..., object],
) -> torch._ops.OpOverload:
    """Register one operator as ``scdd::<name>`` and return it.

    CPU tensors get `reference`, CUDA tensors `kernel`. Under ``TRITON_INTERPRET=1`` CPU tensors get `kernel`
    too, so that the tests of an operator exercise its Triton code without a GPU. All run outside autocast.

    No gradient is registered: an ``autograd.Function`` around the operator costs less a call.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, outside_autocast(kernel if INTERPRET else reference, "cpu"), "CPU")
    _LIBRARY.impl(name, outside_autocast(kernel, "cuda"), "CUDA")
    torch.library.register_fake(f"scdd::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.scdd, name).default


def outside_autocast(
    compute: Callable[..., _Result], device_type: str | None = None
) -> Callable[..., _Result]:
    """Have `compute` see its tensors as they are, whatever its caller casts.

    Autocast reaches into Python implementations: their products in float32 would be taken in 16 bits. Without
    a `device_type` that of the first argument counts.
    """

    @functools.wraps(compute)
    def as_they_are(*args: Any, **kwargs: Any) -> _Result:
        device = args[0].device.type if device_type is None else device_type
        if not torch.is_autocast_enabled(device):
            return compute(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return compute(*args, **kwargs)

    return as_they_are


def is_fused(implementation: Implementation, x: torch.Tensor, *, limit: str | None = None) -> bool:
    """Whether the registered operator answers for `x`, or else the plain definition.

    Parameters
    ----------
    implementation
        What the caller asked for.
    x
        The tensor whose device and dtype decide.
    limit
        Why the kernels of this operator can not take the sizes at hand, and what would help ("x has width
        9000 and the kernels hold a row of at most 4096; split the rows"), or None where they can.

    Raises
    ------
    ValueError
        `implementation` is unknown, or it is ``"triton"`` and Triton can not take `x`. A named implementation
        is never replaced by another.
    """
    if implementation == "reference":
        return False
    if implementation == "auto":
        if x.device.type == "cpu" and not INTERPRET:
            return True
        return _triton_refusal(x, limit) is None
    if implementation != "triton":
        known = ", ".join(repr(name) for name in get_args(Implementation))
        raise ValueError(f"implementation is {implementation!r}; choose one of {known}")
    refusal = _triton_refusal(x, limit)
    if refusal is not None:
        raise ValueError(f"implementation='triton' can not be had: {refusal}, or use 'auto' or 'reference'")
    return True


def _triton_refusal(x: torch.Tensor, limit: str | None) -> str | None:
    """Why the Triton kernels can not take `x` and what would help, or None where they can."""
    if not TRITON_INSTALLED:
        return "Triton is not installed; `pip install triton` (Linux)"
    if x.device.type != "cuda" and not (INTERPRET and x.device.type == "cpu"):
        return (
            f"the tensors are on {x.device} and the kernels run on CUDA; move them with .cuda(), "
            "set TRITON_INTERPRET=1 before Python starts (a slow interpreter for tests)"
        )
    if x.dtype not in TRITON_DTYPES:
        return f"the tensors have dtype {x.dtype} and the kernels compute in float32; cast them with .float()"
    return limit
