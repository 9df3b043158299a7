"""The gradient of a table of genes: rows summed by gene, in the same order every time.

Tokens are sorted by gene on the device, and a program owns a row of the table: it walks that gene's tokens
and writes the row once, zero where the batch lacks the gene. In a batch of cells a gene has at most one token
a cell and stream, so no walk is long.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import load_wide, on_device_of, store_narrow
from . import tiles


@triton.jit
def sum_by_gene_kernel(
    dtoken, order, starts, dgenes, dprefix, G,
    D: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Sum the rows ``order[starts[r] : starts[r + 1]]`` of `dtoken`; r counts genes, then the prefix."""
    i_r = tl.program_id(0).to(tl.int64)
    # [BD]
    o_d = tl.program_id(1) * BD + tl.arange(0, BD)
    m_d = o_d < D
    b_sum = tl.zeros([BD], tl.float32)
    i_end = tl.load(starts + i_r + 1)
    for i_t in range(tl.load(starts + i_r), i_end, BT):
        o_t = i_t + tl.arange(0, BT)
        b_t = tl.load(order + o_t, mask=o_t < i_end, other=0)
        b_sum += tl.sum(
            load_wide(dtoken + b_t[:, None] * D + o_d[None, :], (o_t < i_end)[:, None] & m_d[None, :]), 0
        )
    if i_r < G:
        store_narrow(dgenes + i_r * D + o_d, b_sum, m_d)
    elif dprefix is not None:
        store_narrow(dprefix + (i_r - G) * D + o_d, b_sum, m_d)


def sum_by_gene(
    genes: Tensor, dtoken: Tensor, gene_table: Tensor, prefix_table: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of both tables from that of the tokens; ids that no table holds are left out."""
    n_genes, width = gene_table.shape
    n_prefix = 0 if prefix_table is None else prefix_table.shape[0]
    rows = n_genes + n_prefix
    # learned tokens come behind the genes, and ids out of range behind them
    row = torch.where(genes >= 0, genes.clamp(max=n_genes), n_genes - 1 - genes)
    unknown = torch.where(genes >= 0, genes >= n_genes, row >= rows)
    keys, order = torch.sort(torch.where(unknown, rows, row), stable=True)
    starts = torch.searchsorted(keys, torch.arange(rows + 1, dtype=keys.dtype, device=keys.device))
    dgenes = torch.empty_like(gene_table)
    dprefix = None if prefix_table is None else torch.empty_like(prefix_table)
    tile = tiles.choose_sum(width)
    with on_device_of(dtoken):
        sum_by_gene_kernel[rows, triton.cdiv(width, tile.columns)](
            dtoken, order, starts, dgenes, dprefix, n_genes,
            D=width, BT=tile.rows, BD=tile.columns, num_warps=tile.num_warps,
        )  # fmt: skip
    return dgenes, dprefix
