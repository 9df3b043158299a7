"""Which queries are of a chosen gene, gathered by segment, on the device and without waiting for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Plan(NamedTuple):
    """The grid of `attention_rows`."""

    tiles: Tensor
    """int32 ``[M, 4]``: first and end of a tile among `queries`, first and end of the keys; zeros for a tile
    of nothing, as the number of tiles is only bounded."""
    queries: Tensor
    """int32 ``[T + 1]``, tokens of chosen genes in the order of the batch; what follows them means
    nothing."""
    row_of_token: Tensor
    """int32 ``[T]``, the place of each token's gene among the chosen ones, or -1."""


def plan(cu_seqlens: Tensor, genes: Tensor, chosen: Tensor, n_genes: int, tile_queries: int) -> Plan:
    """Gather the queries of chosen genes, and cut them into tiles of one segment each."""
    device, tokens = genes.device, genes.shape[0]
    row = _rows_of_genes(chosen.to(device, torch.int64), n_genes)
    known = (genes >= 0) & (genes < n_genes)
    row_of_token = torch.where(known, row[torch.where(known, genes, 0).long()], -1)
    wanted = row_of_token >= 0
    # [T + 1]; how many chosen queries come before each token
    before = torch.zeros(tokens + 1, dtype=torch.int64, device=device)
    torch.cumsum(wanted, 0, out=before[1:])
    queries = torch.zeros(tokens + 1, dtype=torch.int32, device=device)
    places = torch.where(wanted, before[:-1], tokens)
    # all others land in the last element, in any order
    queries.scatter_(0, places, torch.arange(tokens, dtype=torch.int32, device=device))
    starts = cu_seqlens.to(device, torch.int64)
    sound = (starts[0] == 0) & (starts[-1] == tokens) & (starts[1:] >= starts[:-1]).all()
    torch._assert_async(sound, "cu_seqlens must start at 0, not decrease and end at the number of rows")
    return Plan(_tiles(starts, before, tokens, tile_queries), queries, row_of_token.int())


def _rows_of_genes(chosen: Tensor, n_genes: int) -> Tensor:
    """The row of each gene among the chosen ones, -1 for the others."""
    places = torch.arange(chosen.shape[0], device=chosen.device)
    inside = (chosen >= 0) & (chosen < n_genes)
    row = torch.full((n_genes,), -1, dtype=torch.int64, device=chosen.device)
    row.scatter_(0, torch.where(inside, chosen, 0), places)
    # of two rows for one gene only one was kept
    once = inside & (row[torch.where(inside, chosen, 0)] == places)
    torch._assert_async(once.all(), "chosen names a gene twice, or one that n_genes does not hold")
    return row


def _tiles(starts: Tensor, before: Tensor, tokens: int, tile_queries: int) -> Tensor:
    segments = starts.shape[0] - 1
    tiles = torch.arange(segments + tokens // tile_queries, device=starts.device)
    if not segments:
        return starts.new_zeros((0, 4), dtype=torch.int32)
    # [S + 1]; where each segment starts among the chosen queries
    chosen = before[starts]
    counts = (chosen[1:] - chosen[:-1] + tile_queries - 1) // tile_queries
    behind = counts.cumsum(0)
    # [M]; the segment of each tile. Beyond the last tile one is looked up all the same
    of = torch.searchsorted(behind, tiles, right=True).clamp_(max=segments - 1)
    first = chosen[of] + (tiles - (behind - counts)[of]) * tile_queries
    end = torch.minimum(first + tile_queries, chosen[of + 1])
    columns = torch.stack((first, end, starts[of], starts[of + 1]), 1)
    return (columns * (tiles < behind[-1])[:, None]).int()
