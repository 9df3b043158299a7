"""The biases that a score of attention within segments may have, and what is asked of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from ._check import require_device_of, require_shape, require_tensor

if TYPE_CHECKING:
    from torch import Tensor


class Biases(NamedTuple):
    """``key_weight log1p(key_value)`` and ``-slope |coordinate - coordinate'|``, each whole or not at all.

    `key_weight` and `slope` are ``[H]``, `key_value` and `coordinate` ``[T]``.
    """

    key_weight: Tensor | None = None
    key_value: Tensor | None = None
    slope: Tensor | None = None
    coordinate: Tensor | None = None

    def of_rows(self, rows: slice | Tensor) -> Biases:
        """The same for some rows of the batch."""
        key_value = None if self.key_value is None else self.key_value[rows]
        coordinate = None if self.coordinate is None else self.coordinate[rows]
        return Biases(self.key_weight, key_value, self.slope, coordinate)


def bias_dtype(q: Tensor) -> torch.dtype:
    """What scores are computed in: float64 as it is, all else in float32."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def require_biases(q: Tensor, biases: Biases) -> None:
    """Refuse half a bias, and one whose dtype, shape or device does not fit `q`, ``[T, H, D]``."""
    for first, second in (("key_weight", "key_value"), ("slope", "coordinate")):
        weight, value = getattr(biases, first), getattr(biases, second)
        if (weight is None) != (value is None):
            given, missing = (second, first) if weight is None else (first, second)
            raise ValueError(f"{given} is given and {missing} is None; give both or neither")
        for name, tensor, size, meaning in (
            (first, weight, q.shape[1], "[H]"),
            (second, value, len(q), "[T]"),
        ):
            if tensor is None:
                continue
            require_tensor(name, tensor)
            if tensor.dtype != bias_dtype(q):
                raise TypeError(f"{name} has dtype {tensor.dtype}; cast it with {name}.to({bias_dtype(q)})")
            require_shape(name, tensor, (size,), meaning)
            require_device_of(name, tensor, "q", q)
