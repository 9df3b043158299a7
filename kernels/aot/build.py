"""What is compiled ahead of time, and what the machine code took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Build:
    """A kernel with everything that is fixed when it is compiled.

    Attributes
    ----------
    types
        Triton type of each run-time argument; ``"*bf16:16"`` and ``"i32:16"`` promise a multiple of 16, as
        launching with real tensors does. Without that promise no load is wide, and the report would describe
        a kernel that nobody runs.
    constants
        Value of each ``tl.constexpr`` argument, and None for each pointer that is not given.
    max_registers
        Most registers a thread may use.
    limit_registers
        By architecture, the limit that the launch gives to the compiler (``maxnreg``), which takes more than
        it needs.
    narrow_loads
        How many load instructions may be narrower than 128 bits: those of one number a row.
    tensor_cores
        Whether the kernel multiplies matrices, and so must use the tensor cores.
    architectures
        Where these sizes are launched; fewer than all where an architecture has tiles of its own.
    """

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int = 3
    max_registers: int
    limit_registers: Mapping[int, int] = field(default_factory=dict)
    narrow_loads: int = 0
    tensor_cores: bool = False
    architectures: tuple[int, ...] = ARCHITECTURES


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a build takes on one architecture; bytes are those of a thread (local) and a block (shared)."""

    registers: int
    local_bytes: int
    shared_bytes: int
    loads: Mapping[int, int] = field(default_factory=dict)
    """Number of load instructions from global memory by their width in bits."""
    tensor_core_instructions: int = 0


def pointer_types(kernel: Any, dtype: str, known: Mapping[str, str]) -> dict[str, str]:
    """Type of every argument of `kernel`: as in `known`, all others aligned pointers to `dtype`."""
    return {name: known.get(name, f"*{dtype}:16") for name in kernel.arg_names}
