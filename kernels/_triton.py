"""What the launchers and kernels of every operator share.

Names inside a kernel say what a value is:

=========  ============================================================================
``i_*``    index of a program or of a loop
``o_*``    offsets along one dimension, a vector; int64 wherever they are multiplied
``p_*``    offsets into a tensor
``b_*``    a block of values in registers, in float32
``m_*``    a mask
CAPITALS   sizes; those known when compiling (``N``, ``BN``) are ``tl.constexpr``
=========  ============================================================================

A comment above a block gives its shape. Values are cast to float32 as they are loaded and back as they are
stored: it is the accuracy that is promised, and Triton's interpreter has no bfloat16 arithmetic.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ._dispatch import INTERPRET

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


# what a kernel may read of the process it was defined in
INTERPRETED = tl.constexpr(INTERPRET)

# Triton 3.6 takes no bare string as the default of an argument
_ACCURATE = tl.constexpr("tf32x3")


@triton.jit
def dot(a, b, acc, precision: tl.constexpr = _ACCURATE):
    """``acc + a @ b`` in float32.

    On a GPU 16-bit blocks go to the tensor cores as they are; float32 blocks as three products of tf32, which
    keeps the accuracy of float32. The interpreter has no bfloat16 arithmetic, so there both are cast first.
    """
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc, input_precision=precision)


@triton.jit
def load_wide(pointers, mask):
    """Load a block as float32, zero where `mask` is false."""
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_narrow(pointers, block, mask):
    """Store a block in the dtype that is pointed to."""
    tl.store(pointers, block.to(pointers.dtype.element_ty), mask=mask)


def on_device_of(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Make the GPU of `tensor` current: Triton launches on the current one, wherever the pointers lead."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)
