"""Compile a build for a GPU that is not here, and read what it costs from the machine code.

Triton lowers to a cubin for any architecture, and its wheel carries NVIDIA's disassembler. So without a GPU
we can still tell the registers, local memory, shared memory, load widths and tensor-core use of every tile
that we ship. What it can not tell is whether the result is right (the interpreter and the reference do) and
how fast it is.

Needs Triton, and a process without TRITON_INTERPRET: an interpreted kernel has nothing to compile.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from typing import Any, Final

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .build import Build, Cost

# Shared memory a block may ask for, bytes: A100, H100 and H200, B200.
_SHARED_LIMIT: Final = {80: 166_912, 90: 232_448, 100: 232_448}

_REGISTERS_PER_MULTIPROCESSOR: Final = 65_536

# The instruction of each generation's tensor cores, as the disassembler spells it.
_TENSOR_CORE: Final = {80: r"\bHMMA\b", 90: r"\bHGMMA\b", 100: r"\bUTC[A-Z]*MMA\b"}


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
        options={
            "num_warps": build.num_warps,
            "num_stages": build.num_stages,
            "maxnreg": build.limit_registers.get(architecture),
        },
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
        tensor_core_instructions=len(re.findall(_TENSOR_CORE[architecture], listing)),
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
    if build.tensor_cores and not found.tensor_core_instructions:
        broken.append("no tensor-core instruction")
    return broken


def _load_widths(listing: str) -> dict[int, int]:
    """Count global loads by width; ``LDG.E.128`` names its width, a bare ``LDG.E`` is 32 bits.

    A load by the tensor memory accelerator (UTMALDG) moves whole tiles, and counts as 128 bits.
    """
    widths: dict[int, int] = {}
    if bulk := len(re.findall(r"\bUTMALDG", listing)):
        widths[128] = bulk
    for modifiers in re.findall(r"\bLDG(?:STS)?\b((?:\.\w+)*)", listing):
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
