"""`overcomplete_ista_step`: definition, gradients, registration, errors and kernels."""

from __future__ import annotations

import pytest
import torch
from support.accuracy import DTYPES, assert_as_accurate_as_pytorch, in_float64, with_gradients

from scdd.kernels.ista import (
    overcomplete_ista_step,
    overcomplete_ista_step_with_zeros,
    overcomplete_ops,
)

STEP_SIZE, THRESHOLD = 0.3, 0.4
FORMS = pytest.mark.parametrize("form", ["plain", "residual", "gate", "both"])


def make_inputs(
    cells=4, rows=3, width=12, atoms=40, *, form="both", tied=False, dtype=torch.float32, device="cpu"
):
    """Random inputs by name; `rows` None gives the 2-D form."""
    generator = torch.Generator().manual_seed(width * 101 + cells * 7 + (rows or 0))
    shape = (cells, width) if rows is None else (cells, rows, width)

    def draw(*shape, scale=1.0):
        drawn = scale * torch.randn(*shape, generator=generator)
        return drawn.to(device, dtype).requires_grad_()

    inputs = {"x": draw(*shape), "dictionary": draw(width, atoms, scale=width**-0.5)}
    inputs |= {} if tied else {"readout": draw(width, atoms, scale=atoms**-0.5)}
    threshold = torch.rand(atoms, generator=generator).to(device, dtype).requires_grad_()
    inputs |= {"step_size": STEP_SIZE, "threshold": threshold}
    inputs |= {"residual": draw(*shape)} if form in {"residual", "both"} else {}
    return inputs | ({"gate": draw(cells, width)} if form in {"gate", "both"} else {})


def codes(x, dictionary, step_size, threshold):
    """Both steps before their rectifiers, as published."""
    first = step_size * x @ dictionary - step_size * threshold
    z1 = torch.relu(first)
    return first, z1 - step_size * (z1 @ dictionary.mT - x) @ dictionary - step_size * threshold


def published(x, dictionary, step_size, threshold, readout=None, residual=None, gate=None):
    out = (
        torch.relu(codes(x, dictionary, step_size, threshold)[1])
        @ (dictionary if readout is None else readout).mT
    )
    if gate is not None:
        out = (gate[:, None] if x.ndim == 3 else gate) * out
    return out if residual is None else residual + out


def step(implementation="auto"):
    return lambda **inputs: overcomplete_ista_step(**inputs, implementation=implementation)


def without_corners(inputs):
    """The same, without the atoms that rounding could turn on or off: they get a threshold that none passes.

    On the other side of a rectifier a gradient is all wrong.
    """
    margin = 1e-5 if inputs["x"].dtype.itemsize > 2 else 0.01
    wide = {name: t.detach() if isinstance(t, torch.Tensor) else t for name, t in in_float64(inputs).items()}
    before = codes(*(wide[name] for name in ("x", "dictionary", "step_size", "threshold")))
    near = torch.stack([(b.abs() < margin).flatten(0, -2).any(0) for b in before]).any(0)
    assert near.float().mean() < 0.8
    threshold = torch.where(near.to(inputs["x"].device), 100.0, inputs["threshold"].detach())
    return inputs | {"threshold": threshold.to(inputs["x"].dtype).requires_grad_()}


def assert_accurate(inputs, implementation="auto"):
    inputs = without_corners(inputs)
    rows, atoms = inputs["x"][..., 0].numel(), inputs["dictionary"].shape[1]
    sums = dict.fromkeys(("out0", "dx"), atoms) | dict.fromkeys(
        ("dgate", "ddictionary", "dreadout", "dthreshold"), rows * atoms
    )
    assert_as_accurate_as_pytorch(
        with_gradients(step(implementation), inputs),
        with_gradients(published, inputs),
        with_gradients(published, in_float64(inputs)),
        summed=sums,
    )


# ------------------------------------------------------------------------------ definition, any device


@FORMS
@pytest.mark.parametrize("tied", [False, True], ids=["readout", "tied"])
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("rows", [None, 1, 4])
def test_is_the_published_step_to_machine_precision(device, rows, implementation, tied, form):
    inputs = make_inputs(rows=rows, form=form, tied=tied, dtype=torch.float64, device=device)
    got = with_gradients(step(implementation), inputs)
    for name, value in with_gradients(published, inputs).items():
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-13, msg=name)


def test_matches_loops_over_rows_and_atoms():
    inputs = {
        name: t.detach() if isinstance(t, torch.Tensor) else t
        for name, t in make_inputs(2, 2, 3, 7, form="both", dtype=torch.float64).items()
    }
    d, e, price = inputs["dictionary"], inputs["readout"], STEP_SIZE * inputs["threshold"]
    out = inputs["residual"].clone()
    for c in range(2):
        for r in range(2):
            x = inputs["x"][c, r]
            z1 = torch.stack([(STEP_SIZE * d[:, k] @ x - price[k]).clamp(min=0) for k in range(7)])
            error = sum(z1[k] * d[:, k] for k in range(7)) - x
            z2 = [(z1[k] - STEP_SIZE * d[:, k] @ error - price[k]).clamp(min=0) for k in range(7)]
            out[c, r] += inputs["gate"][c] * sum(z2[k] * e[:, k] for k in range(7))
    torch.testing.assert_close(overcomplete_ista_step(**inputs), out, rtol=0, atol=1e-14)


@FORMS
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_as_accurate_as_pytorch(device, dtype, implementation, form):
    assert_accurate(make_inputs(3, 5, 32, 128, form=form, dtype=dtype, device=device), implementation)


@FORMS
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("rows", [None, 2])
def test_gradcheck(rows, implementation, form):
    inputs = make_inputs(2, rows, 3, 7, form=form, dtype=torch.float64)
    learned = {name: t for name, t in inputs.items() if isinstance(t, torch.Tensor)}

    def function(*tensors):
        given = inputs | dict(zip(learned, tensors, strict=True))
        return overcomplete_ista_step(**given, implementation=implementation)

    assert torch.autograd.gradcheck(function, tuple(learned.values()))


@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float64])
def test_counts_zeros(device, dtype, implementation):
    """Without a readout of its own: the unit matrix shows the code itself."""
    inputs = make_inputs(5, 9, 12, 12, form="plain", dtype=dtype, device=device)
    inputs["readout"] = torch.eye(12, dtype=dtype, device=device)
    found = overcomplete_ista_step_with_zeros(**inputs, implementation=implementation)
    assert found.zeros.dtype == torch.int64
    assert 0 < found.zeros < found.out.numel()
    assert torch.equal(found.zeros, (found.out == 0).sum())
    assert torch.equal(found.out, overcomplete_ista_step(**inputs, implementation=implementation))


@pytest.mark.parametrize("frozen", ["x", "dictionary", "readout", "threshold", "gate", "residual"])
def test_a_frozen_input_gets_no_gradient_and_changes_no_other(device, frozen):
    inputs = make_inputs(device=device)
    expected = with_gradients(step(), inputs)
    got = with_gradients(step(), inputs | {frozen: inputs[frozen].detach()})
    assert got.keys() == expected.keys() - {f"d{frozen}"}
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


@FORMS
@pytest.mark.parametrize("shape", [(0, 3, 8), (0, None, 8), (4, 0, 8)])
def test_nothing_in_nothing_out(device, shape, form):
    inputs = make_inputs(*shape, form=form, device=device)
    for value in with_gradients(step(), inputs).values():
        assert not value.count_nonzero()
    assert overcomplete_ista_step_with_zeros(**inputs).zeros == 0


def test_any_memory_layout(device):
    inputs = make_inputs(device=device)
    strided = {
        name: t.detach().mT.contiguous().mT.requires_grad_()
        if isinstance(t, torch.Tensor) and t.ndim > 1
        else t
        for name, t in inputs.items()
    }
    got = with_gradients(step(), strided)
    for name, expected in with_gradients(step(), inputs).items():
        torch.testing.assert_close(got[name], expected)


@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_under_autocast(device, implementation, dtype):
    """Autocast reached the products inside the operator, whose other operand was already float32."""
    inputs = make_inputs(dtype=dtype, device=device)
    expected = with_gradients(step(implementation), inputs)

    def cast(**inputs):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return step(implementation)(**inputs)

    results = [with_gradients(cast, inputs)]
    if implementation == "auto":
        # the gradient of the reference is PyTorch's own, and minds autocast
        with torch.autocast(device.type, dtype=torch.bfloat16):
            results.append(with_gradients(step(implementation), inputs))
    for found in results:
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)


# ------------------------------------------------------------------------------ registration


def operator_calls(device):
    """Each registered operator with arguments that it would get."""
    inputs = {
        name: t.detach() if isinstance(t, torch.Tensor) else t
        for name, t in make_inputs(device=device).items()
    }
    d, e, gate, level = (inputs[name] for name in ("dictionary", "readout", "gate", "threshold"))
    for x in (inputs["x"], inputs["x"][:, 0].contiguous()):
        for given, keep, count in ((gate, True, False), (None, False, True), (None, True, True)):
            price = level if keep else None
            residual = None if given is None else x
            forward = (x, d, e, price, 0.1, STEP_SIZE, residual, given, keep, count)
            yield overcomplete_ops._forward, forward
            if keep:
                _, z1, missed, z2, v, _ = overcomplete_ops._forward(*forward)
                for need in (True, False):
                    saved = (x, d, e, z1, missed, z2, v, given, STEP_SIZE)
                    yield overcomplete_ops._backward, (x, *saved, need, need, need, need)


def test_registration(device):
    for op, arguments in operator_calls(device):
        torch.library.opcheck(op, arguments)


@FORMS
@pytest.mark.parametrize("rows", [None, 3])
def test_compiles_to_one_graph_of_any_size(device, rows, form):
    torch.compiler.reset()
    compiled = torch.compile(overcomplete_ista_step, fullgraph=True, dynamic=True)
    for cells in (5, 6):
        inputs = make_inputs(cells, rows, form=form, device=device)
        eager = with_gradients(overcomplete_ista_step, inputs)
        for name, value in with_gradients(compiled, inputs).items():
            torch.testing.assert_close(value, eager[name], msg=name)


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"x": torch.zeros(12)}, ValueError, r"x has shape \(12,\); reshape it to \[C, R, N\] or \[C, N\]"),
        (
            {"dictionary": torch.zeros(40, 12)},
            ValueError,
            r"dictionary has shape \(40, 12\).*N = 12 and K > 0",
        ),
        (
            {"dictionary": torch.zeros(12)},
            ValueError,
            r"dictionary has shape \(12,\); reshape it to \[N, K\]",
        ),
        ({"dictionary": torch.zeros(12, 40).half()}, TypeError, r"cast with dictionary\.to\(x\.dtype\)"),
        ({"readout": torch.zeros(40, 12)}, ValueError, r"readout has shape \(40, 12\).*that of dictionary"),
        ({"step_size": torch.ones(())}, TypeError, "step_size is a Tensor; pass a number"),
        ({"step_size": -1.0}, ValueError, r"step_size is -1\.0"),
        ({"threshold": torch.ones(12)}, ValueError, r"threshold has shape \(12,\); pass a scalar or \[40\]"),
        ({"gate": torch.zeros(4, 40)}, ValueError, r"gate has shape \(4, 40\)"),
    ],
)
def test_refuses_and_says_what_to_do(changes, kind, message):
    with pytest.raises(kind, match=message):
        overcomplete_ista_step(**make_inputs() | changes)


# ------------------------------------------------------------------------------ the kernels themselves


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernels, whose outputs start as NaN."""
    from scdd.kernels.ista import gradient, matmul, triton

    for module in (gradient, matmul, triton):
        poison(module)
    return kernel_device


@pytest.mark.parametrize("form", ["plain", "both"])
@pytest.mark.parametrize(
    ("cells", "rows", "width", "atoms"),
    [(2, None, 1, 1), (3, 5, 24, 100), (2, 65, 40, 130), (130, None, 33, 65)],
)
def test_kernel(poisoned, cells, rows, width, atoms, form):
    assert_accurate(make_inputs(cells, rows, width, atoms, form=form, device=poisoned), "triton")


@FORMS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_kernel_in_sixteen_bits(poisoned, dtype, form):
    assert_accurate(make_inputs(3, 6, 40, 160, form=form, dtype=dtype, device=poisoned), "triton")


def test_kernel_counts_zeros_exactly(poisoned):
    """The unit matrix twice: what a whole number becomes is known, and so is where it is zero."""
    x = torch.randint(-2, 4, (3, 65, 40), generator=torch.Generator().manual_seed(0)).float().to(poisoned)
    unit = torch.eye(40, device=poisoned)
    found = overcomplete_ista_step_with_zeros(x, unit, step_size=1.0, threshold=1.0, implementation="triton")
    # z1 = relu(x - 1), z2 = relu(z1 - (z1 - x) - 1) = relu(x - 1)
    assert torch.equal(found.out, (x - 1).relu())
    assert found.zeros == (x <= 1).sum()


def test_kernel_keeps_rows_apart_and_passes_nan_on(poisoned):
    clean = make_inputs(5, 30, 40, 100, device=poisoned)
    dirty = {name: t.detach().clone() if isinstance(t, torch.Tensor) else t for name, t in clean.items()}
    for name in ("x", "residual", "gate"):
        dirty[name][2] = torch.nan
    for tensor in dirty.values():
        if isinstance(tensor, torch.Tensor):
            tensor.requires_grad_()
    others = torch.tensor([0, 1, 3, 4], device=poisoned)
    expected = with_gradients(step("triton"), clean)
    got = with_gradients(step("triton"), dirty)
    for name in ("out0", "dx", "dresidual", "dgate"):
        torch.testing.assert_close(got[name][others], expected[name][others], rtol=0, atol=0)
    assert got["out0"][2].isnan().all()


def test_kernel_gives_the_same_bits_twice(poisoned):
    inputs = make_inputs(3, 50, 40, 100, device=poisoned)
    first = with_gradients(step("triton"), inputs)
    for name, value in with_gradients(step("triton"), inputs).items():
        assert torch.equal(value, first[name]), name


@FORMS
@pytest.mark.parametrize("shape", [(0, 3, 8), (0, None, 8), (4, 0, 8)])
def test_kernel_on_nothing(poisoned, shape, form):
    for value in with_gradients(step("triton"), make_inputs(*shape, form=form, device=poisoned)).values():
        assert not value.count_nonzero()
