"""`noise_patch_embed`: definition, gradients, noise, registration, errors and kernels."""

from __future__ import annotations

import pytest
import torch
from support.accuracy import DTYPES, assert_as_accurate_as_pytorch, in_float64, with_gradients

from scdd.kernels import _dispatch
from scdd.kernels.noise_patch_embed import (
    NoisedTokens,
    noise_patch_embed,
    noise_patch_embed_with_input,
    ops,
    patch_noise,
    tiles,
)

DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
NOISE = pytest.mark.parametrize("noise", ["drawn", "given"])
SEED = 2**35 + 17


def make_inputs(
    cells=5, genes=23, patch=4, width=24, *, dtype=torch.float32, device="cpu", spread=1.0, eps=True, x0=True
):
    """Inputs by name; `x0` says whether it wants a gradient, `eps` whether the noise is given."""
    generator = torch.Generator().manual_seed(cells * 1009 + genes * 31 + patch)
    patches = -(-genes // patch)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    alpha_bar = torch.rand(cells, generator=generator)
    inputs = {
        "x0": (spread * draw(cells, genes)).to(device, dtype).requires_grad_(x0),
        "signal": alpha_bar.sqrt().to(device),
        "noise": (1 - alpha_bar).sqrt().to(device),
        "weight": (draw(width, patch) / patch**0.5).to(device, dtype).requires_grad_(),
        "bias": draw(width).to(device, dtype).requires_grad_(),
        "position": draw(patches, width).to(device, dtype).requires_grad_(),
    }
    drawn = patch_noise(SEED, cells, genes, patch=patch).to(device)
    return inputs | ({"eps": drawn} if eps else {"seed": SEED})


def naive(x0, signal, noise, weight, bias, position, eps=None, seed=None, **_):
    """What users write, gene by gene where it matters: every patch is cut out by hand."""
    if eps is None:
        eps = patch_noise(seed, *x0.shape, patch=weight.shape[1], device=x0.device)
    dtype = weight.dtype
    noised = signal.to(dtype)[:, None] * x0.to(dtype) + noise.to(dtype)[:, None] * eps.to(dtype)
    tokens = []
    for n in range(len(position)):
        genes = noised[:, n * weight.shape[1] : (n + 1) * weight.shape[1]]
        tokens.append(genes @ weight[:, : genes.shape[1]].T + bias + position[n])
    return torch.stack(tokens, 1), noised


def check(inputs, **kwargs):
    """Hold tokens, noised cells and gradients to the accuracy of PyTorch."""

    def ours(**inputs):
        return noise_patch_embed_with_input(**inputs, **kwargs)

    cells = len(inputs["x0"])
    patches = len(inputs["position"])
    assert_as_accurate_as_pytorch(
        with_gradients(ours, inputs),
        with_gradients(naive, inputs),
        with_gradients(naive, in_float64(inputs)),
        summed={"dweight": cells * patches, "dbias": cells * patches, "dposition": cells, "dx0": 24},
    )


# ------------------------------------------------------------------------------ definition, any device


@DTYPE
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize(("genes", "patch"), [(24, 4), (23, 4), (1, 4), (20, 10), (7, 1)])
def test_matches_definition(device, genes, patch, implementation, dtype):
    check(make_inputs(5, genes, patch, dtype=dtype, device=device), implementation=implementation)


@NOISE
@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_gradcheck(implementation, noise):
    inputs = make_inputs(2, 7, 3, 5, dtype=torch.float64, eps=noise == "given")
    names = ("x0", "weight", "bias", "position")

    def function(*tensors):
        changed = inputs | dict(zip(names, tensors, strict=True))
        return tuple(noise_patch_embed_with_input(**changed, implementation=implementation))

    assert torch.autograd.gradcheck(function, tuple(inputs[name] for name in names))


def test_gradient_flows_through_either_result_alone(device):
    inputs = make_inputs(device=device)
    ours, theirs = noise_patch_embed_with_input(**inputs), naive(**inputs)
    for got, expected in zip(ours, theirs, strict=True):
        (first,) = torch.autograd.grad(got.sin().sum(), inputs["x0"], retain_graph=True)
        (second,) = torch.autograd.grad(expected.sin().sum(), inputs["x0"], retain_graph=True)
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("wanted", ["weight", "bias", "position", "x0"])
def test_only_what_wants_a_gradient_gets_one(device, wanted):
    inputs = make_inputs(device=device)
    expected = with_gradients(noise_patch_embed, inputs)[f"d{wanted}"]
    for name in ("x0", "weight", "bias", "position"):
        inputs[name] = inputs[name].detach().requires_grad_(name == wanted)
    noise_patch_embed(**inputs).backward(with_cotangent(inputs))
    torch.testing.assert_close(inputs[wanted].grad, expected)
    assert sum(t.grad is not None for t in inputs.values() if isinstance(t, torch.Tensor)) == 1


def with_cotangent(inputs):
    """Return the cotangent that `with_gradients` draws."""
    shape = (len(inputs["x0"]), *inputs["position"].shape)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(7)).bfloat16()
    return drawn.to(inputs["x0"].device, inputs["weight"].dtype)


def test_dtypes_of_cells_and_weight_may_differ(device):
    inputs = make_inputs(dtype=torch.float32, device=device)
    half = {n: inputs[n].detach().bfloat16().requires_grad_() for n in ("weight", "bias", "position")}
    tokens, noised = noise_patch_embed_with_input(**inputs | half)
    assert tokens.dtype == noised.dtype == torch.bfloat16
    tokens.float().square().sum().backward()
    assert inputs["x0"].grad.dtype == torch.float32
    assert half["weight"].grad.dtype == torch.bfloat16


def test_returns_a_named_pair(device):
    inputs = make_inputs(device=device)
    out = noise_patch_embed_with_input(**inputs)
    assert isinstance(out, NoisedTokens)
    torch.testing.assert_close(out.tokens, noise_patch_embed(**inputs), rtol=0, atol=0)


def test_second_derivative_needs_the_reference():
    inputs = make_inputs(2, 6, 3, 4, dtype=torch.float64)
    (first,) = torch.autograd.grad(
        noise_patch_embed(**inputs).sin().sum(), inputs["weight"], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    tokens = noise_patch_embed(**inputs, implementation="reference")
    (first,) = torch.autograd.grad(tokens.sin().sum(), inputs["weight"], create_graph=True)
    first.sum().backward()


# ------------------------------------------------------------------------------ noise


def test_a_seed_is_its_noise(device):
    given, drawn = make_inputs(device=device), make_inputs(device=device, eps=False)
    for seed in (SEED, torch.tensor(SEED, device=device), torch.tensor([SEED], device=device)):
        for name, value in with_gradients(noise_patch_embed_with_input, drawn | {"seed": seed}).items():
            expected = with_gradients(noise_patch_embed_with_input, given)[name]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


def test_a_seed_that_changes_in_place_changes_the_noise(device):
    inputs = make_inputs(device=device, eps=False)
    seed = torch.tensor(SEED - 1, device=device)
    noise_patch_embed_with_input(**inputs | {"seed": seed})
    seed += 1
    got = noise_patch_embed_with_input(**inputs | {"seed": seed})
    torch.testing.assert_close(got, noise_patch_embed_with_input(**inputs), rtol=0, atol=0)


def test_noise_of_a_cell_does_not_depend_on_those_that_follow():
    torch.testing.assert_close(patch_noise(3, 2, 23, patch=4), patch_noise(3, 5, 23, patch=4)[:2])


def test_noise_of_no_two_genes_is_equal():
    noise = patch_noise(3, 40, 1003, patch=10)
    # of 40,120 numbers a few pairs collide in float32 by chance; counters used twice would give thousands
    assert noise.unique().numel() > 40_000
    assert abs(noise.std() - 1) < 0.02


# ------------------------------------------------------------------------------ registration


def operator_calls(device):
    """Each registered operator with arguments that it would get."""
    for eps in (True, False):
        inputs = {
            name: t.detach() if isinstance(t, torch.Tensor) else t
            for name, t in make_inputs(device=device, eps=eps).items()
        }
        noise = (None, inputs["eps"]) if eps else (torch.tensor(SEED, device=device), None)
        tensors = [inputs[n] for n in ("x0", "signal", "noise", "weight", "bias", "position")]
        tokens, noised = ops._forward(*tensors, *noise)
        yield ops._forward, (*tensors, *noise)
        for with_position in (True, False):
            yield ops._backward, (tokens, noised, inputs["weight"], with_position)
        yield ops._input_gradient, (tokens, inputs["signal"], inputs["weight"], noised.shape[1])


def test_registration(device):
    for op, arguments in operator_calls(device):
        torch.library.opcheck(op, arguments)


@NOISE
def test_compiles_to_one_graph_of_any_size(device, noise):
    torch.compiler.reset()
    compiled = torch.compile(noise_patch_embed_with_input, fullgraph=True, dynamic=True)
    for cells in (5, 6):
        inputs = make_inputs(cells, device=device, eps=noise == "given")
        eager = with_gradients(noise_patch_embed_with_input, inputs)
        for name, value in with_gradients(compiled, inputs).items():
            torch.testing.assert_close(value, eager[name])


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"x0": [1.0]}, TypeError, "x0 is a list"),
        ({"x0": torch.ones(3, 4, dtype=torch.int32)}, TypeError, r"x0 has dtype torch\.int32; cast it"),
        ({"x0": torch.ones(3)}, ValueError, r"x0 has shape \(3,\); reshape it to \[B, G\]"),
        ({"weight": torch.ones(24)}, ValueError, r"weight has shape \(24,\); reshape it to \[D, P\]"),
        ({"weight": torch.ones(24, 0)}, ValueError, "give it channels and genes"),
        ({"bias": torch.ones(23)}, ValueError, r"bias has shape \(23,\).*\(24,\), \[D\]"),
        ({"bias": torch.ones(24).double()}, TypeError, "bias has dtype torch.float64 and weight has"),
        ({"position": torch.ones(5, 24)}, ValueError, r"position has shape \(5, 24\).*\(6, 24\)"),
        ({"signal": torch.ones(5, 1)}, ValueError, r"signal has shape \(5, 1\).*\(5,\), \[B\]"),
        ({"noise": torch.ones(5).to("meta")}, ValueError, "noise is on meta and x0 is on cpu"),
        ({"noise": torch.ones(5, requires_grad=True)}, ValueError, r"noise wants a gradient.*noise\.detach"),
        ({"eps": torch.ones(5, 24)}, ValueError, r"eps has shape \(5, 24\).*\(5, 23\), \[B, G\]"),
        ({"seed": 3}, ValueError, "give either seed or eps"),
        ({"eps": None}, ValueError, "give either seed or eps"),
        ({"eps": None, "seed": 0.5}, TypeError, "seed is a float"),
        ({"implementation": "cuda"}, ValueError, "implementation is 'cuda'; choose one of"),
    ],
)
def test_refuses_and_says_what_to_do(changes, kind, message):
    with pytest.raises(kind, match=message):
        noise_patch_embed(**make_inputs() | changes)


def test_a_patch_too_large_for_the_kernels(monkeypatch):
    monkeypatch.setattr(_dispatch, "TRITON_INSTALLED", True)
    monkeypatch.setattr(_dispatch, "INTERPRET", True)
    inputs = make_inputs(2, 130, tiles.MAX_PATCH + 1)
    with pytest.raises(ValueError, match="a patch has 33 genes and the kernels take at most 32"):
        noise_patch_embed(**inputs, implementation="triton")
    check(inputs, implementation="reference")


# ------------------------------------------------------------------------------ tiles


@pytest.mark.parametrize("cells", [1, 7, 8, 512, 10**6])
def test_schedule_deals_every_cell_once(cells):
    tile = tiles.choose(cells, 768, 2)
    plan = tiles.schedule(cells, 200, 768, tile)
    dealt = plan.steps * tile.cells
    assert (plan.slices - 1) * dealt < cells <= plan.slices * dealt
    assert plan.slices < 65_536


# ------------------------------------------------------------------------------ the kernels themselves


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernels, whose outputs start as NaN."""
    from scdd.kernels.noise_patch_embed import triton as kernels

    poison(kernels)
    return kernel_device


SHAPES = [
    # cells, genes, patch, width
    (1, 1, 1, 1),
    (1, 130, 2, 24),
    (2, 40, 10, 96),
    (9, 23, 10, 16),
    (17, 64, 8, 40),
    (3, 65, 16, 72),
    (1, 63, 17, 200),
    (2, 100, 32, 33),
    (130, 15, 5, 20),
    (8, 80, 10, 192),
]


@NOISE
@pytest.mark.parametrize(("cells", "genes", "patch", "width"), SHAPES)
def test_kernel(poisoned, cells, genes, patch, width, noise):
    inputs = make_inputs(cells, genes, patch, width, device=poisoned, eps=noise == "given")
    check(inputs, implementation="triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("cells", "genes", "patch", "width"), [(9, 23, 10, 16), (8, 40, 8, 136)])
def test_kernel_in_sixteen_bits(poisoned, cells, genes, patch, width, dtype):
    check(make_inputs(cells, genes, patch, width, dtype=dtype, device=poisoned), implementation="triton")


@DTYPE
@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e4])
def test_kernel_on_extreme_values(poisoned, spread, dtype):
    check(make_inputs(9, 23, 10, dtype=dtype, device=poisoned, spread=spread), implementation="triton")


@pytest.mark.parametrize("position", [True, False])
def test_kernel_sums_without_position(poisoned, position):
    """The bias is summed by itself where the positions are fixed; many steps of a program."""
    inputs = make_inputs(70, 12, 4, 16, device=poisoned, x0=False)
    inputs["position"].requires_grad_(position)
    check(inputs, implementation="triton")


def test_kernel_of_several_steps(poisoned, monkeypatch):
    monkeypatch.setattr(tiles, "_PROGRAMS", 2)
    check(make_inputs(70, 12, 4, 16, device=poisoned), implementation="triton")


@NOISE
def test_kernel_keeps_cells_apart(poisoned, noise):
    clean = make_inputs(9, 23, 4, device=poisoned, eps=noise == "given")
    dirty = clean | {"x0": clean["x0"].detach().clone()}
    dirty["x0"][3] = torch.nan
    dirty["x0"].requires_grad_()
    others = torch.arange(9, device=poisoned) != 3
    got = noise_patch_embed_with_input(**dirty, implementation="triton")
    for value, expected in zip(
        got, noise_patch_embed_with_input(**clean, implementation="triton"), strict=True
    ):
        torch.testing.assert_close(value[others], expected[others], rtol=0, atol=0)


def test_kernel_gives_the_same_bits_twice_and_in_part(poisoned):
    inputs = make_inputs(20, 23, 4, device=poisoned, eps=False)
    first = with_gradients(noise_patch_embed_with_input, inputs)
    for name, value in with_gradients(noise_patch_embed_with_input, inputs).items():
        assert torch.equal(value, first[name]), name
    part = {n: t[:9] if n in {"x0", "signal", "noise"} else t for n, t in inputs.items()}
    for value, whole in zip(noise_patch_embed_with_input(**part), ("out0", "out1"), strict=True):
        assert torch.equal(value, first[whole][:9])


@pytest.mark.parametrize(("cells", "genes"), [(0, 8), (3, 0), (0, 0)])
def test_nothing_in_nothing_out(device, cells, genes):
    inputs = make_inputs(cells, genes, device=device)
    out = with_gradients(noise_patch_embed_with_input, inputs)
    assert out["out0"].shape == (cells, -(-genes // 4), 24)
    assert not out["dweight"].count_nonzero()
    assert not out["dbias"].count_nonzero()


@pytest.mark.parametrize(("cells", "genes"), [(0, 8), (3, 0)])
def test_kernel_on_nothing(poisoned, cells, genes):
    out = with_gradients(noise_patch_embed_with_input, make_inputs(cells, genes, device=poisoned))
    for name in ("dweight", "dbias", "dposition"):
        assert not out[name].count_nonzero()
