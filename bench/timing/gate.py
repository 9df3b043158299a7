"""First right, then fast: no speed is told of an operator that is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from operators.case import Case, Function, Operator
    from torch import Tensor


def gate(operator: Operator, case: Case, dtype: torch.dtype, device: torch.device) -> list[str]:
    """Name every result whose error is over twice that of PyTorch in the same dtype.

    The truth is PyTorch in float64, or in float32 where the inputs are 16 bits wide and the case is a large one:
    in float64 that would not fit.
    """
    wide = torch.float64 if case.small or dtype == torch.float32 else torch.float32
    inputs = case.inputs(dtype, device)
    exact = _results(operator.truth or operator.eager, _cast(inputs, wide), operator.differentiable)
    theirs = _results(
        operator.eager if operator.truth is None else operator.truth, inputs, operator.differentiable
    )
    ours = _results(operator.ours, inputs, operator.differentiable)
    wrong = []
    for index, truth in enumerate(result.double() for result in exact):
        found = (ours[index].double() - truth).norm().item()
        allowed = 2 * (theirs[index].double() - truth).norm().item()
        allowed += 16 * torch.finfo(torch.float32).eps * truth.norm().item()
        # not `found > allowed`, which NaN would pass
        if not found <= allowed:
            wrong.append(f"result {index}: error {found:.3g}, {allowed:.3g} allowed")
    return wrong


def _results(function: Function, inputs: dict[str, Any], differentiable: bool) -> list[Tensor]:
    """Outputs, then the gradient of every input that asks for one."""
    outputs = function(**inputs)
    found = [out.detach() for out in outputs]
    wanted = [t for t in inputs.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    if differentiable and wanted:
        smooth = [out for out in outputs if out.requires_grad]
        found += torch.autograd.grad(smooth, wanted, [cotangent(out) for out in smooth])
    return found


def cotangent(out: Tensor) -> Tensor:
    """The same numbers for every implementation, so not its own output: that is rounded in its own way."""
    angles = torch.arange(out.numel(), device=out.device, dtype=torch.float32).view(out.shape)
    return angles.cos().bfloat16().to(out.dtype)


def _cast(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    def cast(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().to(dtype).requires_grad_(value.requires_grad)
        return value

    return {name: cast(value) for name, value in inputs.items()}
