"""Tokens of packed cells from gene ids and expression values."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scdd.kernels.embed_genes import SoftBins, embed_genes

from .case import Case, Operator, Work, normal

if TYPE_CHECKING:
    from torch import Tensor


def _ours(
    genes: Tensor, values: Tensor, gene_table: Tensor, bin_weight: Tensor, bin_bias: Tensor, bins: Tensor,
    weight: Tensor, bias: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    encoding = SoftBins(bin_weight, bin_bias, bins)
    return (embed_genes(genes, values, gene_table=gene_table, encoding=encoding, weight=weight, bias=bias),)


def _eager(
    genes: Tensor, values: Tensor, gene_table: Tensor, bin_weight: Tensor, bin_bias: Tensor, bins: Tensor,
    weight: Tensor, bias: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    value = values.to(gene_table.dtype)[:, None]
    token = F.embedding(genes, gene_table) + (value * bin_weight + bin_bias).softmax(-1) @ bins
    return (F.layer_norm(token, token.shape[-1:], weight, bias),)


def _inputs(
    tokens: int, genes: int, width: int, bins: int, dtype: torch.dtype, device: torch.device
) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    # genes of a cell are a few of the vocabulary, often the same ones: frequencies fall off like 1 / rank
    frequency = 1 / torch.arange(10, genes + 10, dtype=torch.float64)
    ids = torch.multinomial(frequency, tokens, replacement=True, generator=generator)
    values = 4 * torch.rand(tokens, generator=generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = {
        "gene_table": (genes, width), "bin_weight": (bins,), "bin_bias": (bins,), "bins": (bins, width),
        "weight": (width,), "bias": (width,),
    }  # fmt: skip
    weights = {name: normal(shape, dtype, device, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    return {"genes": ids.int().to(device), "values": values.to(device, wide).requires_grad_()} | weights


def _work(tokens: int, genes: int, width: int, bins: int, size: int) -> Work:
    rows, table = tokens * width, genes * width
    ids = 8 * tokens
    # the vocabulary is read once: its rows come from the cache again
    forward = size * (rows + table + bins * width) + ids
    # dy in, and the gradients out; that of the tokens within is ours to avoid
    backward = size * (rows + 2 * table + 2 * bins * width) + 2 * ids
    return Work(forward, backward, 2 * rows * bins, 6 * rows * bins)


def _case(tokens: int, genes: int, width: int, bins: int) -> Case:
    return Case(
        label=f"T={tokens} G={genes} D={width} K={bins}",
        inputs=partial(_inputs, tokens, genes, width, bins),
        work=partial(_work, tokens, genes, width, bins),
        small=tokens * width < 2**21,
        unit="tokens",
        units=tokens,
    )


OPERATORS = (
    Operator(
        name="embed_genes",
        ours=_ours,
        eager=_eager,
        cases=(
            _case(4096, 20_000, 256, 64),
            _case(262_144, 20_000, 512, 100),
            _case(131_072, 60_000, 1024, 100),
        ),
    ),
)
