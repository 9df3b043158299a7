"""A permutation test whose thousand relabelings cost one matrix product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from .._check import require_whole
from .._dispatch import is_fused
from . import ops, reference
from .api import check_samples
from .bandwidth import exponents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .._dispatch import Implementation

# Few rows have few relabelings: some are drawn twice, and rounding must not make them differ.
_ROWS_IN_FLOAT64: Final = 2048


class PermutationTest(NamedTuple):
    """What :func:`mmd_permutation_test` returns."""

    mmd2: Tensor
    """The unbiased squared discrepancy of the samples as they are, a scalar."""
    p_value: Tensor
    """``(1 + number of relabelings that are at least as far apart) / (1 + permutations)``, a scalar."""
    null: Tensor
    """The squared discrepancy of each relabeling, ``[permutations]``."""


@torch.no_grad()
def mmd_permutation_test(
    x: Tensor,
    y: Tensor,
    *,
    permutations: int = 1000,
    bandwidths: Sequence[float] | Tensor = (0.125, 0.25, 0.5, 1.0, 2.0),
    unit: Tensor | float | None = None,
    seed: int = 0,
    implementation: Implementation = "auto",
) -> PermutationTest:
    """``p = (1 + #{MMD^2(relabeled) >= MMD^2(x, y)}) / (1 + permutations)``.

    Whether two samples come from one distribution [1]_. The matrix M of kernel values of the joint sample is
    streamed once, some rows at a time, and multiplied with the labels U of all relabelings at once: with
    ``M U``, ``u'Mu`` and ``u'M1`` of each, all of its three means follow. The test is exact: relabelings are
    drawn uniformly, and the observed labels count as one of them.

    Parameters
    ----------
    x, y
        The samples, ``[n, G]`` and ``[m, G]``, of two rows at least.
    permutations
        How many relabelings are drawn. Labels and products take 8 bytes each for each row and relabeling.
    bandwidths, unit, implementation
        As in :func:`maximum_mean_discrepancy`; the kernels are summed. The unit is of the joint sample unless
        it is given, and so does not depend on the labels.
    seed
        Of the relabelings, which are the same on every device.

    Returns
    -------
    PermutationTest
        The statistic, its p-value and its values under relabeling, in float64.

    Raises
    ------
    TypeError, ValueError
        As in :func:`maximum_mean_discrepancy`, or `permutations` is not positive.

    References
    ----------
    .. [1] A. Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012.

    Examples
    --------
    >>> scdd.kernels.mmd_permutation_test(generated, held_out, permutations=999).p_value
    """
    check_samples(x, y, unbiased=True)
    require_whole("permutations", permutations)
    require_whole("seed", seed)
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}; draw at least one")
    rates, form, _ = exponents(bandwidths, unit, x, y)
    x, y = x.contiguous(), y.contiguous()
    labels = _labels(len(x), len(y), permutations, seed).to(x.device)
    small = len(labels) <= _ROWS_IN_FLOAT64
    labels = labels.to(torch.float64 if small else reference.wide_dtype(x))
    products = ops.products if is_fused(implementation, x) else reference.products
    multiplied, columns = products(x, y, rates, form, labels)
    statistics = _statistics(labels, multiplied, columns, len(x), len(y))
    observed, null = statistics[0], statistics[1:]
    tie = 1e-12 * multiplied[:, -1].double().mean() / len(labels) if small else 0.0
    p_value = (1 + (null >= observed - tie).sum(dtype=torch.float64)) / (1 + permutations)
    return PermutationTest(observed, p_value, null)


def _labels(rows_x: int, rows_y: int, permutations: int, seed: int) -> Tensor:
    """Which rows are x: [N, 1 + permutations + 1], first as observed, last all."""
    generator = torch.Generator().manual_seed(seed)
    rows = rows_x + rows_y
    labels = torch.zeros((permutations + 2, rows), dtype=torch.bool)
    labels[0, :rows_x] = True
    for row in labels[1:-1]:
        row[torch.randperm(rows, generator=generator)[:rows_x]] = True
    labels[-1] = True
    return labels.T


def _statistics(labels: Tensor, multiplied: Tensor, columns: Tensor, rows_x: int, rows_y: int) -> Tensor:
    """Unbiased squared discrepancy of every relabeling, [1 + permutations] in float64."""
    # both orders of each pair, as the matrix is symmetric but for its rounding
    degrees = multiplied[:, -1].double() + columns.double()
    total = multiplied[:, -1].sum(dtype=torch.float64)
    found = []
    for chosen, product in zip(labels[:, :-1].split(64, 1), multiplied[:, :-1].split(64, 1), strict=True):
        broad = chosen.double()
        within_x = (broad * product).sum(0)
        both = degrees @ broad
        within_y, between = total - both + within_x, both - 2 * within_x
        means = within_x / (rows_x * (rows_x - 1)) + within_y / (rows_y * (rows_y - 1))
        found.append(means - between / (rows_x * rows_y))
    return torch.cat(found)
