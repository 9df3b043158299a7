"""`ista_step`: definition, gradients, registration, errors and kernels."""

from __future__ import annotations

import pytest
import torch
from scdd.kernels import _dispatch, _in_cells
from scdd.kernels.ista import IstaOutput, api, ista_operator, ista_step, ista_step_with_zeros, ops, tiles
from support.accuracy import DTYPES, assert_as_accurate_as_pytorch, error, in_float64, with_gradients

STEP_SIZE, THRESHOLD = 0.3, 0.4
FORMS = pytest.mark.parametrize("form", ["plain", "residual", "gate", "both"])


def make_inputs(
    cells=5, rows=3, width=24, *, form="both", learned=True, dtype=torch.float32, device="cpu", spread=1.0
):
    """Random inputs by name; `rows` None gives the 2-D form; `learned` settings have gradients."""
    generator = torch.Generator().manual_seed(width * 101 + cells * 7 + (rows or 0))
    shape = (cells, width) if rows is None else (cells, rows, width)

    def draw(*shape, scale=1.0):
        drawn = scale * torch.randn(*shape, generator=generator)
        return drawn.to(device, dtype).requires_grad_()

    inputs = {"y": draw(*shape, scale=spread), "dictionary": draw(width, width, scale=width**-0.5)}
    inputs |= {"step_size": STEP_SIZE, "threshold": THRESHOLD}
    if learned:
        if dtype.itemsize > 2:
            # of one number in sixteen bits the rounding is all luck
            inputs["step_size"] = torch.tensor(STEP_SIZE, dtype=dtype, device=device).requires_grad_()
        drawn = spread * torch.rand(width, generator=generator)
        inputs["threshold"] = drawn.to(device, dtype).requires_grad_()
    residual, gate = draw(*shape, scale=spread), draw(cells, width)
    inputs |= {"residual": residual} if form in {"residual", "both"} else {}
    return inputs | ({"gate": gate} if form in {"gate", "both"} else {})


def gated(h, residual, gate):
    if gate is not None:
        h = (gate[:, None] if h.ndim == 3 else gate) * h
    return h if residual is None else residual + h


def published(y, dictionary, step_size, threshold, residual=None, gate=None):
    """The formula as white-box transformers compute it: a product with D, a product with its transpose."""
    missed = y - torch.nn.functional.linear(y, dictionary)
    step = step_size * torch.nn.functional.linear(missed, dictionary.mT)
    return gated(torch.relu(y + step - step_size * threshold), residual, gate)


def code(inputs):
    """`h` of float64 inputs, by loops over rows and matrix-vector products."""
    d, eta = inputs["dictionary"], inputs["step_size"]
    rows = inputs["y"].flatten(0, -2)
    h = [(y + eta * (d.T @ (y - d @ y)) - eta * inputs["threshold"]).clamp(min=0) for y in rows]
    return torch.stack(h).view_as(inputs["y"])


def step(implementation="auto"):
    return lambda **inputs: ista_step(**inputs, implementation=implementation)


def away_from_the_corner(inputs):
    """One where rounding can not change the sign of h, and with it the gradient altogether."""
    wide = {name: t.detach() if isinstance(t, torch.Tensor) else t for name, t in in_float64(inputs).items()}
    y, d = wide["y"], wide["dictionary"]
    h = y + wide["step_size"] * ((y - y @ d.T) @ d) - wide["step_size"] * wide["threshold"]
    return (h.abs() > 0.05 * y.abs().max()).to(inputs["y"].device)


def assert_accurate(inputs, implementation="auto"):
    cells, rows, width = inputs["y"].shape[0], inputs["y"][0, ..., 0].numel(), inputs["y"].shape[-1]
    sums = dict.fromkeys(("out0", "out1", "dy"), width) | {"dgate": rows * width, "dthreshold": cells * rows}
    sums |= {"ddictionary": cells * rows * width, "dstep_size": cells * rows * width}
    away = away_from_the_corner(inputs)

    def results(function, inputs):
        def both(**inputs):
            out = function(**inputs)
            return out.detach(), out * away.to(out)

        return with_gradients(both, inputs)

    assert_as_accurate_as_pytorch(
        results(step(implementation), inputs),
        results(published, inputs),
        results(published, in_float64(inputs)),
        summed=sums,
    )


# ------------------------------------------------------------------------------ definition, any device


@FORMS
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("rows", [None, 1, 4])
def test_is_the_published_step_to_machine_precision(device, rows, implementation, form):
    inputs = make_inputs(rows=rows, form=form, dtype=torch.float64, device=device)
    plain = {name: t.detach() for name, t in inputs.items()}
    expected = gated(code(plain), plain.get("residual"), plain.get("gate"))
    torch.testing.assert_close(
        ista_step(**plain, implementation=implementation), expected, rtol=0, atol=1e-14
    )
    got = with_gradients(step(implementation), inputs)
    for name, value in with_gradients(published, inputs).items():
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-13, msg=name)


@FORMS
@pytest.mark.parametrize("learned", [False, True], ids=["floats", "learned"])
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_as_accurate_as_pytorch(device, dtype, implementation, learned, form):
    inputs = make_inputs(6, 20, 48, form=form, learned=learned, dtype=dtype, device=device)
    assert_accurate(inputs, implementation)


@FORMS
@pytest.mark.parametrize("learned", [False, True], ids=["floats", "learned"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_large_cells_go_one_by_one(monkeypatch, dtype, learned, form):
    monkeypatch.setattr(_in_cells, "_OWN_CALLS", 1)
    assert_accurate(make_inputs(6, 20, 48, form=form, learned=learned, dtype=dtype), "reference")


@FORMS
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("rows", [None, 2])
def test_gradcheck(rows, implementation, form):
    inputs = make_inputs(2, rows, 5, form=form, dtype=torch.float64)
    names = list(inputs)

    def function(*tensors):
        return ista_step(**dict(zip(names, tensors, strict=True)), implementation=implementation)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


@pytest.mark.parametrize("step_size", [0.3, torch.tensor(0.3, dtype=torch.float64, requires_grad=True)])
def test_gradient_of_the_operator(step_size):
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.randn(6, 6, dtype=torch.float64, generator=generator).requires_grad_()
    expected = step_size * (dictionary.T - dictionary.T @ dictionary)
    torch.testing.assert_close(ista_operator(dictionary, step_size), expected, rtol=0, atol=1e-14)
    learned = (dictionary, step_size) if isinstance(step_size, torch.Tensor) else (dictionary,)
    assert torch.autograd.gradcheck(lambda d, s=step_size: ista_operator(d, s), learned)


def test_a_formed_operator_gives_the_same(device):
    inputs = make_inputs(learned=False, device=device)
    expected = ista_step(**inputs)
    operator = ista_operator(inputs.pop("dictionary"), STEP_SIZE)
    torch.testing.assert_close(ista_step(**inputs, operator=operator), expected, rtol=0, atol=0)


def test_more_accurate_in_sixteen_bits_than_either_way_with_two_products():
    """All have the same dictionary in bfloat16: what they differ in is what they add to its error."""
    inputs = make_inputs(4, 50, 96, form="plain", learned=False, dtype=torch.bfloat16)
    y, d, eta, price = inputs["y"].detach(), inputs["dictionary"].detach(), 0.1, 0.1
    exact = code({"y": y.double(), "dictionary": d.double(), "step_size": eta, "threshold": price})
    three = torch.relu(y + eta * (y @ d - y @ d.T @ d) - eta * price)
    two = published(y, d, eta, price)
    ours = ista_step(y, d, step_size=eta, threshold=price)
    assert error(ours, exact) < min(error(two, exact), error(three, exact))


@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float64])
def test_counts_zeros(device, dtype, implementation):
    inputs = {
        name: t.detach() if isinstance(t, torch.Tensor) else t
        for name, t in make_inputs(7, 9, 40, dtype=dtype, device=device).items()
    }
    plain = {name: t for name, t in inputs.items() if name not in {"residual", "gate"}}
    zeros = (ista_step(**plain, implementation=implementation) == 0).sum()
    assert 0 < zeros < inputs["y"].numel()
    for arguments in (plain, inputs):
        found = ista_step_with_zeros(**arguments, implementation=implementation)
        assert isinstance(found, IstaOutput)
        assert found.zeros.dtype == torch.int64
        assert found.zeros.shape == ()
        assert not found.zeros.requires_grad
        assert torch.equal(found.zeros, zeros)
        assert torch.equal(found.out, ista_step(**arguments, implementation=implementation))


def test_second_derivative_needs_the_reference():
    inputs = make_inputs(2, None, 4, dtype=torch.float64)
    (first,) = torch.autograd.grad(ista_step(**inputs).sin().sum(), inputs["y"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    out = ista_step(**inputs, implementation="reference")
    (first,) = torch.autograd.grad(out.sin().sum(), inputs["y"], create_graph=True)
    first.sum().backward()
    assert inputs["dictionary"].grad is not None


def test_keeps_nothing_that_no_gradient_needs(monkeypatch):
    kept = []
    forward = ops._forward
    monkeypatch.setattr(ops, "_forward", lambda *args: kept.append(out := forward(*args)) or out)
    inputs = make_inputs()
    ista_step(**inputs)
    with torch.no_grad():
        ista_step(**inputs)
    ista_step(**make_inputs(form="plain"))
    assert [h.numel() for _, h, _ in kept] == [inputs["y"].numel(), 0, 0]


@pytest.mark.parametrize("frozen", ["y", "dictionary", "threshold", "gate", "residual"])
def test_a_frozen_input_gets_no_gradient_and_changes_no_other(device, frozen):
    inputs = make_inputs(device=device)
    expected = with_gradients(step(), inputs)
    got = with_gradients(step(), inputs | {frozen: inputs[frozen].detach()})
    assert got.keys() == expected.keys() - {f"d{frozen}"}
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_pieces_of_one_modulation_tensor(device):
    inputs = make_inputs(device=device)
    whole = torch.cat([inputs["gate"].detach()] * 3, dim=-1)
    strided = inputs | {"gate": whole.chunk(3, dim=-1)[1]}
    torch.testing.assert_close(ista_step(**strided), ista_step(**inputs), rtol=0, atol=0)


def test_any_memory_layout(device):
    inputs = make_inputs(device=device)
    transposed = {
        name: t.detach().mT.contiguous().mT.requires_grad_() if t.ndim > 1 else t
        for name, t in inputs.items()
    }
    assert not transposed["y"].is_contiguous()
    got = with_gradients(step(), transposed)
    for name, expected in with_gradients(step(), inputs).items():
        torch.testing.assert_close(got[name], expected)


@FORMS
@pytest.mark.parametrize("shape", [(0, 3, 8), (0, None, 8), (4, 0, 8)])
def test_nothing_in_nothing_out(device, shape, form):
    inputs = make_inputs(*shape, form=form, device=device)
    for name, value in with_gradients(step(), inputs).items():
        assert value.shape == inputs[name[1:] if name in {f"d{n}" for n in inputs} else "y"].shape
        assert not value.count_nonzero()
    assert ista_step_with_zeros(**inputs).zeros == 0


def test_one_threshold_for_all_columns(device):
    inputs = make_inputs(device=device)
    one = torch.tensor(THRESHOLD, device=device, requires_grad=True)
    got = with_gradients(step(), inputs | {"threshold": one})
    expected = with_gradients(step(), inputs | {"threshold": one.detach().repeat(24).requires_grad_()})
    torch.testing.assert_close(got["out0"], expected["out0"], rtol=0, atol=0)
    torch.testing.assert_close(got["dthreshold"], expected["dthreshold"].sum())
    settings = {"step_size": STEP_SIZE, "threshold": THRESHOLD}
    torch.testing.assert_close(
        ista_step(**inputs | settings), ista_step(**inputs | settings | {"threshold": one})
    )


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
    inputs = {name: t.detach() for name, t in make_inputs(device=device).items()}
    y, b, level = inputs["y"], inputs["dictionary"], inputs["threshold"]
    for rows in (y, y[:, 0].contiguous()):
        for residual, gate in ((rows, inputs["gate"]), (rows, None), (None, None)):
            for keep, count, price in ((True, False, level), (False, True, None)):
                yield ops._forward, (rows, b, price, 0.1, residual, gate, keep, count)
            for need in (True, False):
                yield ops._backward, (rows, rows.relu(), rows, b, gate, need, need, need)


def test_registration(device):
    for op, arguments in operator_calls(device):
        torch.library.opcheck(op, arguments)


@FORMS
@pytest.mark.parametrize("rows", [None, 3])
def test_compiles_to_one_graph_of_any_size(device, rows, form):
    torch.compiler.reset()
    compiled = torch.compile(ista_step, fullgraph=True, dynamic=True)
    for cells in (5, 6):
        inputs = make_inputs(cells, rows, form=form, device=device)
        eager = with_gradients(ista_step, inputs)
        for name, value in with_gradients(compiled, inputs).items():
            torch.testing.assert_close(value, eager[name], msg=name)


def test_counting_compiles(device):
    torch.compiler.reset()
    inputs = make_inputs(learned=False, device=device)
    compiled = torch.compile(ista_step_with_zeros, fullgraph=True, dynamic=True)(**inputs)
    assert torch.equal(compiled.zeros, ista_step_with_zeros(**inputs).zeros)


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"y": [[1.0]]}, TypeError, r"y is a list; pass a torch\.Tensor"),
        ({"y": torch.zeros(3, 24).long()}, TypeError, r"y has dtype torch\.int64; cast it to float32"),
        ({"y": torch.zeros(24)}, ValueError, r"y has shape \(24,\); reshape it to \[C, R, N\] or \[C, N\]"),
        ({"y": torch.zeros(3, 0)}, ValueError, r"y has shape \(3, 0\); give it rows of N > 0"),
        (
            {"dictionary": torch.zeros(24, 96)},
            ValueError,
            r"dictionary has shape \(24, 96\).*\(24, 24\), \[N, N\]",
        ),
        ({"dictionary": None}, ValueError, "exactly one of dictionary and operator"),
        ({"operator": torch.zeros(24, 24)}, ValueError, "exactly one of dictionary and operator"),
        ({"dictionary": torch.zeros(24, 24).half()}, TypeError, r"cast with dictionary\.to\(y\.dtype\)"),
        ({"residual": torch.zeros(5, 24)}, ValueError, r"residual has shape \(5, 24\).*that of y"),
        ({"gate": torch.zeros(5, 3, 24)}, ValueError, r"gate has shape \(5, 3, 24\).*\[C, N\]"),
        ({"gate": torch.zeros(5, 24, device="meta")}, ValueError, r"gate is on meta and y is on cpu"),
        ({"step_size": 0.0}, ValueError, r"step_size is 0\.0; pass a positive number"),
        ({"step_size": torch.ones(2)}, ValueError, r"step_size has shape \(2,\); pass a scalar"),
        ({"threshold": -1.0}, ValueError, r"threshold is -1\.0; .* can not be negative"),
        ({"threshold": float("nan")}, ValueError, "threshold is nan"),
        ({"threshold": torch.ones(7)}, ValueError, r"threshold has shape \(7,\); pass a scalar or \[24\]"),
        ({"threshold": torch.ones(24).long()}, TypeError, "threshold has dtype torch.int64"),
        ({"implementation": "cuda"}, ValueError, "choose one of 'auto', 'reference', 'triton'"),
    ],
)
def test_refuses_and_says_what_to_do(changes, kind, message):
    with pytest.raises(kind, match=message):
        ista_step(**make_inputs(learned=False) | changes)


def test_operator_refuses_a_dictionary_that_is_not_square():
    with pytest.raises(ValueError, match=r"dictionary has shape \(4, 8\); give it a square one"):
        ista_operator(torch.zeros(4, 8), 0.1)


def test_a_named_implementation_never_falls_back(monkeypatch):
    monkeypatch.setattr(_dispatch, "INTERPRET", False)
    with pytest.raises(ValueError, match="implementation='triton' can not be had"):
        ista_step(**make_inputs(), implementation="triton")


# ------------------------------------------------------------------------------ tiles


@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 200, 5000, 10**8])
@pytest.mark.parametrize("cells", [1, 5, 10**5])
def test_schedule_deals_every_row_once(cells, rows, element_size):
    plan = tiles.schedule(cells, rows, 768, tiles.choose_strip(element_size))
    assert plan.slices * plan.rows >= rows
    assert (plan.slices - 1) * plan.rows < max(rows, 1)
    # the second dimension of a CUDA grid
    assert plan.slices < 65_536


# ------------------------------------------------------------------------------ the kernels themselves


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernels, whose outputs start as NaN."""
    from scdd.kernels.ista import gradient, matmul, triton

    for module in (gradient, matmul, triton):
        poison(module)
    return kernel_device


# rows that end in, at and after a tile of 128; widths that fill no tile, half a step of 64, and several tiles
SHAPES = [
    (1, None, 1), (1, 1, 7), (130, None, 40), (5, 3, 24), (2, 63, 64), (2, 64, 96), (3, 65, 130),
    (1, 130, 200), (16, 17, 33), (40, 5, 65), (2, 1, 256), (1, 130, 260),
]  # fmt: skip


@pytest.mark.parametrize("form", ["plain", "both"])
@pytest.mark.parametrize(("cells", "rows", "width"), SHAPES)
def test_kernel(poisoned, cells, rows, width, form):
    # of a few numbers only, the rounding of one sum is all luck
    inputs = make_inputs(cells, rows, width, form=form, learned=width > 7, device=poisoned)
    assert_accurate(inputs, "triton")


@pytest.mark.parametrize("form", ["residual", "gate"])
def test_kernel_in_other_forms(poisoned, form):
    assert_accurate(make_inputs(3, 65, 40, form=form, learned=False, device=poisoned), "triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("cells", "rows", "width"), [(130, None, 40), (2, 65, 96), (1, 30, 200)])
def test_kernel_in_sixteen_bits(poisoned, cells, rows, width, dtype):
    assert_accurate(make_inputs(cells, rows, width, dtype=dtype, device=poisoned), "triton")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("spread", [1e3, 1e-4])
def test_kernel_on_extreme_values(poisoned, spread, dtype):
    inputs = make_inputs(3, 20, 64, dtype=dtype, device=poisoned, spread=spread, learned=False)
    # a learned scale of such gradients would overflow float16
    assert_accurate(inputs | {"threshold": THRESHOLD * spread}, "triton")


def test_kernel_counts_zeros_exactly(poisoned):
    """Whole numbers and no dictionary: which are zero is known, and rows and columns past the end are not."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 1), (130, 7), (3, 65, 130), (0, 8)):
        y = torch.randint(-2, 4, shape, generator=generator).float().to(poisoned)
        nothing = torch.zeros(shape[-1], shape[-1], device=poisoned)
        found = ista_step_with_zeros(y, nothing, step_size=0.5, threshold=2.0, implementation="triton")
        assert found.zeros == (y <= 1).sum()
        assert torch.equal(found.out, (y - 1).relu())


def test_kernel_keeps_rows_apart_and_passes_nan_on(poisoned):
    clean = make_inputs(5, 40, 96, device=poisoned)
    dirty = {name: t.detach().clone() for name, t in clean.items()}
    for name in ("y", "residual", "gate"):
        dirty[name][2] = torch.nan
    for tensor in dirty.values():
        tensor.requires_grad_()
    others = torch.tensor([0, 1, 3, 4], device=poisoned)
    expected = with_gradients(step("triton"), clean)
    got = with_gradients(step("triton"), dirty)
    for name in ("out0", "dy", "dresidual", "dgate"):
        torch.testing.assert_close(got[name][others], expected[name][others], rtol=0, atol=0)
    assert got["out0"][2].isnan().all()
    alone = dirty["y"].detach()
    settings = {"step_size": STEP_SIZE, "threshold": 5.0, "implementation": "triton"}
    # a rectifier that compares the other way round would show a model that diverged as perfectly sparse
    assert ista_step(alone, dirty["dictionary"].detach(), **settings)[2].isnan().all()


def test_kernel_gives_the_same_bits_twice(poisoned):
    inputs = make_inputs(3, 70, 96, device=poisoned)
    first = with_gradients(step("triton"), inputs)
    for name, value in with_gradients(step("triton"), inputs).items():
        assert torch.equal(value, first[name]), name


def test_kernel_does_not_mind_the_order_or_number_of_cells(poisoned):
    inputs = make_inputs(7, 30, 64, learned=False, device=poisoned)
    whole = with_gradients(step("triton"), inputs)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4], device=poisoned)
    per_cell = ("y", "residual", "gate")
    shuffled = {n: t[order].detach().requires_grad_() if n in per_cell else t for n, t in inputs.items()}
    torch.testing.assert_close(ista_step(**shuffled, implementation="triton"), whole["out0"][order])
    for part in (slice(0, 2), slice(2, 7)):
        cut = {name: t[part] if name in per_cell else t for name, t in inputs.items()}
        torch.testing.assert_close(ista_step(**cut, implementation="triton"), whole["out0"][part])


@FORMS
@pytest.mark.parametrize("shape", [(0, 3, 8), (0, None, 8), (4, 0, 8)])
def test_kernel_on_nothing(poisoned, shape, form):
    for value in with_gradients(step("triton"), make_inputs(*shape, form=form, device=poisoned)).values():
        assert not value.count_nonzero()


def test_launcher_sees_rows_of_one_cell_each_as_one_strip(poisoned):
    """[C, 1, N] and [C, N] are the same numbers and must be the same work, not a program a row."""
    inputs = make_inputs(20, 1, 40, device=poisoned)
    flat = {
        name: t.detach().flatten(0, 1).requires_grad_() if t.ndim == 3 else t for name, t in inputs.items()
    }
    expected = with_gradients(step("triton"), flat)
    for name, value in with_gradients(step("triton"), inputs).items():
        torch.testing.assert_close(value.flatten(), expected[name].flatten(), rtol=0, atol=0)


def test_needs_gradient():
    tensor = torch.zeros(1, requires_grad=True)
    assert api.needs_gradient(None, tensor)
    assert not api.needs_gradient(None, tensor.detach())
    with torch.no_grad():
        assert not api.needs_gradient(tensor)
