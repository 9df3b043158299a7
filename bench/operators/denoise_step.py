"""One update of a sampler."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from scdd.kernels._philox import philox_normal_quads
from scdd.kernels.denoise_step import denoise_step, denoise_step_with_estimate

from .case import Case, Operator, Work, normal

if TYPE_CHECKING:
    from torch import Tensor


def _ours(previous: Tensor | None = None, **inputs: Any) -> tuple[Tensor, ...]:
    if previous is None:
        return (denoise_step(**inputs),)
    return denoise_step_with_estimate(previous=previous, **inputs)


def _step(
    eps: Tensor | None, x: Tensor, output: Tensor, coefficients: Tensor, unconditional: Tensor | None = None,
    guidance: float = 1.0, previous: Tensor | None = None, clamp: tuple[float, float] | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    c = coefficients.to(x.dtype)
    said = output.to(x.dtype)
    if unconditional is not None:
        said = unconditional.to(x.dtype) + guidance * (said - unconditional.to(x.dtype))
    x0 = (c[0] * x + c[1] * said).clamp(*clamp) if clamp else c[0] * x + c[1] * said
    after = c[2] * x + c[3] * x0
    if eps is not None:
        after = after + c[5] * eps
    return (after,) if previous is None else (after + c[4] * previous, x0)


def _eager(x: Tensor, seed: Tensor | None = None, **inputs: Any) -> tuple[Tensor, ...]:
    return _step(None if seed is None else torch.randn_like(x), x, **inputs)


def _truth(x: Tensor, seed: Tensor | None = None, **inputs: Any) -> tuple[Tensor, ...]:
    return _step(None if seed is None else philox_normal_quads(seed, 0, x.shape, x.dtype), x, **inputs)


_SAMPLERS = {
    "ancestral": ("seed",),
    "multistep": ("previous",),
    "guided": ("seed", "unconditional"),
}


def _inputs(
    cells: int, genes: int, sampler: str, dtype: torch.dtype, device: torch.device
) -> dict[str, object]:
    def draw(seed: int, kind: torch.dtype) -> Tensor:
        return normal((cells, genes), kind, device, seed=seed, grad=False)

    # samplers keep their state in float32, whatever the network computes in
    inputs: dict[str, object] = {"x": draw(0, torch.float32), "output": draw(1, dtype)}
    inputs["coefficients"] = torch.tensor([1.4, -0.98, 0.9, 0.2, -0.1, 0.3], device=device)
    inputs["clamp"] = (0.0, math.inf)
    more = {
        "seed": torch.tensor(17, device=device),
        "previous": draw(2, torch.float32),
        "unconditional": draw(3, dtype),
    }
    wanted = _SAMPLERS[sampler]
    inputs |= {name: more[name] for name in wanted}
    return inputs | ({"guidance": 2.0} if "unconditional" in wanted else {})


def _work(cells: int, genes: int, sampler: str, size: int) -> Work:
    wanted = _SAMPLERS[sampler]
    state = 4 * (2 + 2 * ("previous" in wanted))
    return Work(cells * genes * (state + size * (1 + ("unconditional" in wanted))), 0)


def _case(cells: int, genes: int, sampler: str, *, small: bool = False) -> Case:
    return Case(
        label=f"B={cells} G={genes} {sampler}",
        inputs=partial(_inputs, cells, genes, sampler),
        work=partial(_work, cells, genes, sampler),
        small=small,
        unit="cells",
        units=cells,
    )


OPERATORS = (
    Operator(
        name="denoise_step",
        ours=_ours,
        eager=_eager,
        truth=_truth,
        differentiable=False,
        cases=(
            _case(16, 2000, "ancestral", small=True),
            _case(512, 2000, "ancestral"),
            _case(512, 2000, "multistep"),
            _case(512, 2000, "guided"),
            _case(16_384, 2048, "ancestral"),
            _case(16_384, 2048, "guided"),
        ),
    ),
)
