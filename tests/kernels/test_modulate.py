"""`modulate` and `gated_residual_modulate`: definition, gradients, registration, errors and kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from scdd.kernels import ModulateOutput, _dispatch, _in_cells, gated_residual_modulate, modulate
from scdd.kernels.modulate import ops, tiles

GATED = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EPS = 1e-6


class Inputs(NamedTuple):
    x: torch.Tensor
    shift: torch.Tensor
    scale: torch.Tensor
    residual: torch.Tensor
    gate: torch.Tensor


def make_inputs(conditions=5, rows=3, width=24, *, dtype=torch.float32, device="cpu", offset=0.0, spread=1.0):
    """Random inputs; `rows` None gives the 2-D form. `offset` and `spread` are those of x and residual."""
    generator = torch.Generator().manual_seed(width * 101 + conditions * 7 + (rows or 0))
    shape = (conditions, width) if rows is None else (conditions, rows, width)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    x, residual = (offset + spread * draw(*shape) for _ in range(2))
    per_condition = [0.5 * draw(conditions, width) for _ in range(3)]
    tensors = (x, *per_condition[:2], residual, per_condition[2])
    return Inputs(*(t.to(device, dtype).requires_grad_() for t in tensors))


def naive(inputs, gated):
    """The formula with PyTorch's layer norm, in the dtype of the inputs."""
    x, shift, scale, residual, gate = inputs
    if x.ndim == 3:
        shift, scale, gate = shift[:, None], scale[:, None], gate[:, None]
    h = residual + gate * x if gated else x
    y = F.layer_norm(h, h.shape[-1:], eps=EPS) * (1 + scale) + shift
    return (y, h) if gated else (y,)


def operator(inputs, gated, implementation="auto"):
    x, shift, scale, residual, gate = inputs
    if not gated:
        return (modulate(x, shift, scale, eps=EPS, implementation=implementation),)
    return gated_residual_modulate(
        x, shift, scale, residual=residual, gate=gate, eps=EPS, implementation=implementation
    )


def with_gradients(function, inputs, gated, **kwargs):
    """Every output and every gradient, by name."""
    outputs = function(inputs, gated, **kwargs)
    generator = torch.Generator().manual_seed(0)
    cotangents = [
        torch.randn(out.shape, generator=generator).to(torch.float16).to(out.device, out.dtype)
        for out in outputs
    ]
    names = Inputs._fields if gated else Inputs._fields[:3]
    wanted = [getattr(inputs, name) for name in names]
    gradients = torch.autograd.grad(outputs, wanted, cotangents)
    named = dict(zip(("y", "h"), outputs, strict=False))
    return named | {f"d{name}": grad for name, grad in zip(names, gradients, strict=True)}


def exact(inputs, gated):
    """The definition in float64, of the same rounded inputs."""
    wide = Inputs(*(t.detach().cpu().double().requires_grad_() for t in inputs))
    return with_gradients(naive, wide, gated)


def error(got, expected):
    return (got.detach().cpu().double() - expected).square().mean().sqrt().item()


def assert_as_accurate_as_pytorch(inputs, gated, **kwargs):
    """Hold each result to twice the error of PyTorch in the same dtype, and the rounding of a float32 sum."""
    expected = exact(inputs, gated)
    theirs = with_gradients(naive, inputs, gated)
    ours = with_gradients(operator, inputs, gated, **kwargs)
    dtype = inputs.x.dtype
    allowed = 2.0
    if _dispatch.INTERPRET and dtype == torch.bfloat16:
        # the interpreter truncates to bfloat16 where a GPU rounds, and that alone doubles the error
        allowed *= 2
    rows = inputs.x.shape[1] if inputs.x.ndim == 3 else 1
    for name, value in ours.items():
        assert value.dtype == dtype
        size = expected[name].square().mean().sqrt().item()
        roundings = max(1, rows) ** 0.5 if name in {"dshift", "dscale", "dgate"} else 1
        rounding = roundings * torch.finfo(torch.float32).eps * size
        limit = allowed * error(theirs[name], expected[name]) + rounding
        found = error(value, expected[name])
        assert found <= limit, f"{name}: error {found:.3g}, PyTorch's allows {limit:.3g}"


# ------------------------------------------------------------------------------ definition, any device


@GATED
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("rows", [None, 1, 4])
def test_matches_definition(device, rows, dtype, implementation, gated):
    inputs = make_inputs(rows=rows, dtype=dtype, device=device)
    assert_as_accurate_as_pytorch(inputs, gated, implementation=implementation)


@GATED
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("rows", [None, 1, 4])
def test_large_cells_go_one_by_one(monkeypatch, rows, dtype, gated):
    monkeypatch.setattr(_in_cells, "_OWN_CALLS", 1)
    assert_as_accurate_as_pytorch(make_inputs(rows=rows, dtype=dtype), gated, implementation="reference")


@GATED
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("rows", [None, 2])
def test_gradcheck(rows, implementation, gated):
    inputs = make_inputs(2, rows, 5, dtype=torch.float64)
    used = tuple(inputs) if gated else inputs[:3]

    def function(*tensors):
        return tuple(operator(Inputs(*tensors, *inputs[len(tensors) :]), gated, implementation))

    assert torch.autograd.gradcheck(function, used)


def test_float64_is_exact():
    inputs = make_inputs(dtype=torch.float64)
    for name, value in with_gradients(operator, inputs, gated=True).items():
        torch.testing.assert_close(value, exact(inputs, gated=True)[name], rtol=1e-12, atol=1e-12)


def test_returns_a_named_pair():
    x, shift, scale, residual, gate = make_inputs()
    out = gated_residual_modulate(x, shift, scale, residual=residual, gate=gate)
    assert isinstance(out, ModulateOutput)
    torch.testing.assert_close(out.h, residual + gate[:, None] * x)
    torch.testing.assert_close(out.y, modulate(out.h, shift, scale))


def test_gradient_flows_through_either_result_alone(device):
    inputs = make_inputs(device=device)
    y, h = operator(inputs, gated=True)
    expected_y, expected_h = naive(inputs, gated=True)
    for ours, theirs in ((y, expected_y), (h, expected_h)):
        gradients = torch.autograd.grad(ours.sin().sum(), (inputs.residual, inputs.gate), retain_graph=True)
        expected = torch.autograd.grad(theirs.sin().sum(), (inputs.residual, inputs.gate), retain_graph=True)
        torch.testing.assert_close(gradients, expected)


def test_second_derivative_needs_the_reference():
    inputs = make_inputs(2, None, 4, dtype=torch.float64)
    x, shift, scale = inputs[:3]
    (first,) = torch.autograd.grad(modulate(x, shift, scale).sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    reference = modulate(x, shift, scale, implementation="reference")
    (first,) = torch.autograd.grad(reference.sin().sum(), x, create_graph=True)
    first.sum().backward()
    assert x.grad is not None


@GATED
def test_pieces_of_one_modulation_tensor(device, gated):
    """The modulation of adaLN is one linear layer cut in pieces: rows are apart by more than their width."""
    inputs = make_inputs(device=device)
    whole = torch.cat((inputs.shift, inputs.scale, inputs.gate), dim=-1).detach()
    shift, scale, gate = whole.chunk(3, dim=-1)
    strided = inputs._replace(shift=shift, scale=scale, gate=gate)
    for got, expected in zip(operator(strided, gated), operator(inputs, gated), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@GATED
def test_any_memory_layout(device, gated):
    inputs = make_inputs(device=device)
    transposed = Inputs(*(t.detach().mT.contiguous().mT.requires_grad_() for t in inputs))
    assert not transposed.x.is_contiguous()
    got = with_gradients(operator, transposed, gated)
    for name, expected in with_gradients(operator, inputs, gated).items():
        torch.testing.assert_close(got[name], expected, rtol=0, atol=0)


def test_one_row_of_modulation_expanded_over_all(device):
    inputs = make_inputs(rows=None, device=device)
    shift, scale = inputs.shift[:1].expand(5, -1), inputs.scale[:1].expand(5, -1)
    got = modulate(inputs.x, shift, scale)
    torch.testing.assert_close(got, modulate(inputs.x, shift.contiguous(), scale.contiguous()))


@GATED
@pytest.mark.parametrize("shape", [(0, 3, 8), (0, None, 8), (4, 0, 8)])
def test_nothing_in_nothing_out(device, shape, gated):
    inputs = make_inputs(*shape, device=device)
    for name, value in with_gradients(operator, inputs, gated).items():
        expected = {"y": "x", "h": "x"}.get(name, name[1:])
        assert value.shape == getattr(inputs, expected).shape
        assert not value.count_nonzero()


def test_under_autocast(device):
    inputs = make_inputs(dtype=torch.bfloat16, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        cast = with_gradients(operator, inputs, gated=True)
    for name, value in with_gradients(operator, inputs, gated=True).items():
        torch.testing.assert_close(cast[name], value, rtol=0, atol=0)


# ------------------------------------------------------------------------------ registration


def operator_calls(device):
    """Each registered operator with arguments that it would get."""
    x, shift, scale, residual, gate = (t.detach() for t in make_inputs(device=device))
    for rows in (None, 3):
        cut = (lambda t: t[:, 0].contiguous()) if rows is None else (lambda t: t)
        _, mean, rstd = ops._modulate_forward(cut(x), shift, scale, EPS)
        norm = (scale, mean, rstd)
        yield ops._modulate_forward, (cut(x), shift, scale, EPS)
        yield ops._modulate_backward, (cut(residual), cut(x), *norm)
        yield ops._gated_forward, (cut(x), cut(residual), gate, shift, scale, EPS)
        yield ops._gated_backward, (cut(residual), cut(x), cut(x), cut(x), gate, *norm)


def test_registration(device):
    for op, arguments in operator_calls(device):
        torch.library.opcheck(op, arguments)


@GATED
@pytest.mark.parametrize("rows", [None, 3])
def test_compiles_to_one_graph_of_any_size(device, rows, gated):
    torch.compiler.reset()
    compiled = torch.compile(operator, fullgraph=True, dynamic=True)
    for conditions in (5, 6):
        inputs = make_inputs(conditions, rows, device=device)
        eager = with_gradients(operator, inputs, gated)
        for name, value in with_gradients(compiled, inputs, gated).items():
            torch.testing.assert_close(value, eager[name])


# ------------------------------------------------------------------------------ errors


def wrong(**changes):
    inputs = {name: t.detach() for name, t in make_inputs()._asdict().items()}
    inputs |= {name: change(inputs[name]) for name, change in changes.items()}
    x, shift, scale = (inputs.pop(name) for name in ("x", "shift", "scale"))
    return gated_residual_modulate(x, shift, scale, **inputs)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"x": lambda t: t.tolist()}, TypeError, r"x is a list; pass a torch\.Tensor"),
        ({"gate": lambda t: 1.0}, TypeError, r"gate is a float; pass a torch\.Tensor"),
        ({"x": lambda t: t.long()}, TypeError, r"x has dtype torch\.int64; cast it to float32"),
        ({"x": lambda t: t[0, 0]}, ValueError, r"x has shape \(24,\); reshape it to \[C, R, N\] or \[C, N\]"),
        ({"x": lambda t: t[..., :0]}, ValueError, r"x has shape \(5, 3, 0\).*N > 0"),
        (
            {"shift": lambda t: t[:3]},
            ValueError,
            r"shift has shape \(3, 24\).*give it the shape \(5, 24\)",
        ),
        ({"scale": lambda t: t[:, None]}, ValueError, r"scale has shape \(5, 1, 24\).*\[C, N\]"),
        ({"gate": lambda t: t[:, :1]}, ValueError, r"gate has shape \(5, 1\)"),
        ({"residual": lambda t: t[:, :1]}, ValueError, r"residual has shape \(5, 1, 24\).*\(5, 3, 24\)"),
        ({"scale": lambda t: t.half()}, TypeError, r"scale has dtype torch\.float16.*cast with scale\.to\(x"),
        ({"residual": lambda t: t.double()}, TypeError, r"residual has dtype torch\.float64"),
        (
            {"shift": lambda t: t.to("meta")},
            ValueError,
            r"shift is on meta and x is on cpu; move it with shift\.to",
        ),
    ],
)
def test_refuses_and_says_what_to_do(changes, kind, message):
    with pytest.raises(kind, match=message):
        wrong(**changes)


def test_refuses_a_negative_eps():
    x, shift, scale = make_inputs()[:3]
    with pytest.raises(ValueError, match=r"eps is -0\.5; .* can not be negative"):
        modulate(x, shift, scale, eps=-0.5)


def test_refuses_an_unknown_implementation():
    x, shift, scale = make_inputs()[:3]
    with pytest.raises(
        ValueError, match="implementation is 'cuda'; choose one of 'auto', 'reference', 'triton'"
    ):
        modulate(x, shift, scale, implementation="cuda")


def test_a_named_implementation_never_falls_back(monkeypatch):
    def message(inputs):
        with pytest.raises(ValueError, match="implementation='triton' can not be had") as raised:
            operator(inputs, gated=False, implementation="triton")
        return str(raised.value)

    monkeypatch.setattr(_dispatch, "TRITON_INSTALLED", False)
    assert "pip install triton" in message(make_inputs())
    monkeypatch.setattr(_dispatch, "TRITON_INSTALLED", True)
    monkeypatch.setattr(_dispatch, "INTERPRET", False)
    assert "TRITON_INTERPRET=1" in message(make_inputs())
    assert ".cuda()" in message(make_inputs())
    monkeypatch.setattr(_dispatch, "INTERPRET", True)
    assert "float64" in message(make_inputs(dtype=torch.float64))
    assert f"at most {tiles.MAX_WIDTH}" in message(make_inputs(1, None, tiles.MAX_WIDTH + 1))


# ------------------------------------------------------------------------------ packaging


def run_python(*arguments, **kwargs):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **kwargs)


def test_a_second_copy_of_the_package_is_refused():
    """In the root of the repository `import kernels` finds the folder, and would register all twice."""
    done = run_python("-c", "import kernels", cwd=Path(__file__).parents[2])
    assert done.returncode != 0
    assert "import `scdd.kernels`" in done.stderr


def test_works_where_triton_is_absent():
    code = """
import sys
sys.modules["triton"] = None
import torch
from scdd.kernels import modulate
x = torch.ones(2, 4, requires_grad=True)
modulate(x, x, x).sum().backward()
"""
    done = run_python("-P", "-c", code)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------ tiles


@pytest.mark.parametrize("element_size", [2, 4])
def test_every_width_has_a_tile(element_size):
    known = {tile for tile, _ in tiles.every_tile()}
    for width in range(1, tiles.MAX_WIDTH + 1):
        tile = tiles.choose(width, element_size)
        assert tile in known
        assert tile.width >= width


@pytest.mark.parametrize("least_rows", [1, 16])
@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 65, 5000, 10**6])
@pytest.mark.parametrize("conditions", [1, 5, 10**5])
def test_schedule_deals_every_row_once(conditions, rows, least_rows):
    plan = tiles.schedule(conditions, rows, tiles.choose(256, 2), least_rows=least_rows)
    assert plan.rows >= least_rows
    assert plan.slices * plan.rows >= rows
    assert (plan.slices - 1) * plan.rows < max(rows, 1)
    # the second dimension of a CUDA grid
    assert plan.slices < 65_536


# ------------------------------------------------------------------------------ the kernels themselves


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernels, whose outputs start as NaN."""
    from scdd.kernels.modulate import triton as kernels

    poison(kernels)
    return kernel_device


# 65 rows are several partial sums, the last of them short. Wide rows take a program each, and 5 x 65 of those
# take the interpreter seconds: one condition is enough there.
SHAPES = [
    (conditions, rows, width)
    for conditions in (1, 5)
    for rows in (None, 1, 3, 65)
    for width in (1, 7, 64, 96, 200, 256, 768, 1000)
    if conditions * (rows or 1) * width < 21_000 or conditions == 1
]


@GATED
@pytest.mark.parametrize(("conditions", "rows", "width"), SHAPES)
def test_kernel(poisoned, conditions, rows, width, gated):
    inputs = make_inputs(conditions, rows, width, device=poisoned)
    assert_as_accurate_as_pytorch(inputs, gated, implementation="triton")


@GATED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("rows", "width"), [(None, 256), (1, 7), (3, 200), (65, 96)])
def test_kernel_in_sixteen_bits(poisoned, rows, width, dtype, gated):
    inputs = make_inputs(5, rows, width, dtype=dtype, device=poisoned)
    assert_as_accurate_as_pytorch(inputs, gated, implementation="triton")


@GATED
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1e4), (1e4, 1.0), (0.0, 1e-4)])
def test_kernel_on_extreme_values(poisoned, offset, spread, dtype, gated):
    inputs = make_inputs(5, 3, 96, dtype=dtype, device=poisoned, offset=offset, spread=spread)
    assert_as_accurate_as_pytorch(inputs, gated, implementation="triton")


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4 / 3, -12345.678])
@pytest.mark.parametrize("width", [7, 200, 1000])
def test_kernel_on_constant_rows(poisoned, width, value):
    """The mean of equal numbers is that number, or a rounding error is blown up by 1 / sqrt(eps)."""
    inputs = make_inputs(2, 3, width, device=poisoned)
    with torch.no_grad():
        inputs.x.fill_(value)
    got = with_gradients(operator, inputs, gated=False, implementation="triton")
    torch.testing.assert_close(got["y"], inputs.shift[:, None].expand(2, 3, width), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got["dscale"], torch.zeros_like(inputs.scale))


@GATED
@pytest.mark.parametrize("rows", [None, 3])
def test_kernel_keeps_conditions_apart(poisoned, rows, gated):
    """NaN in one condition, in a tile that it shares with others, stays there."""
    clean = make_inputs(5, rows, 64, device=poisoned)
    dirty = Inputs(*(t.detach().clone() for t in clean))
    for tensor in dirty:
        tensor[2] = torch.nan
        tensor.requires_grad_()
    others = torch.tensor([0, 1, 3, 4], device=poisoned)
    expected = with_gradients(operator, clean, gated, implementation="triton")
    for name, value in with_gradients(operator, dirty, gated, implementation="triton").items():
        torch.testing.assert_close(value[others], expected[name][others], rtol=0, atol=0)


@GATED
def test_kernel_gives_the_same_bits_twice(poisoned, gated):
    inputs = make_inputs(3, 40, 64, device=poisoned)
    first = with_gradients(operator, inputs, gated, implementation="triton")
    for name, value in with_gradients(operator, inputs, gated, implementation="triton").items():
        assert torch.equal(value, first[name]), name


def test_kernel_reads_modulation_in_place(poisoned):
    inputs = make_inputs(5, 3, 40, device=poisoned)
    whole = torch.cat((inputs.shift, inputs.scale, inputs.gate), dim=-1).detach()
    strided = inputs._replace(**dict(zip(("shift", "scale", "gate"), whole.chunk(3, dim=-1), strict=True)))
    expected = operator(inputs, gated=True, implementation="triton")
    torch.testing.assert_close(operator(strided, gated=True, implementation="triton"), expected)


@GATED
@pytest.mark.parametrize("shape", [(0, 3, 8), (0, None, 8), (4, 0, 8)])
def test_kernel_on_nothing(poisoned, shape, gated):
    inputs = make_inputs(*shape, device=poisoned)
    for value in with_gradients(operator, inputs, gated, implementation="triton").values():
        assert not value.count_nonzero()
