"""Launch every kernel of an operator with sizes of one, and see whether it can be compiled so.

Triton compiles a kernel anew for what it is launched with: an integer that is 1 is then a constant,
which has no `to`, and one past 2^31 has 64 bits. The interpreter knows neither, and the builds ahead of time
promise one specialisation. Here launches are specialised as on a GPU and taken as far as
Triton's own intermediate representation; nothing runs, so what comes out is not looked at.

``python -m support.launches`` prints every launch that can not be compiled; exit status 1 if there is one.
"""

from __future__ import annotations

import os
import sys

# The operators hand CPU tensors to the launchers if this is set, and Triton compiles if it is not.
os.environ["TRITON_INTERPRET"] = "1"
import scdd.kernels as kernels

del os.environ["TRITON_INTERPRET"]

import torch
import triton
import triton.language as tl
from scdd.kernels import _triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction

_triton.INTERPRETED = tl.constexpr(False)

_TARGET = GPUTarget("cuda", 90, 32)
_BACKEND = make_backend(_TARGET)
_DTYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int8: "i8", torch.bool: "i1",
}  # fmt: skip
# z and y of a grid
_MOST_PROGRAMS = 65_535

_seen: set[str] = set()
_faults: dict[str, str] = {}


def _specialised(value):
    """Type of an argument, and its value where it is compiled into the kernel."""
    if value is None or (isinstance(value, int) and value == 1):
        return "constexpr", value
    if isinstance(value, torch.Tensor):
        return f"*{_DTYPES[value.dtype]}", None
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64", None
    return "fp32", None


def _launch(kernel, *arguments, grid, warmup=False, **options):
    """Take the place of a launch: compile the kernel for its arguments as far as the representation."""
    bound = dict(zip(kernel.arg_names, arguments, strict=False))
    bound |= {name: options.pop(name) for name in list(options) if name in kernel.arg_names}
    grid = grid(bound) if callable(grid) else grid
    if any(size > _MOST_PROGRAMS for size in grid[1:]):
        _faults[f"{kernel.__name__} grid"] = f"{grid}"
    signature, constants = {}, {}
    for position, parameter in enumerate(kernel.params):
        name = parameter.name
        signature[name], value = _specialised(bound[name])
        if parameter.is_constexpr:
            signature[name], value = "constexpr", getattr(bound[name], "value", bound[name])
        if signature[name] == "constexpr":
            constants[(position,)] = value
    key = f"{kernel.__name__} {signature} {constants} {options}"
    if key in _seen:
        return
    _seen.add(key)
    settings, context = _BACKEND.parse_options(dict(options)), ir.context()
    ir.load_dialects(context)
    _BACKEND.load_dialects(context)
    source = ASTSource(kernel, signature, constants, {})
    functions, modules = _BACKEND.get_codegen_implementation(settings), _BACKEND.get_module_map()
    try:
        source.make_ir(_TARGET, settings, functions, modules, context)
    except triton.compiler.errors.CompilationError as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        ones = ", ".join(
            name for name in kernel.arg_names if signature[name] == "constexpr" and bound[name] == 1
        )
        _faults[f"{kernel.__name__} where {ones} are 1"] = str(cause).splitlines()[-1]


def _floats(*shape):
    return torch.randn(*shape).requires_grad_()


def _patches(cells, patches):
    x0, level, width, patch = torch.randn(cells, 4 * patches - 1), torch.randn(cells), 16, 4
    embed = _floats(width, patch), _floats(width), _floats(patches, width)
    kernels.noise_patch_embed(x0.clone().requires_grad_(), level, level, *embed, seed=0).sum().backward()
    h, shift, scale = _floats(cells, patches, width), _floats(cells, width), _floats(cells, width)
    layer = h, shift, scale, _floats(patch, width), _floats(patch)
    kernels.denoise_loss(*layer, x0, level, level, seed=0, prediction="v").loss.backward()


def _steps(cells, genes):
    x = torch.randn(cells, genes)
    for coefficients in (torch.randn(6), torch.randn(cells, 6)):
        kernels.denoise_step(x, x, coefficients, unconditional=x, previous=x, seed=0)


def _rows(*shape):
    width = shape[-1]
    for gate in (None, _floats(shape[0], width)):
        y = _floats(*shape)
        kernels.ista_step_with_zeros(y, _floats(width, width), gate=gate, residual=y).out.sum().backward()
        wide = _floats(width, 2 * width), _floats(width, 2 * width)
        kernels.overcomplete_ista_step(_floats(*shape), *wide, gate=gate).sum().backward()


def _tokens(batch, tokens, heads, channels):
    w = _floats(batch, tokens, heads, channels)
    packed, bounds = w.flatten(0, 1), torch.tensor([0, batch * tokens])
    temperature = _floats(heads)
    kernels.token_statistics_attention(w, temperature).sum().backward()
    kernels.token_statistics_attention(packed, temperature, cu_seqlens=bounds).sum().backward()
    kernels.subspace_coding_rate(w, eps=0.5).sum().backward()
    kernels.subspace_coding_rate(packed, eps=0.5, normalise=True, cu_seqlens=bounds).sum().backward()


def _samples(n, m, genes):
    x, y = _floats(n, genes), _floats(m, genes)
    for bandwidths in ((1.0,), (1.0, 2.0), (1.0, 3.0)):
        kernels.maximum_mean_discrepancy(
            x, y, unit=1.0, bandwidths=bandwidths, unbiased=False, weights_x=_floats(n)
        ).backward()  # fmt: skip
    kernels.energy_distance(x, y, unbiased=False).backward()


def _codes(codes, latent, depth):
    width = 16

    def linear(inputs, outputs):
        return torch.nn.Linear(inputs, outputs)

    branches = [(linear(width, 32), linear(32, width)) for _ in range(depth)]
    pack = kernels.pack_denoiser(linear(latent, width), branches, linear(width, latent))
    modulation = torch.randn(1, (3 * depth + 2) * width)
    given = {"condition": torch.zeros(codes, dtype=torch.int64), "seed": 0}
    for levels in ({"signal": 1, "noise": 1}, {"signal": torch.ones(codes), "noise": torch.ones(codes)}):
        z = _floats(codes, latent)
        kernels.single_step_denoise(z, modulation, pack, **given, **levels).sum().backward()


def main() -> int:
    """Launch everything with sizes of one, alone and beside others."""
    JITFunction.run = _launch
    for sizes in ((1, 1), (1, 9), (70, 1)):
        _patches(*sizes)
        _steps(*sizes)
    for shape in ((1, 16), (5, 16), (1, 1, 16), (5, 1, 16), (1, 5, 16), (1, 1, 1)):
        _rows(*shape)
    for shape in ((1, 1, 1, 16), (1, 1, 2, 7), (4, 1, 2, 16), (1, 1000, 1, 16)):
        _tokens(*shape)
    for sizes in ((1, 1, 1), (1, 5, 3), (5, 1, 3), (1, 200, 16), (200, 1, 16)):
        _samples(*sizes)
    for sizes in ((1, 1, 1), (1, 10, 2), (65, 10, 2)):
        _codes(*sizes)
    for fault, cause in _faults.items():
        print(f"{fault}: {cause}")
    print(f"{len(_seen)} launches")
    return bool(_faults) or not _seen


if __name__ == "__main__":
    sys.exit(main())
