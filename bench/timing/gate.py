"""First right, then fast: no speed is told of an operator that is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from operators.case import Case, Function, Operator
    from torch import Tensor


class Standard(NamedTuple):
    """The truth of every result, and how far from it a result may lie (both by the 2-norm)."""

    truth: list[Tensor]
    allowed: list[float]

    def wrong(self, found: list[Tensor]) -> list[str]:
        """Name every result that is further off."""
        named = []
        for index, (truth, allowed) in enumerate(zip(self.truth, self.allowed, strict=True)):
            error = (found[index].double() - truth.double()).norm().item()
            # not `error > allowed`, which NaN would pass
            if not error <= allowed:
                named.append(f"result {index}: error {error:.3g}, {allowed:.3g} allowed")
        return named


def standard(
    operator: Operator, case: Case, inputs: dict[str, Any], dtype: torch.dtype, peer: Function
) -> Standard:
    """Allow twice the error that `peer` makes with `inputs`, which are of `dtype`.

    The truth is PyTorch in float64, or in float32 where the inputs are 16 bits wide and the case is a large one:
    in float64 that would not fit.
    """
    wide = torch.float64 if case.small or dtype == torch.float32 else torch.float32
    exact = results(operator.truth or operator.eager, _cast(inputs, wide), operator.differentiable)
    theirs = results(peer, inputs, operator.differentiable)
    allowed = []
    for truth, found in zip(exact, theirs, strict=True):
        error = (found.double() - truth.double()).norm().item()
        allowed.append(2 * error + 16 * torch.finfo(torch.float32).eps * truth.double().norm().item())
    return Standard(exact, allowed)


def gate(operator: Operator, case: Case, dtype: torch.dtype, device: torch.device) -> list[str]:
    """Name every result whose error is over twice that of PyTorch in the same dtype."""
    inputs = case.inputs(dtype, device)
    peer = operator.peer or operator.truth or operator.eager
    allowed = standard(operator, case, inputs, dtype, peer)
    return allowed.wrong(results(operator.ours, inputs, operator.differentiable))


def results(function: Function, inputs: dict[str, Any], differentiable: bool) -> list[Tensor]:
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
