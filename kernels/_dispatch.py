"""How an operator finds its implementation, and how it is made known to PyTorch."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING, Final, Literal, ParamSpec, TypeVar, get_args

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

Implementation = Literal["auto", "reference", "triton"]
_IMPLEMENTATIONS: Final = get_args(Implementation)

# Both are read once: Triton itself reads TRITON_INTERPRET when a kernel is defined, and a compiled graph must
# not search the disk for a package.
INTERPRET: Final = os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "yes", "y"}
TRITON_INSTALLED: Final = importlib.util.find_spec("triton") is not None

TRITON_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)

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
    too, so that the tests of an operator exercise its Triton code without a GPU.

    No gradient is registered: an ``autograd.Function`` around the operator costs less a call. Autocast ends
    at the operator, which takes tensors as they are: products inside it would be rounded to 16 bits.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, kernel if INTERPRET else reference, "CPU")
    _LIBRARY.impl(name, kernel, "CUDA")
    torch.library.register_fake(f"scdd::{name}", fake, lib=_LIBRARY)
    operator = getattr(torch.ops.scdd, name).default
    for key in (torch._C.DispatchKey.AutocastCPU, torch._C.DispatchKey.AutocastCUDA):
        _LIBRARY.impl(name, _past_autocast(operator, torch._C.DispatchKeySet(key)), key.name)
    return operator


def _past_autocast(operator: torch._ops.OpOverload, keys: torch._C.DispatchKeySet) -> Callable[..., object]:
    """`operator` with autocast off on the device of `keys`. It costs nothing where there is none."""

    def call(*args: object) -> object:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*args)

    return call


def outside_autocast(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """`function` as it is outside of autocast, which would round the products inside an operator to 16 bits.

    Tensors that a user has cast keep their dtype: an operator takes them as they are.
    """

    @functools.wraps(function)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return run


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
    if not isinstance(implementation, str) or implementation not in _IMPLEMENTATIONS:
        known = ", ".join(map(repr, _IMPLEMENTATIONS))
        raise ValueError(f"implementation is {implementation!r}; choose one of {known}")
    if implementation == "reference":
        return False
    if implementation == "auto":
        if _is_transformed():
            return False
        if x.device.type == "cpu" and not INTERPRET:
            return True
        return _triton_refusal(x, limit) is None
    refusal = _triton_refusal(x, limit)
    if refusal is not None:
        raise ValueError(f"implementation='triton' can not be had: {refusal}, or use 'auto' or 'reference'")
    return True


def _triton_refusal(x: torch.Tensor, limit: str | None) -> str | None:
    """Why the Triton kernels can not take `x` and what would help, or None where they can."""
    if _is_transformed():
        return "torch.func (vmap, grad, ...) can not see through a kernel; call it outside of the transform"
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


def _is_transformed() -> bool:
    """Whether a transform of torch.func is under way; compiled code has its own way of refusing those."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
