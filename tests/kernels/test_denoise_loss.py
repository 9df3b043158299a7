"""`denoise_loss`: definition, gradients, noise, registration, errors and kernels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.accuracy import DTYPES, assert_as_accurate_as_pytorch, in_float64, with_gradients

from scdd.kernels import _dispatch
from scdd.kernels.denoise_loss import DenoiseLoss, denoise_loss, ops, tiles
from scdd.kernels.noise_patch_embed import patch_noise

DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
PREDICTION = pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
SEED = 2**35 + 17
LAYER = ("h", "shift", "scale", "weight", "bias")


def make_inputs(
    cells=3, genes=23, patch=4, width=24, *, prediction="eps", weighted=True, dtype=torch.float32,
    device="cpu", offset=0.0, spread=1.0, given=True,
):  # fmt: skip
    """Inputs by name; `offset` and `spread` are those of h, `given` says whether the noise is."""
    generator = torch.Generator().manual_seed(cells * 1009 + genes * 31 + patch)
    patches = -(-genes // patch)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    layer = {
        "h": offset + spread * draw(cells, patches, width),
        "shift": 0.5 * draw(cells, width),
        "scale": 0.5 * draw(cells, width),
        "weight": draw(patch, width) / width**0.5,
        "bias": draw(patch),
    }
    inputs = {name: value.to(device, dtype).requires_grad_() for name, value in layer.items()}
    alpha_bar = torch.rand(cells, generator=generator)
    inputs |= {
        "x0": draw(cells, genes).to(device),
        "signal": alpha_bar.sqrt().to(device),
        "noise": (1 - alpha_bar).sqrt().to(device),
        "prediction": prediction,
    }
    if weighted:
        inputs["cell_weight"] = torch.rand(cells, generator=generator).to(device).requires_grad_()
    noise = {"eps": patch_noise(SEED, cells, genes, patch=patch).to(device)} if given else {"seed": SEED}
    return inputs | noise


def naive(
    h, shift, scale, weight, bias, x0, signal, noise, prediction, cell_weight=None, eps=None, norm_eps=1e-6
):
    """What users write: final layer in its dtype, loss in at least float32."""
    y = F.layer_norm(h, h.shape[-1:], eps=norm_eps) * (1 + scale[:, None]) + shift[:, None]
    predicted = F.linear(y, weight, bias).flatten(1)[:, : x0.shape[1]]
    predicted = predicted.to(torch.promote_types(h.dtype, torch.float32))
    signal, noise = signal[:, None], noise[:, None]
    target = {"eps": eps, "v": signal * eps - noise * x0, "x0": x0}[prediction]
    per_cell = (predicted - target).square().mean(1)
    weights = torch.ones_like(per_cell) if cell_weight is None else cell_weight
    return (per_cell * weights).mean()


def loss_of(**inputs):
    return denoise_loss(**inputs).loss


def check(inputs, implementation="auto"):
    """Hold the loss and its gradients to the accuracy of PyTorch."""

    def ours(**inputs):
        return denoise_loss(**inputs, implementation=implementation).loss

    got, theirs = with_gradients(ours, inputs), with_gradients(naive, inputs)
    exact = with_gradients(naive, in_float64(inputs))
    check_means(inputs, got, theirs, exact)
    cells, patches, width = inputs["h"].shape
    rows = cells * patches
    # a sum of terms of either sign: its rounding is that of the terms, which are larger than it
    summed = {"dh": 4 * width, "dshift": 4 * patches, "dscale": 4 * patches}
    assert_as_accurate_as_pytorch(
        got, theirs, exact, summed=summed | {"dweight": 16 * rows, "dbias": 16 * rows}
    )


def check_means(inputs, got, theirs, exact):
    """Hold what is the mean of many errors to the rounding of each, as PyTorch may be right by luck."""
    dtype, genes = inputs["h"].dtype, inputs["x0"].shape[1]
    # the interpreter truncates to bfloat16, so that errors have one sign
    alike = 1 if _dispatch.INTERPRET and dtype == torch.bfloat16 else genes**0.5
    for name in ("out0", "dcell_weight"):
        if name in got:
            ours, pytorchs, truth = (results.pop(name).cpu().double() for results in (got, theirs, exact))
            rounding = 4 * torch.finfo(dtype).eps / alike + 2 * torch.finfo(torch.float32).eps
            limit = 2 * (pytorchs - truth).abs() + rounding * truth.abs()
            assert ((ours - truth).abs() <= limit).all(), (name, ours, truth, limit)


# ------------------------------------------------------------------------------ definition, any device


@DTYPE
@PREDICTION
@WEIGHTED
@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_matches_definition(device, implementation, weighted, prediction, dtype):
    inputs = make_inputs(prediction=prediction, weighted=weighted, dtype=dtype, device=device)
    check(inputs, implementation)


@pytest.mark.parametrize(("genes", "patch"), [(24, 4), (1, 4), (20, 10), (7, 1)])
def test_any_patch(device, genes, patch):
    check(make_inputs(3, genes, patch, device=device))


@PREDICTION
@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_gradcheck(implementation, prediction):
    inputs = make_inputs(2, 7, 3, 5, prediction=prediction, dtype=torch.float64)
    inputs["cell_weight"] = inputs["cell_weight"].detach().double().requires_grad_()
    names = (*LAYER, "cell_weight")

    def function(*tensors):
        changed = inputs | dict(zip(names, tensors, strict=True))
        return denoise_loss(**changed, implementation=implementation).loss

    assert torch.autograd.gradcheck(function, tuple(inputs[name] for name in names))


def test_loss_is_one_for_a_network_that_says_nothing():
    """The start of training with a final layer of zeros: the loss is the mean square of the noise."""
    inputs = make_inputs(64, 2000, 10, 16, weighted=False, given=False)
    for name in ("weight", "bias"):
        inputs[name] = torch.zeros_like(inputs[name])
    loss, cells = denoise_loss(**inputs)
    assert abs(loss - 1) < 5 * (2 / 128_000) ** 0.5
    torch.testing.assert_close(loss, patch_noise(SEED, 64, 2000, patch=10).square().mean())
    torch.testing.assert_close(cells.mean(), loss)


def test_cells_are_unweighted_and_give_no_gradient(device):
    inputs = make_inputs(device=device)
    loss, cells = denoise_loss(**inputs)
    assert isinstance(denoise_loss(**inputs), DenoiseLoss)
    assert not cells.requires_grad
    torch.testing.assert_close((cells * inputs["cell_weight"]).mean(), loss)
    assert not denoise_loss(**inputs, implementation="reference").cells.requires_grad


@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_genes_that_fill_up_the_last_patch_count_nowhere(device, implementation):
    """Those genes are the last columns of the projection, for the last token alone."""
    inputs = make_inputs(2, 5, 4, device=device)
    changed = inputs | {"h": inputs["h"].detach().clone()}
    loss, _ = denoise_loss(**inputs, implementation=implementation)
    dh, dbias = torch.autograd.grad(loss, (inputs["h"], inputs["bias"]))
    # one token of four genes, and one of one gene
    only = inputs | {"bias": inputs["bias"].detach() + torch.tensor([0.0, 1.0, 1.0, 1.0], device=device)}
    moved = denoise_loss(**only, implementation=implementation).cells
    first = {n: t[:, :4] if n in {"x0", "eps"} else t for n, t in only.items()} | {"h": inputs["h"][:, :1]}
    base = {n: t[:, :4] if n in {"x0", "eps"} else t for n, t in inputs.items()} | {"h": inputs["h"][:, :1]}
    difference = denoise_loss(**first).cells - denoise_loss(**base).cells
    unmoved = denoise_loss(**inputs, implementation=implementation).cells
    torch.testing.assert_close(moved - unmoved, difference * 4 / 5, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(dh).all()
    assert torch.isfinite(dbias).all()
    assert changed["h"].shape == dh.shape


def test_gradient_scales_with_that_of_the_loss(device):
    inputs = make_inputs(device=device)
    first = torch.autograd.grad(loss_of(**inputs), inputs["h"])[0]
    second = torch.autograd.grad(1024 * loss_of(**inputs), inputs["h"])[0]
    torch.testing.assert_close(second, 1024 * first)


def test_float16_gradients_survive_many_genes():
    """The gradient of one gene of many is below float16; scaled as AMP scales the loss it must be there."""
    inputs = make_inputs(64, 400, 10, 32, dtype=torch.float16)
    (got,) = torch.autograd.grad(65536.0 * loss_of(**inputs), inputs["h"])
    exact = in_float64(inputs)
    (expected,) = torch.autograd.grad(65536.0 * naive(**exact), exact["h"])
    torch.testing.assert_close(got.double(), expected, rtol=0.02, atol=0.02 * expected.abs().mean().item())


def test_second_derivative_needs_the_reference():
    inputs = make_inputs(2, 6, 3, 4, dtype=torch.float64)
    (first,) = torch.autograd.grad(loss_of(**inputs).sin(), inputs["h"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    loss = denoise_loss(**inputs, implementation="reference").loss
    (first,) = torch.autograd.grad(loss.sin(), inputs["h"], create_graph=True)
    first.square().sum().backward()


@PREDICTION
def test_a_seed_is_its_noise(device, prediction):
    given = make_inputs(prediction=prediction, device=device)
    drawn = make_inputs(prediction=prediction, device=device, given=False)
    expected = with_gradients(loss_of, given)
    for seed in (SEED, torch.tensor(SEED, device=device)):
        for name, value in with_gradients(loss_of, drawn | {"seed": seed}).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_clean_cells_need_no_noise(device):
    inputs = make_inputs(prediction="x0", device=device)
    expected = denoise_loss(**inputs).loss
    del inputs["eps"]
    torch.testing.assert_close(denoise_loss(**inputs).loss, expected)


def test_any_memory_layout(device):
    inputs = make_inputs(device=device)
    strided = {
        n: t.detach().mT.contiguous().mT.requires_grad_(t.requires_grad)
        if isinstance(t, torch.Tensor) and t.ndim > 1
        else t
        for n, t in inputs.items()
    }
    assert not strided["h"].is_contiguous()
    expected = with_gradients(loss_of, inputs)
    for name, value in with_gradients(loss_of, strided).items():
        torch.testing.assert_close(value, expected[name])


# ------------------------------------------------------------------------------ registration


def operator_calls(device):
    """Each registered operator with arguments that it would get."""
    for prediction in ("eps", "v", "x0"):
        for given in (True, False):
            inputs = make_inputs(device=device, prediction=prediction, given=given, weighted=given)
            tensors = {n: t.detach() if isinstance(t, torch.Tensor) else t for n, t in inputs.items()}
            seed = None if given else torch.tensor(SEED, device=device)
            order = (*LAYER, "x0", "signal", "noise")
            arguments = (*(tensors[n] for n in order), tensors.get("cell_weight"), seed, tensors.get("eps"))
            yield ops._forward, (*arguments, prediction, 1e-6)
    loss, _, residual, statistics = ops._forward(*arguments, prediction, 1e-6)
    yield ops._backward, (loss, *(tensors[n] for n in LAYER[:4]), residual, statistics, 23)


def test_registration(device):
    for op, arguments in operator_calls(device):
        torch.library.opcheck(op, arguments)


@WEIGHTED
def test_compiles_to_one_graph_of_any_size(device, weighted):
    torch.compiler.reset()
    compiled = torch.compile(loss_of, fullgraph=True, dynamic=True)
    for cells in (5, 6):
        inputs = make_inputs(cells, device=device, given=False, weighted=weighted)
        eager = with_gradients(loss_of, inputs)
        for name, value in with_gradients(compiled, inputs).items():
            torch.testing.assert_close(value, eager[name])


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"h": [1.0]}, TypeError, "h is a list"),
        ({"h": torch.ones(3, 24)}, ValueError, r"h has shape \(3, 24\); reshape it to \[B, N, D\]"),
        ({"h": torch.ones(3, 6, 0)}, ValueError, "give it channels"),
        ({"shift": torch.ones(3, 23)}, ValueError, r"shift has shape \(3, 23\).*\(3, 24\), \[B, D\]"),
        ({"scale": torch.ones(3, 24).half()}, TypeError, "scale has dtype torch.float16 and h has"),
        ({"weight": torch.ones(4, 23)}, ValueError, r"weight has shape \(4, 23\).*\(4, 24\), \[P, D\]"),
        ({"weight": torch.ones(0, 24)}, ValueError, "weight has no genes"),
        ({"bias": torch.ones(5)}, ValueError, r"bias has shape \(5,\).*\(4,\), \[P\]"),
        ({"x0": torch.ones(3, 25)}, ValueError, r"x0 has shape \(3, 25\); h has 3 cells of 6 patches of 4"),
        ({"x0": torch.ones(3)}, ValueError, r"x0 has shape \(3,\); reshape it"),
        ({"x0": torch.ones(3, 23, requires_grad=True)}, ValueError, r"x0 wants a gradient.*x0\.detach"),
        ({"signal": torch.ones(4)}, ValueError, r"signal has shape \(4,\).*\(3,\), \[B\]"),
        ({"noise": torch.ones(3, dtype=torch.int64)}, TypeError, r"noise has dtype torch\.int64"),
        ({"cell_weight": torch.ones(3, 1)}, ValueError, r"cell_weight has shape \(3, 1\)"),
        ({"cell_weight": torch.ones(3).to("meta")}, ValueError, "cell_weight is on meta and h is on cpu"),
        ({"eps": torch.ones(3, 24)}, ValueError, r"eps has shape \(3, 24\).*\(3, 23\), \[B, G\]"),
        ({"seed": 3}, ValueError, "give either seed or eps"),
        ({"eps": None}, ValueError, "give either seed or eps"),
        ({"norm_eps": -1.0}, ValueError, r"norm_eps is -1\.0"),
        ({"prediction": "score"}, ValueError, "prediction is 'score'; choose one of 'eps', 'v', 'x0'"),
        ({"implementation": "cuda"}, ValueError, "implementation is 'cuda'; choose one of"),
    ],
)
def test_refuses_and_says_what_to_do(changes, kind, message):
    with pytest.raises(kind, match=message):
        denoise_loss(**make_inputs() | changes)


def test_a_patch_too_large_for_the_kernels(monkeypatch):
    monkeypatch.setattr(_dispatch, "TRITON_INSTALLED", True)
    monkeypatch.setattr(_dispatch, "INTERPRET", True)
    inputs = make_inputs(2, 130, tiles.MAX_PATCH + 1)
    with pytest.raises(ValueError, match="a patch has 17 genes and the kernels take at most 16"):
        denoise_loss(**inputs, implementation="triton")
    check(inputs, implementation="reference")


@pytest.mark.parametrize("cells", [1, 7, 512, 10**6])
def test_schedule_deals_every_cell_once(cells):
    plan = tiles.schedule(cells, 768, tiles.choose(768, 2, backward=True))
    assert (plan.slices - 1) * plan.cells < cells <= plan.slices * plan.cells
    assert plan.slices < 65_536


# ------------------------------------------------------------------------------ the kernels themselves


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernels, whose outputs start as NaN."""
    from scdd.kernels.denoise_loss import triton as kernels

    poison(kernels)
    return kernel_device


SHAPES = [
    # cells, genes, patch, width
    (1, 1, 1, 3),
    (1, 130, 2, 24),
    (2, 40, 10, 96),
    (9, 23, 10, 16),
    (3, 645, 10, 40),
    (1, 63, 15, 200),
    (2, 100, 16, 33),
    (5, 15, 5, 130),
    (2, 1040, 8, 72),
]


@PREDICTION
@pytest.mark.parametrize(("cells", "genes", "patch", "width"), SHAPES)
def test_kernel(poisoned, cells, genes, patch, width, prediction):
    inputs = make_inputs(cells, genes, patch, width, device=poisoned, prediction=prediction)
    check(inputs, implementation="triton")


@WEIGHTED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("cells", "genes", "patch", "width"), [(9, 23, 10, 16), (2, 640, 8, 136)])
def test_kernel_in_sixteen_bits(poisoned, cells, genes, patch, width, dtype, weighted):
    inputs = make_inputs(cells, genes, patch, width, dtype=dtype, device=poisoned, weighted=weighted)
    check(inputs, implementation="triton")


@PREDICTION
def test_kernel_draws_the_noise(poisoned, prediction):
    given = make_inputs(5, 203, 10, 24, device=poisoned, prediction=prediction)
    drawn = make_inputs(5, 203, 10, 24, device=poisoned, prediction=prediction, given=False)
    expected = with_gradients(loss_of, given)
    for name, value in with_gradients(loss_of, drawn).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@DTYPE
@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1e4), (1e4, 1.0), (0.0, 1e-4)])
def test_kernel_on_extreme_values(poisoned, offset, spread, dtype):
    inputs = make_inputs(2, 23, 4, 96, dtype=dtype, device=poisoned, offset=offset, spread=spread)
    check(inputs, implementation="triton")


@pytest.mark.parametrize("value", [0.0, 1e4 / 3, -12345.678])
def test_kernel_on_constant_rows(poisoned, value):
    """The mean of equal numbers is that number, or a rounding error is blown up by 1 / sqrt(norm_eps)."""
    inputs = make_inputs(2, 23, 4, 200, device=poisoned)
    constant = inputs | {"h": torch.full_like(inputs["h"], value)}
    zero = inputs | {"h": torch.zeros_like(inputs["h"])}
    torch.testing.assert_close(denoise_loss(**constant).loss, denoise_loss(**zero).loss)


def test_kernel_of_several_cells(poisoned, monkeypatch):
    monkeypatch.setattr(tiles, "_PROGRAMS", 2)
    check(make_inputs(7, 23, 4, device=poisoned), implementation="triton")


def test_kernel_keeps_cells_apart(poisoned):
    """NaN in the tokens and the target of one cell stays in what is its own."""
    clean = make_inputs(5, 23, 4, device=poisoned)
    dirty = {n: t.detach().clone() if isinstance(t, torch.Tensor) else t for n, t in clean.items()}
    for name in ("h", "shift", "scale", "eps"):
        dirty[name][2] = torch.nan
    for name in LAYER:
        dirty[name].requires_grad_()
    others = torch.tensor([0, 1, 3, 4], device=poisoned)
    expected = denoise_loss(**clean)
    got = denoise_loss(**dirty)
    torch.testing.assert_close(got.cells[others], expected.cells[others], rtol=0, atol=0)
    gradients = torch.autograd.grad(expected.loss, [clean[n] for n in ("h", "shift", "scale")])
    for ours, clean_one in zip(
        torch.autograd.grad(got.loss, [dirty[n] for n in ("h", "shift", "scale")]), gradients, strict=True
    ):
        torch.testing.assert_close(ours[others], clean_one[others], rtol=0, atol=0)


def test_kernel_gives_the_same_bits_twice(poisoned):
    inputs = make_inputs(5, 645, 10, device=poisoned, given=False)
    first = with_gradients(loss_of, inputs)
    for name, value in with_gradients(loss_of, inputs).items():
        assert torch.equal(value, first[name]), name


def test_kernel_on_no_cells(poisoned):
    inputs = make_inputs(0, 23, 4, device=poisoned)
    loss, cells = denoise_loss(**inputs)
    assert loss.isnan()
    assert cells.shape == (0,)
