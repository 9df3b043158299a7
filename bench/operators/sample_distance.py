"""Maximum mean discrepancy and energy distance of two samples, and the permutation test."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from scdd.kernels import sample_distance

from .case import Case, Operator, Unavailable, Work, normal

if TYPE_CHECKING:
    from torch import Tensor

    from .case import Function

_BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)

# Most bytes that a baseline may take for one whole matrix of pairs, or for one tensor of all differences.
_MOST_BYTES = {"cuda": 16 * 2**30, "cpu": 2**28}


def _mmd(x: Tensor, y: Tensor, unit: float) -> tuple[Tensor, ...]:
    return (sample_distance.maximum_mean_discrepancy(x, y, bandwidths=_BANDWIDTHS, unit=unit),)


def _energy(x: Tensor, y: Tensor, unit: float) -> tuple[Tensor, ...]:
    return (sample_distance.energy_distance(x, y),)


def _test(x: Tensor, y: Tensor, unit: float) -> tuple[Tensor, ...]:
    found = sample_distance.mmd_permutation_test(x, y, permutations=1000, bandwidths=_BANDWIDTHS, unit=unit)
    return found


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    rows = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (rows * (rows - 1))


def _gram_kernel(a: Tensor, b: Tensor, unit: float) -> Tensor:
    """Whole matrices of pairs from one product, as careful users write it."""
    d2 = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return torch.stack([torch.exp(-d2.clamp_min(0) / (2 * s * unit)) for s in _BANDWIDTHS]).sum(0)


def _gram(x: Tensor, y: Tensor, unit: float) -> tuple[Tensor, ...]:
    xx, yy = (_mean_off_diagonal(_gram_kernel(z, z, unit)) for z in (x, y))
    found = xx + yy - 2 * _gram_kernel(x, y, unit).mean()
    return (found.to(torch.promote_types(x.dtype, torch.float32)),)


def _cdist_energy(x: Tensor, y: Tensor, unit: float) -> tuple[Tensor, ...]:
    xx, yy = (_mean_off_diagonal(torch.cdist(z, z)) for z in (x, y))
    found = 2 * torch.cdist(x, y).mean() - xx - yy
    return (found.to(torch.promote_types(x.dtype, torch.float32)),)


def _broadcast(inputs: dict[str, object]) -> Function:
    """The form that scorers publish: the differences of all pairs in all genes, one tensor."""
    x, y = inputs["x"], inputs["y"]
    assert isinstance(x, torch.Tensor)
    assert isinstance(y, torch.Tensor)
    taken = (len(x) + len(y)) ** 2 * x.shape[1] * x.element_size()
    if taken > _MOST_BYTES[x.device.type]:
        raise Unavailable(f"a tensor of all differences takes {taken / 2**30:.0f} GiB")

    def published(x: Tensor, y: Tensor, unit: float) -> tuple[Tensor, ...]:
        z = torch.cat((x, y))
        d2 = (z[None] - z[:, None]).square().sum(2)
        kernel = torch.stack([torch.exp(-d2 / (2 * s * unit)) for s in _BANDWIDTHS]).sum(0)
        n = len(x)
        within = _mean_off_diagonal(kernel[:n, :n]) + _mean_off_diagonal(kernel[n:, n:])
        return ((within - 2 * kernel[:n, n:].mean()).to(torch.promote_types(x.dtype, torch.float32)),)

    return published


def _relabel_one_by_one(x: Tensor, y: Tensor, unit: float) -> tuple[Tensor, ...]:
    """A test as it is mostly written: the whole matrix, indexed anew for each relabeling.

    Ours draws the same relabelings from seed 0, so the gate compares the statistic of each; of the p-value alone,
    which counts them, it would see next to nothing.
    """
    z, n = torch.cat((x, y)), len(x)
    kernel = _gram_kernel(z, z, unit).double().fill_diagonal_(0)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.arange(len(z)), *(torch.randperm(len(z), generator=generator) for _ in range(1000))]
    found = []
    for order in orders:
        i, j = order[:n].to(x.device), order[n:].to(x.device)
        within = kernel[i][:, i].sum() / (n * (n - 1)) + kernel[j][:, j].sum() / (len(j) * (len(j) - 1))
        found.append(within - 2 * kernel[i][:, j].mean())
    observed, null = found[0], torch.stack(found[1:])
    return observed, (1 + (null >= observed).sum(dtype=torch.float64)) / 1001, null


def _inputs(
    n: int, m: int, genes: int, grad: bool, dtype: torch.dtype, device: torch.device
) -> dict[str, object]:
    # far enough apart that the distance is no small difference of large means
    y = 0.5 + normal((m, genes), dtype, device, seed=1, grad=False)
    return {
        "x": normal((n, genes), dtype, device, seed=0, grad=grad),
        "y": y,
        "unit": 2.0 * genes,
    }


def _work(n: int, m: int, genes: int, relabelings: int, size: int) -> Work:
    """Each pair once forward; for the gradient of x its rows of the matrix again, and their product with z."""
    rows = n + m
    return Work(
        size * rows * genes + relabelings * rows * 8,
        size * (rows + n) * genes,
        rows * rows * genes + 2 * rows * rows * relabelings,
        4 * n * rows * genes,
    )


def _case(n: int, m: int, genes: int, *, relabelings: int = 0) -> Case:
    return Case(
        label=f"n={n} m={m} G={genes}",
        inputs=partial(_inputs, n, m, genes, not relabelings),
        work=partial(_work, n, m, genes, relabelings),
        small=n * m * genes < 2**26,
        unit="pairs",
        units=(n + m) * (n + m - 1) // 2,
    )


# a distilled set against a class, of few genes and of many; a scorer in principal components; a published scorer;
# whole test sets
_SIZES = (
    (100, 400, 128), (100, 1000, 512), (2000, 2000, 50), (1024, 1024, 2000), (5000, 5000, 2000),
    (10_000, 10_000, 5000),
)  # fmt: skip


def _operator(name: str, ours: Function, eager: Function, **options: Any) -> Operator:
    return Operator(
        name=name, ours=ours, eager=eager, cases=tuple(_case(*size) for size in _SIZES), **options
    )


OPERATORS = (
    _operator("maximum_mean_discrepancy", _mmd, _gram, baselines={"broadcast": _broadcast}),
    # cdist takes no bfloat16 on a CPU and sums it in bfloat16 on a GPU
    _operator("energy_distance", _energy, _cdist_energy, dtypes=("float32",)),
    Operator(
        name="mmd_permutation_test",
        ours=_test,
        eager=_relabel_one_by_one,
        cases=tuple(
            _case(*size, relabelings=1000)
            # the baseline's time grows with n^2, a thousand times over
            for size in ((100, 150, 50), (2000, 2000, 50), (5000, 5000, 50))
        ),
        dtypes=("float32",),
        differentiable=False,
    ),
)
