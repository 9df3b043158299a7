"""How wrong a kernel may be: twice the error of plain PyTorch in the same dtype, both against float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scdd.kernels import _dispatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def with_gradients(function: Callable[..., Tensor | Sequence[Tensor]], inputs: Mapping[str, object]) -> dict:
    """Every result of ``function(**inputs)`` as ``out0``, ``out1``..., and every gradient as ``d<name>``.

    Gradients are of the inputs that ask for them; the cotangents are the same whatever the dtype, exact in
    bfloat16, and drawn once for each result.
    """
    results = function(**inputs)
    results = (results,) if isinstance(results, torch.Tensor) else tuple(results)
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randn(r.shape, generator=generator).bfloat16() for r in results]
    smooth = [(r, c.to(r.device, r.dtype)) for r, c in zip(results, drawn, strict=True) if r.requires_grad]
    wanted = {name: t for name, t in inputs.items() if isinstance(t, torch.Tensor) and t.requires_grad}
    named = {f"out{i}": result.detach() for i, result in enumerate(results)}
    if smooth and wanted:
        outputs, cotangents = zip(*smooth, strict=True)
        gradients = torch.autograd.grad(outputs, list(wanted.values()), cotangents)
        named |= {f"d{name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}
    return named


def in_float64(inputs: Mapping[str, object]) -> dict:
    """The same inputs, floating-point tensors as float64 on the CPU."""

    def widen(value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        if not value.is_floating_point():
            return value.cpu()
        return value.detach().cpu().double().requires_grad_(value.requires_grad)

    return {name: widen(value) for name, value in inputs.items()}


def error(got: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, in float64; NaN where anything is not finite on one side only."""
    return (got.detach().cpu().double() - expected.detach().cpu().double()).square().mean().sqrt().item()


def assert_as_accurate_as_pytorch(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    *,
    summed: Mapping[str, int] | None = None,
    factor: float = 2.0,
) -> None:
    """Hold each result to `factor` times the error of PyTorch in the same dtype, plus a rounding of float32.

    Parameters
    ----------
    ours, theirs, exact
        Results by name: of the operator, of PyTorch in the same dtype, of the definition in float64.
    summed
        How many terms in float32 a result is the sum of, where that is many: the rounding that is allowed
        beside grows with its square root.
    factor
        2 unless there is a reason, which the test must state.
    """
    assert ours.keys() == theirs.keys() == exact.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, f"{name} is {value.dtype}, not {theirs[name].dtype}"
        assert value.shape == exact[name].shape, (
            f"{name} is {tuple(value.shape)}, not {tuple(exact[name].shape)}"
        )
        if not value.numel():
            continue
        allowed = factor
        if _dispatch.INTERPRET and value.dtype == torch.bfloat16:
            # the interpreter truncates to bfloat16 where a GPU rounds, and that alone doubles the error
            allowed *= 2
        size = exact[name].square().mean().sqrt().item()
        rounding = (summed or {}).get(name, 1) ** 0.5 * torch.finfo(torch.float32).eps * size
        limit = allowed * error(theirs[name], exact[name]) + rounding
        found = error(value, exact[name])
        # not `found > limit`, which NaN would pass
        assert found <= limit, f"{name}: error {found:.3g}, PyTorch's allows {limit:.3g} (size {size:.3g})"
