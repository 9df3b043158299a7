"""Column sums of attention, and its rows from a few genes, over packed segments."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from scdd.kernels.attention_map import attention_mass, attention_rows

from .case import Case, Operator, Work, normal

if TYPE_CHECKING:
    from torch import Tensor


def _maps(q: Tensor, k: Tensor, lse: Tensor, cu_seqlens: Tensor) -> list[tuple[slice, Tensor]]:
    """The map of each segment, [H, L, L], as one has it who keeps attention in memory."""
    starts = cu_seqlens.tolist()
    found = []
    for start, end in pairwise(starts):
        here = slice(start, end)
        scores = q[here].transpose(0, 1).to(lse.dtype) @ k[here].permute(1, 2, 0).to(lse.dtype)
        found.append((here, (scores * q.shape[-1] ** -0.5 - lse[here].mT[:, :, None]).exp()))
    return found


def _mass(q: Tensor, k: Tensor, lse: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, ...]:
    return (attention_mass(q, k, lse, cu_seqlens),)


def _eager_mass(q: Tensor, k: Tensor, lse: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, ...]:
    return (torch.cat([attention.sum(1).mT for _, attention in _maps(q, k, lse, cu_seqlens)]),)


def _rows(
    q: Tensor, k: Tensor, lse: Tensor, cu_seqlens: Tensor, genes: Tensor, chosen: Tensor, n_genes: int
) -> tuple[Tensor, ...]:
    return (attention_rows(q, k, lse, cu_seqlens, genes, chosen, n_genes).sums,)


def _eager_rows(
    q: Tensor, k: Tensor, lse: Tensor, cu_seqlens: Tensor, genes: Tensor, chosen: Tensor, n_genes: int
) -> tuple[Tensor, ...]:
    row = torch.full((n_genes,), -1, device=q.device)
    row[chosen.long()] = torch.arange(len(chosen), device=q.device)
    sums = lse.new_zeros(len(chosen), n_genes)
    for here, attention in _maps(q, k, lse, cu_seqlens):
        of = row[genes[here].long()]
        some = (of >= 0).nonzero()[:, 0]
        sums[of[some][:, None], genes[here].long()] += attention.mean(0)[some]
    return (sums,)


def _inputs(
    cells: int, length: int, heads: int, width: int, chosen: int, n_genes: int,
    dtype: torch.dtype, device: torch.device,
) -> dict[str, object]:  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(length // 2, 3 * length // 2, (cells,), generator=generator)
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()
    total = int(cu_seqlens[-1])
    q, k = (normal((total, heads, width), dtype, device, seed=i, grad=False) for i in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    # that of normal scores, near enough for weights that add up to about one
    lse = torch.repeat_interleave(lengths.to(wide).log() + 0.5, lengths)[:, None].expand(-1, heads)
    found: dict[str, object] = {"q": q, "k": k, "lse": lse.to(device), "cu_seqlens": cu_seqlens.to(device)}
    if chosen:
        genes = torch.cat([torch.randperm(n_genes, generator=generator)[:n] for n in lengths.tolist()])
        found |= {"genes": genes.int().to(device), "n_genes": n_genes}
        found["chosen"] = torch.randperm(n_genes, generator=generator)[:chosen].int().to(device)
    return found


def _work(cells: int, length: int, heads: int, width: int, chosen: int, n_genes: int, size: int) -> Work:
    rows = cells * length
    queries = length * chosen / n_genes if chosen else length
    # lengths vary by half around their mean, which adds a twelfth to the mean of their squares
    pairs = int(cells * queries * length * 13 / 12)
    moved = 2 * rows * heads * width * size + 4 * rows * heads
    moved += 16 * chosen * n_genes + 12 * pairs if chosen else 4 * rows * heads
    return Work(moved, 0, 2 * heads * width * pairs)


def _case(cells: int, length: int, heads: int, width: int, chosen: int = 0, n_genes: int = 0) -> Case:
    sizes = (cells, length, heads, width, chosen, n_genes)
    label = f"cells={cells} genes~{length} H={heads} D={width}"
    return Case(
        label=label + (f" R={chosen} G={n_genes}" if chosen else ""),
        inputs=partial(_inputs, *sizes),
        work=partial(_work, *sizes),
        small=cells * length**2 * heads * width < 2**28,
        unit="cells",
        units=cells,
    )


OPERATORS = (
    Operator(
        name="attention_mass",
        ours=_mass,
        eager=_eager_mass,
        cases=(_case(8, 200, 4, 32), _case(176, 1500, 8, 64), _case(64, 3000, 8, 64)),
        differentiable=False,
    ),
    Operator(
        name="attention_rows",
        ours=_rows,
        eager=_eager_rows,
        cases=(
            _case(8, 200, 4, 32, 50, 1000),
            _case(176, 1500, 8, 64, 50, 20_000),
            _case(176, 1500, 8, 64, 2000, 20_000),
        ),
        differentiable=False,
    ),
)
