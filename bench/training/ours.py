"""The published weights in the network that the package trains: same mathematics, its own code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scdd.nn.transformer import DiffusionTransformerNet, TransformerShape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .published import Transformer

# ours: published, of every block; modulation is apart, for ours is one layer and theirs one a block
_WHITE_BOX = {
    "mixer.subspaces.weight": "attention.project.weight",
    "mixer.out.weight": "attention.out.weight",
    "mixer.out.bias": "attention.out.bias",
    "token_map.dictionary": "second.dictionary",
}
_DIT = {
    "mixer.qkv.weight": "attention.qkv.weight",
    "mixer.qkv.bias": "attention.qkv.bias",
    "mixer.out.weight": "attention.out.weight",
    "mixer.out.bias": "attention.out.bias",
    "token_map.enter.weight": "second.0.weight",
    "token_map.enter.bias": "second.0.bias",
    "token_map.out.weight": "second.2.weight",
    "token_map.out.bias": "second.2.bias",
}
_ENDS = {
    "tokens.weight": "embed.weight",
    "tokens.bias": "embed.bias",
    **{f"time.mlp.{n}.{kind}": f"time.layers.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")},
    "leave.weight": "leave.weight",
    "leave.bias": "leave.bias",
}


def names(model: Transformer) -> dict[str, str]:
    """Our name of every published parameter but those of the modulation."""
    blocks = _WHITE_BOX if hasattr(model.blocks[0].second, "dictionary") else _DIT
    inner = {
        f"blocks.{n}.{ours}": f"blocks.{n}.{theirs}"
        for n in range(len(model.blocks))
        for ours, theirs in blocks.items()
    }
    return {**_ENDS, **inner}


def from_published(model: Transformer) -> DiffusionTransformerNet:
    """The published transformer as the package's own, with the same weights and outputs."""
    sizes = model.sizes
    white_box = hasattr(model.blocks[0].second, "dictionary")
    shape = TransformerShape(
        patch=sizes.patch, width=sizes.width, heads=sizes.heads, depth=sizes.depth, learned_positions=False,
        mixer="subspace" if white_box else "attention", token_map="ista" if white_box else "mlp",
    )  # fmt: skip
    net = DiffusionTransformerNet(sizes.genes, shape).to(model.embed.weight.dtype)
    theirs, state = model.state_dict(), net.state_dict()
    for ours, name in names(model).items():
        state[ours].copy_(theirs[name])
    for kind in ("weight", "bias"):
        state[f"modulation.project.{kind}"].copy_(torch.cat([theirs[n] for n in _rows(model, kind)]))
    state["tokens.position"].copy_(theirs["positions"])
    net.load_state_dict(state)
    return net


def gradients_as_published(
    model: Transformer, net: DiffusionTransformerNet, found: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients of our trained parameters in the order and the shapes of the published ones."""
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    ours = dict(zip(trained, found, strict=True))
    by_name = {theirs: ours[name] for name, theirs in names(model).items()}
    for kind in ("weight", "bias"):
        rows = _rows(model, kind)
        lengths = [len(model.get_parameter(name)) for name in rows]
        by_name |= dict(zip(rows, ours[f"modulation.project.{kind}"].split(lengths), strict=True))
    return [by_name[name] for name, _ in model.named_parameters()]


def _rows(model: Transformer, kind: str) -> list[str]:
    return [*(f"blocks.{n}.modulation.{kind}" for n in range(len(model.blocks))), f"modulation.{kind}"]
