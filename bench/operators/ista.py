"""One step of ISTA towards a sparse code, and two with an overcomplete dictionary; gate and residual included."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scdd.kernels.ista import ista_operator, ista_step, overcomplete_ista_step

from .case import Case, Operator, Work, normal

if TYPE_CHECKING:
    from torch import Tensor

    from .case import Function

# those of CRATE and of the white-box diffusion transformer
STEP_SIZE, THRESHOLD = 0.1, 0.1


def _ours(y: Tensor, dictionary: Tensor, residual: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
    settings = {"step_size": STEP_SIZE, "threshold": THRESHOLD}
    return (ista_step(y, dictionary, residual=residual, gate=gate, **settings),)


def published(y: Tensor, dictionary: Tensor, residual: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
    """The code of CRATE: three products a row."""
    again = F.linear(F.linear(y, dictionary), dictionary.t())
    step = STEP_SIZE * (F.linear(y, dictionary.t()) - again) - STEP_SIZE * THRESHOLD
    return (residual + gate[:, None] * F.relu(y + step),)


def _two_products(y: Tensor, dictionary: Tensor, residual: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
    step = STEP_SIZE * (F.linear(y - F.linear(y, dictionary), dictionary.t()) - THRESHOLD)
    return (residual + gate[:, None] * F.relu(y + step),)


def _collapsed(y: Tensor, dictionary: Tensor, residual: Tensor, gate: Tensor) -> tuple[Tensor, ...]:
    """Our algebra on PyTorch's product: what is left is the epilogue."""
    operator = STEP_SIZE * (dictionary.t() - dictionary.t() @ dictionary)
    h = F.relu(y + F.linear(y, operator) - STEP_SIZE * THRESHOLD)
    return (residual + gate[:, None] * h,)


def _compiled(_: dict[str, object]) -> Function:
    """The vendor's product, and all after it in one elementwise kernel of the compiler."""
    return torch.compile(_collapsed)


def _inputs(cells: int, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    y, residual = (normal((cells, rows, width), dtype, device, seed=i) for i in range(2))
    dictionary = normal((width, width), torch.float32, device, seed=2, grad=False) * width**-0.5
    if dtype == torch.float32:
        with torch.no_grad():
            _leave_the_corner(y, dictionary)
    gate = normal((cells, width), dtype, device, seed=3)
    return {"y": y, "dictionary": dictionary.to(dtype).requires_grad_(), "residual": residual, "gate": gate}


def _leave_the_corner(y: Tensor, dictionary: Tensor) -> None:
    """Move what a rounding error of float32 would put on either side of the rectifier: it would gate nothing."""
    operator = ista_operator(dictionary, STEP_SIZE)
    for _ in range(3):
        before = y + F.linear(y, operator) - STEP_SIZE * THRESHOLD
        y += 1e-3 * (before.abs() < 1e-4)


def _work(cells: int, rows: int, width: int, size: int) -> Work:
    """Forward: y, residual, h and out. Backward: dout, h, y and dy. One product a row, and one each for dy and dB."""
    numbers = cells * rows * width
    extra = cells * width + width * width
    flops = 2 * numbers * width
    return Work(size * (4 * numbers + extra), size * (4 * numbers + 2 * extra), flops, 2 * flops)


def _case(cells: int, rows: int, width: int) -> Case:
    return Case(
        label=f"C={cells} R={rows} N={width}",
        inputs=partial(_inputs, cells, rows, width),
        work=partial(_work, cells, rows, width),
        small=cells * rows * width < 2**20,
        unit="cells",
        units=cells,
    )


def _ours_overcomplete(
    x: Tensor, dictionary: Tensor, readout: Tensor, residual: Tensor
) -> tuple[Tensor, ...]:
    settings = {"step_size": STEP_SIZE, "threshold": THRESHOLD}
    return (overcomplete_ista_step(x, dictionary, readout, residual=residual, **settings),)


def _published_overcomplete(
    x: Tensor, dictionary: Tensor, readout: Tensor, residual: Tensor
) -> tuple[Tensor, ...]:
    z1 = F.relu(STEP_SIZE * F.linear(x, dictionary.t()) - STEP_SIZE * THRESHOLD)
    step = STEP_SIZE * F.linear(F.linear(z1, dictionary) - x, dictionary.t())
    return (residual + F.linear(F.relu(z1 - step - STEP_SIZE * THRESHOLD), readout),)


def _overcomplete_inputs(
    cells: int, rows: int, width: int, dtype: torch.dtype, device: torch.device
) -> dict[str, object]:
    x, residual = (normal((cells, rows, width), dtype, device, seed=i) for i in range(2))
    shape = (width, 4 * width)
    drawn = [normal(shape, torch.float32, device, seed=2 + i, grad=False) for i in range(2)]
    dictionary, readout = ((d * width**-0.5).to(dtype).requires_grad_() for d in drawn)
    return {"x": x, "dictionary": dictionary, "readout": readout, "residual": residual}


def _overcomplete_work(cells: int, rows: int, width: int, size: int) -> Work:
    """Forward: x, residual, out and both codes of four times the width. Backward: these again, and dx."""
    numbers, matrices = cells * rows * width, 8 * width * width
    flops = 32 * numbers * width
    return Work(size * (11 * numbers + matrices), size * (11 * numbers + 2 * matrices), flops, 2 * flops)


def _overcomplete_case(cells: int, rows: int, width: int) -> Case:
    return Case(
        label=f"C={cells} R={rows} N={width} K={4 * width}",
        inputs=partial(_overcomplete_inputs, cells, rows, width),
        work=partial(_overcomplete_work, cells, rows, width),
        small=math.prod((cells, rows, width)) < 2**17,
        unit="cells",
        units=cells,
    )


OPERATORS = (
    Operator(
        name="ista_step",
        ours=_ours,
        eager=published,
        baselines={
            "two_products": lambda _: _two_products,
            "collapsed": lambda _: _collapsed,
            "collapsed_compiled": _compiled,
        },
        cases=tuple(
            _case(*sizes) for sizes in ((4, 200, 384), (16, 200, 768), (512, 200, 768), (512, 256, 512))
        ),
    ),
    Operator(
        name="overcomplete_ista_step",
        ours=_ours_overcomplete,
        eager=_published_overcomplete,
        cases=tuple(_overcomplete_case(*sizes) for sizes in ((4, 64, 192), (16, 200, 768), (128, 200, 768))),
        # of float32 a rounding error decides here and there on which side of the rectifiers an atom lies
        dtypes=("bfloat16",),
    ),
)
