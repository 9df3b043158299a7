"""What the operator computes, in plain PyTorch, which is also what a CPU runs.

Shapes: `x`, `output`, `unconditional`, `previous` and the results are [B, G]; `coefficients` [6] or [B, 6].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _philox


def denoise_step(
    x: Tensor, output: Tensor, coefficients: Tensor, unconditional: Tensor | None, previous: Tensor | None,
    seed: Tensor | None, guidance: float, lowest: float, highest: float, with_estimate: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The next `x`, and the estimate of the clean cells, which is empty unless asked for."""
    wide = torch.promote_types(x.dtype, torch.float32)
    c = coefficients.to(wide)[..., None].unbind(-2)
    said = output.to(wide)
    if unconditional is not None:
        said = torch.lerp(unconditional.to(wide), said, guidance)
    x0 = (c[0] * x.to(wide) + c[1] * said).clamp(lowest, highest)
    after = c[2] * x.to(wide) + c[3] * x0
    if previous is not None:
        after = after + c[4] * previous.to(wide)
    if seed is not None:
        after = after + c[5] * _philox.philox_normal_quads(seed, 0, x.shape, wide)
    return after.to(x.dtype), x0.to(x.dtype) if with_estimate else x.new_empty(0)
