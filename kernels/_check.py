"""What public functions ask of their tensors; each refusal names the argument, its value and the remedy."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Collection

FLOATS: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS: Final = (torch.int32, torch.int64)
# what a number is while a graph for all sizes is traced
_SYMBOLIC: Final = (torch.SymInt, torch.SymFloat)


def require_tensor(name: str, value: object) -> None:
    """Refuse what is not a tensor, or is a sparse or nested one."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; pass a torch.Tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{name} has the layout {value.layout}; pass a dense tensor, {name}.to_dense()")


def require_number(name: str, value: object) -> None:
    """Refuse what is not a number of Python or NumPy; which numbers are right is up to the caller."""
    if isinstance(value, bool) or not isinstance(value, (int, float, *_SYMBOLIC, numbers.Real)):
        raise TypeError(f"{name} is a {type(value).__name__}; pass a number")


def require_whole(name: str, value: object) -> None:
    """Refuse what is not a whole number."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt, numbers.Integral)):
        raise TypeError(f"{name} is a {type(value).__name__}; pass a whole number")


def require_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False: NumPy's would be taken for numbers further down."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is a {type(value).__name__}; pass True or False")


def require_choice(name: str, value: object, known: Collection[str]) -> None:
    """Refuse what is not one of the names `known`."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, known))}")


def require_float(name: str, value: Tensor) -> None:
    """Refuse what is not a tensor of a supported floating-point dtype."""
    require_tensor(name, value)
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {value.dtype}; cast it to float32, bfloat16, float16 or float64")


def require_integer(name: str, value: Tensor) -> None:
    """Refuse what is not a tensor of int32 or int64."""
    require_tensor(name, value)
    if value.dtype not in INTEGERS:
        raise TypeError(f"{name} has dtype {value.dtype}; cast it with {name}.to(torch.int32)")


def require_dims(name: str, value: Tensor, dims: Collection[int], meaning: str) -> None:
    """Refuse a tensor that has not one of the numbers of dimensions `dims`; `meaning` is "[T, H, D]"."""
    if value.ndim not in dims:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; reshape it to {meaning}")


def require_shape(name: str, value: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    """Refuse a tensor of another shape than `shape`; `meaning` says what its sizes are, "[C, N]"."""
    require_tensor(name, value)
    if value.shape != shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; give it the shape {tuple(shape)}, {meaning}"
        )


def require_dtype_of(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse a tensor whose dtype is not that of `other`."""
    require_tensor(name, value)
    if value.dtype != other.dtype:
        raise TypeError(
            f"{name} has dtype {value.dtype} and {other_name} has {other.dtype}; "
            f"cast with {name}.to({other_name}.dtype)"
        )


def require_device_of(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse a tensor on another device than `other`."""
    require_tensor(name, value)
    if value.device != other.device:
        raise ValueError(
            f"{name} is on {value.device} and {other_name} is on {other.device}; "
            f"move it with {name}.to({other_name}.device)"
        )


def require_like(
    name: str, value: Tensor, shape: tuple[int, ...], meaning: str, other_name: str, other: Tensor
) -> None:
    """Refuse a tensor unless it has `shape`, and the dtype and device of `other`."""
    require_shape(name, value, shape, meaning)
    require_dtype_of(name, value, other_name, other)
    require_device_of(name, value, other_name, other)
