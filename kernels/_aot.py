"""Compile kernels for GPUs that are not here, and read what they cost from the machine code.

Triton lowers to a cubin for any architecture, and its wheel carries NVIDIA's disassembler. So without a GPU
we can still tell the registers, local memory, shared memory and load widths of every tile that we ship. What
it can not tell is whether the result is right (the interpreter and the reference do) and how fast it is.

Needs Triton, and a process without TRITON_INTERPRET: an interpreted kernel has nothing to compile.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

if TYPE_CHECKING:
    from collections.abc import Mapping

ARCHITECTURES: Final = (80, 90, 100)

# Shared memory a block may ask for, bytes: A100, H100 and H200, B200.
_SHARED_LIMIT: Final = {80: 166_912, 90: 232_448, 100: 232_448}

_REGISTERS_PER_MULTIPROCESSOR: Final = 65_536


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
    narrow_loads
        How many loads may be narrower than 128 bits: those of one number a row.
    """

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int = 3
    max_registers: int
    narrow_loads: int = 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a build takes on one architecture; bytes are those of a thread (local) and a block (shared)."""

    registers: int
    local_bytes: int
    shared_bytes: int
    loads: Mapping[int, int] = field(default_factory=dict)
    """Number of load instructions from global memory by their width in bits."""


def compile_cubin(build: Build, architecture: int) -> Any:
    """Compile `build` for ``sm_<architecture>``, with neither GPU nor driver."""
    names = list(build.kernel.arg_names)
    signature, divisible = {}, {}
    for position, name in enumerate(names):
        if name in build.constants:
            signature[name] = "constexpr"
            continue
        signature[name], _, multiple = build.types[name].partition(":")
        if multiple:
            divisible[(position,)] = [["tt.divisibility", int(multiple)]]
    constants = {(names.index(name),): value for name, value in build.constants.items()}
    return triton.compile(
        ASTSource(build.kernel, signature, constants, divisible),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": build.num_warps, "num_stages": build.num_stages},
    )


def cost(build: Build, architecture: int) -> Cost:
    """Compile `build` and read its cost from the machine code."""
    compiled = compile_cubin(build, architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        listing = _run("nvdisasm", "-c", file.name)
    return Cost(
        registers=_number("REG", usage),
        # spilled registers show as stack, arrays indexed at run time as local memory
        local_bytes=_number("STACK", usage) + _number("LOCAL", usage),
        shared_bytes=compiled.metadata.shared,
        loads=_load_widths(listing),
    )


def broken_promises(build: Build, architecture: int, found: Cost) -> list[str]:
    """Every limit of `build` or of the architecture that `found` exceeds, in words."""
    broken = []
    if found.local_bytes:
        broken.append(f"{found.local_bytes} bytes of local memory a thread")
    if found.registers > build.max_registers:
        broken.append(f"{found.registers} registers a thread, {build.max_registers} allowed")
    if found.registers * 32 * build.num_warps > _REGISTERS_PER_MULTIPROCESSOR:
        broken.append(f"{build.num_warps} warps of {found.registers} registers do not fit a multiprocessor")
    if found.shared_bytes > _SHARED_LIMIT[architecture]:
        broken.append(f"{found.shared_bytes} bytes of shared memory, {_SHARED_LIMIT[architecture]} allowed")
    if sum(found.loads.values()) - found.loads.get(128, 0) > build.narrow_loads:
        broken.append(f"loads {found.loads} by width, only {build.narrow_loads} may be under 128 bits")
    return broken


def _load_widths(listing: str) -> dict[int, int]:
    """Count global loads by width; ``LDG.E.128`` names its width, a bare ``LDG.E`` is 32 bits."""
    widths: dict[int, int] = {}
    for modifiers in re.findall(r"\bLDG(?:STS)?((?:\.\w+)*)", listing):
        named = re.search(r"\.(?:[US])?(8|16|64|128|256)\b", modifiers)
        width = int(named.group(1)) if named else 32
        widths[width] = widths.get(width, 0) + 1
    return widths


def _number(label: str, text: str) -> int:
    match = re.search(rf"{label}:(\d+)", text)
    if match is None:
        raise ValueError(f"no {label} in the resource usage: {text[:200]!r}")
    return int(match.group(1))


def _run(tool: str, *arguments: str) -> str:
    """Output of one of the CUDA tools in the Triton wheel."""
    path = getattr(triton.knobs.nvidia, tool).path
    return subprocess.run((path, *arguments), check=True, capture_output=True, text=True).stdout
