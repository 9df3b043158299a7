"""The operators as PyTorch knows them: schema, fake and device dispatch. They have no gradient.

Imports torch only. The kernels are imported inside the functions that launch them, so this works where Triton
is absent.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from .. import _dispatch
from . import reference

_BIASES: Final = "Tensor? key_weight, Tensor? key_value, Tensor? slope, Tensor? coordinate"


def _launch_mass(*args: Any) -> Tensor:
    from .triton import attention_mass

    return attention_mass(*args)


def _launch_rows(*args: Any) -> tuple[Tensor, Tensor]:
    from .triton import attention_rows

    return attention_rows(*args)


def _fake_mass(q: Tensor, k: Tensor, lse: Tensor, *rest: Any) -> Tensor:
    return lse.new_empty(lse.shape)


def _fake_rows(
    q: Tensor, k: Tensor, lse: Tensor, cu_seqlens: Tensor, genes: Tensor, chosen: Tensor,
    key_weight: Tensor | None, key_value: Tensor | None, slope: Tensor | None, coordinate: Tensor | None,
    n_genes: int, scale: float, per_head: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows = chosen.shape[0]
    shape = (rows, q.shape[1], n_genes) if per_head else (rows, n_genes)
    return lse.new_empty(shape), lse.new_empty((rows, n_genes), dtype=torch.int32)


mass = _dispatch.define(
    "attention_mass(Tensor q, Tensor k, Tensor lse, Tensor cu_seqlens, Tensor? tiles, Tensor? segments,"
    f" {_BIASES}, float scale, int tile_rows) -> Tensor",
    reference=reference.attention_mass,
    kernel=_launch_mass,
    fake=_fake_mass,
)
rows = _dispatch.define(
    "attention_rows(Tensor q, Tensor k, Tensor lse, Tensor cu_seqlens, Tensor genes, Tensor chosen,"
    f" {_BIASES}, SymInt n_genes, float scale, bool per_head) -> (Tensor, Tensor)",
    reference=reference.attention_rows,
    kernel=_launch_rows,
    fake=_fake_rows,
)
