"""Normal noise that is a function of a seed and a place: Philox 4x32-10 and Box-Muller, in plain PyTorch.

A counter-based generator has no state. Number `i` of a seed can be drawn by any program, in any order and as
often as needed, so that a kernel need neither read noise from memory nor write it, and a backward draws the
same noise again. What is here gives, up to the rounding of float32, the numbers of Triton's `tl.randn` and
`tl.randn4x` (Philox of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011); the same for
use inside kernels is `scdd.kernels._philox_triton`.

Philox turns a counter of 64 bits into four words of 32, hence two pairs of normals. There are two layouts:

* *one a counter*, `philox_normal`: element `i` is the first number of counter ``first + i``, as ``tl.randn``.
* *four a counter*, `philox_normal_quads`: the last dimension is cut into quads, and element `j` of row `r` is
  number ``j % 4`` of counter ``first + r * quads + j // 4``, where ``quads = ceil(columns / 4)``. It costs a
  quarter; the numbers that a last, incomplete quad has too many are dropped.

All 64 bits of a counter count, so no two elements of a tensor share one, however large it is. Streams that
are to be independent take different seeds; any two will do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from ._dispatch import outside_autocast

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORD: Final = 0xFFFF_FFFF
_ROUNDS: Final = 10
_KEYS: Final = (0x9E37_79B9, 0xBB67_AE85)
_MULTIPLIERS: Final = (0xD251_1F53, 0xCD9E_8D57)
# the largest float32 that takes 2**31 - 1 below one
_TO_UNIT: Final = 4.6566127342e-10
# the smallest uniform number that is let into the logarithm
_LEAST: Final = 1.0e-7


def as_seed(seed: int | Tensor, device: torch.device) -> Tensor:
    """`seed` as one int64 on `device`, 0-d; neither waits for the device nor breaks the capture of a graph.

    Raises
    ------
    TypeError
        `seed` is neither an int nor a tensor of int64.
    ValueError
        `seed` does not fit 64 bits, is a tensor of several numbers or lies on another device.
    """
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"seed has dtype {seed.dtype}; cast it with seed.to(torch.int64)")
        if seed.numel() != 1:
            raise ValueError(f"seed has shape {tuple(seed.shape)}; give one number")
        # "cuda" is the current GPU, whatever its number
        if seed.device.type != device.type or device.index not in (None, seed.device.index):
            raise ValueError(f"seed is on {seed.device} and the tensors are on {device}; move it there once")
        return seed.reshape(())
    if isinstance(seed, bool) or not isinstance(seed, (int, torch.SymInt)):
        raise TypeError(f"seed is a {type(seed).__name__}; pass an int or a tensor of int64")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed is {seed}; it must fit 64 bits with a sign")
    return torch.full((), seed, dtype=torch.int64, device=device)


def philox_normal(
    seed: Tensor, first: int, shape: int | Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal numbers, one a counter: element `i` is ``tl.randn(seed, first + i)``.

    Parameters
    ----------
    seed
        int64, 0-d or [1]; the result lies on its device.
    first
        Counter of element 0.
    shape
        Shape of the result, or the number of elements.
    dtype
        float64 carries on from the same uniform float32 numbers; the 16-bit dtypes round the float32 numbers.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    words = philox(seed, _counters(seed, first, math.prod(shape)))
    return _pair(words[0], words[1], dtype)[0].view(shape)


def philox_normal_quads(
    seed: Tensor, first: int, shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal numbers, four a counter; the layout is that of this module's docstring.

    Parameters
    ----------
    seed, dtype
        As in `philox_normal`.
    first
        Counter of the first quad of row 0.
    shape
        Shape of the result, ``[..., columns]``; all dimensions before the last are rows.
    """
    *rows, columns = shape
    quads = -(-columns // 4)
    words = philox(seed, _counters(seed, first, math.prod(rows) * quads))
    numbers = (*_pair(words[0], words[1], dtype), *_pair(words[2], words[3], dtype))
    return torch.stack(numbers, -1).view(*rows, 4 * quads)[..., :columns]


@outside_autocast
def patch_noise(seed: Tensor, cells: int, genes: int, patch: int, dtype: torch.dtype) -> Tensor:
    """Noise [cells, genes] whose rows of quads are patches of `patch` genes, the last cut short.

    What an operator over patches draws: a patch is whole quads, so that no quad lies across two of them. The
    noise of a cell depends on its place in the batch, but not on how many follow.
    """
    patches = -(-genes // patch)
    drawn = philox_normal_quads(seed, 0, (cells, patches, patch), dtype)
    return drawn.reshape(cells, patches * patch)[:, :genes]


def philox(seed: Tensor, counters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits for each counter, all as int64 from 0 to 2^32 - 1."""
    seed = seed.reshape(())
    key_0, key_1 = seed & _WORD, (seed >> 32) & _WORD
    word_0, word_1 = counters & _WORD, counters >> 32
    word_2, word_3 = torch.zeros_like(counters), torch.zeros_like(counters)
    for _ in range(_ROUNDS):
        # int64 keeps the 64 bits of the product, if not its sign; words 1 and 3 may have more than 32 till
        # the end
        product_0, product_2 = word_0 * _MULTIPLIERS[0], word_2 * _MULTIPLIERS[1]
        word_0 = (product_2 >> 32).bitwise_xor_(word_1).bitwise_xor_(key_0).bitwise_and_(_WORD)
        word_2 = (product_0 >> 32).bitwise_xor_(word_3).bitwise_xor_(key_1).bitwise_and_(_WORD)
        word_1, word_3 = product_2, product_0
        key_0, key_1 = (key_0 + _KEYS[0]) & _WORD, (key_1 + _KEYS[1]) & _WORD
    return word_0, word_1 & _WORD, word_2, word_3 & _WORD


def _counters(seed: Tensor, first: int, count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int64, device=seed.device) + first


def _uniform(word: Tensor) -> Tensor:
    """Float32 from 0 to below 1: the lower 31 bits of a word, all turned over where bit 32 is set."""
    return torch.minimum(word, _WORD - word).to(torch.float32).mul_(_TO_UNIT)


def _pair(word_0: Tensor, word_1: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two independent normal numbers of two words, by Box and Muller."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    radius = _uniform(word_0).clamp(min=_LEAST).to(wide).log().mul(-2).sqrt()
    angle = _uniform(word_1).to(wide) * math.tau
    return (radius * angle.cos()).to(dtype), (radius * angle.sin()).to(dtype)
