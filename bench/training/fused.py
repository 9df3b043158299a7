"""The same transformers, with the same weights, on the operators of `scdd.kernels`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from scdd import kernels

if TYPE_CHECKING:
    from torch import Tensor

    from .published import Block, Ista, SelfAttention, SubspaceAttention, Transformer


def loss(
    model: Transformer, x0: Tensor, signal: Tensor, noise: Tensor, t: Tensor, *,
    seed: Tensor | None = None, eps: Tensor | None = None, dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Mean squared error of the predicted noise, drawn from `seed` where it is needed, or given as `eps`.

    Weights are cast to `dtype` here, so that those of the optimiser stay float32.
    """

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype)

    drawn = {"seed": seed, "eps": eps}
    h = kernels.noise_patch_embed(
        x0, signal, noise, cast(model.embed.weight), cast(model.embed.bias), cast(model.positions), **drawn
    )
    condition = F.silu(model.time(t)).to(dtype)
    rows = [_linear(condition, block.modulation, dtype).chunk(6, dim=-1) for block in model.blocks]
    last = _linear(condition, model.modulation, dtype).chunk(2, dim=-1)
    # shift and scale of the norm after each block
    after = [row[:2] for row in rows[1:]] + [last]
    y = kernels.modulate(h, *rows[0][:2])
    for number, (block, row) in enumerate(zip(model.blocks, rows, strict=True)):
        shift, scale, gate = row[3:]
        branch = _attention(block, y, dtype)
        y, h = kernels.gated_residual_modulate(branch, shift, scale, residual=h, gate=row[2])
        if hasattr(block.second, "dictionary"):
            h = _sparsify(block.second, y, h, gate, dtype)
            y = kernels.modulate(h, *after[number]) if number + 1 < len(rows) else y
        elif number + 1 < len(rows):
            y, h = kernels.gated_residual_modulate(
                _mlp(block, y, dtype), *after[number], residual=h, gate=gate
            )
        else:
            h = torch.addcmul(h, gate[:, None], _mlp(block, y, dtype))
    weight, bias = cast(model.leave.weight), cast(model.leave.bias)
    return kernels.denoise_loss(h, *last, weight, bias, x0, signal, noise, **drawn).loss


def _linear(x: Tensor, layer: torch.nn.Linear, dtype: torch.dtype) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return F.linear(x, layer.weight.to(dtype), bias)


def _attention(block: Block, y: Tensor, dtype: torch.dtype) -> Tensor:
    attention: SubspaceAttention | SelfAttention = block.attention
    if hasattr(attention, "project"):
        w = _linear(y, attention.project, dtype).unflatten(-1, (attention.heads, -1))
        return _linear(kernels.multihead_subspace_attention(w).flatten(2), attention.out, dtype)
    q, k, v = _linear(y, attention.qkv, dtype).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v)
    return _linear(mixed.transpose(1, 2).flatten(2), attention.out, dtype)


def _sparsify(ista: Ista, y: Tensor, h: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
    return kernels.ista_step(
        y,
        ista.dictionary.to(dtype),
        step_size=ista.step_size,
        threshold=ista.threshold,
        residual=h,
        gate=gate,
    )


def _mlp(block: Block, y: Tensor, dtype: torch.dtype) -> Tensor:
    enter, _, leave = block.second
    return _linear(F.gelu(_linear(y, enter, dtype), approximate="tanh"), leave, dtype)
