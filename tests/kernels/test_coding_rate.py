"""`coding_rate` and `subspace_coding_rate`: definition, gradients, registration, errors and kernels."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scdd.kernels import _dispatch
from scdd.kernels.coding_rate import coding_rate, ops, subspace_coding_rate, tiles
from support.accuracy import DTYPES, in_float64, with_gradients

DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
NORMALISE = pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
RAGGED = [0, 0, 17, 1, 0, 64, 15, 130, 0]


def bounds(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def make_inputs(
    shape=(2, 9, 3, 8), *, lengths=None, dtype=torch.float32, device="cpu", spread=1.0, **settings
):
    """Random inputs by name; with `lengths`, packed tokens of the last two sizes of `shape`."""
    generator = torch.Generator().manual_seed(sum(shape))
    if lengths is not None:
        shape = (sum(lengths), *shape[-2:])
    w = (spread * torch.randn(shape, generator=generator)).to(device, dtype).requires_grad_()
    packed = {} if lengths is None else {"cu_seqlens": bounds(lengths).to(device)}
    return {"w": w, "eps": 0.3, "reduction": "none"} | packed | settings


def half_log_determinant(x, weight):
    """On the side of the tokens, as in the paper: [..., N, P]."""
    return 0.5 * torch.logdet(torch.eye(x.shape[-2], dtype=x.dtype) + weight * x @ x.mT)


def naive(w, eps, normalise=False, cu_seqlens=None, reduction="none"):
    """Every segment and head by itself, in float64."""
    ends = None if cu_seqlens is None else cu_seqlens.tolist()
    parts = list(w) if ends is None else [w[a:b] for a, b in pairwise(ends)]
    rates = []
    for part in parts:
        for x in part.unbind(1):
            unit = torch.nn.functional.normalize(x, dim=-1) if normalise else x
            weight = x.shape[1] / (max(len(x), 1) * eps**2)
            rates.append(half_log_determinant(unit, weight) if len(x) else x.sum())
    return torch.stack(rates).view(len(parts), w.shape[-2])


def operator(implementation="auto"):
    return lambda **inputs: subspace_coding_rate(**inputs, implementation=implementation)


def check(inputs, implementation, rtol=3e-6):
    """Rates to a few roundings of float32 whatever the dtype, gradients to a rounding of theirs."""
    exact = with_gradients(naive, in_float64(inputs))
    ours = with_gradients(operator(implementation), inputs)
    assert ours["out0"].dtype == torch.float32
    torch.testing.assert_close(ours["out0"].cpu().double(), exact["out0"], rtol=rtol, atol=1e-6)
    dtype = inputs["w"].dtype
    size = exact["dw"].abs().max().item() if exact["dw"].numel() else 0.0
    # the interpreter truncates to bfloat16 where a GPU rounds
    rounding = 10 * rtol if dtype == torch.float32 else torch.finfo(dtype).eps
    assert ours["dw"].dtype == dtype
    torch.testing.assert_close(ours["dw"].cpu().double(), exact["dw"], rtol=rounding, atol=rounding * size)


# ------------------------------------------------------------------------------ definition, any device


@DTYPE
@NORMALISE
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("lengths", [None, [4, 0, 9, 1, 20]], ids=["dense", "packed"])
def test_matches_definition(device, lengths, implementation, normalise, dtype):
    check(make_inputs(lengths=lengths, dtype=dtype, device=device, normalise=normalise), implementation)


@NORMALISE
@pytest.mark.parametrize("shape", [(2, 5, 2, 12), (2, 12, 2, 12), (2, 30, 2, 12)])
def test_float64_is_exact_on_either_side(shape, normalise):
    inputs = make_inputs(shape, dtype=torch.float64, normalise=normalise)
    exact = with_gradients(naive, inputs)
    for name, value in with_gradients(operator(), inputs).items():
        torch.testing.assert_close(value, exact[name], rtol=1e-9, atol=1e-11)


@NORMALISE
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("lengths", [None, [0, 3, 1, 0, 5]], ids=["dense", "packed"])
def test_gradcheck(lengths, implementation, normalise):
    inputs = make_inputs((2, 5, 2, 3), lengths=lengths, dtype=torch.float64, normalise=normalise)
    assert torch.autograd.gradcheck(lambda w: operator(implementation)(**inputs | {"w": w}), inputs["w"])


@NORMALISE
@pytest.mark.parametrize("shape", [(2, 5, 12), (2, 12, 12), (2, 30, 12)])
def test_coding_rate(device, shape, normalise):
    inputs = make_inputs((*shape[:2], 1, shape[2]), dtype=torch.float64, normalise=normalise)
    z = inputs["w"].detach().squeeze(2).to(device).requires_grad_()
    rate = coding_rate(z, eps=0.3, normalise=normalise)
    exact = with_gradients(naive, inputs)
    torch.testing.assert_close(rate.cpu(), exact["out0"].squeeze(1))
    assert torch.autograd.gradcheck(lambda z: coding_rate(z, eps=0.3, normalise=normalise), z)
    narrow = coding_rate(z.detach().bfloat16(), eps=0.3, normalise=normalise)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.cpu(), exact["out0"].squeeze(1).float(), rtol=1e-2, atol=1e-2)


def test_coding_rate_of_nothing(device):
    assert coding_rate(torch.zeros(2, 0, 3, device=device), eps=1.0).tolist() == [0, 0]


def test_sum_over_heads_is_the_rate_of_the_paper(device):
    inputs = make_inputs(device=device)
    torch.testing.assert_close(
        subspace_coding_rate(**inputs | {"reduction": "sum"}), operator()(**inputs).sum(1)
    )


def test_the_figures_of_crate(device):
    """``p / (N * 0.01)`` in their code is the formula at ``eps=0.1``."""
    w = make_inputs((2, 40, 3, 8), device=device)["w"].detach()
    x = torch.nn.functional.normalize(w.cpu().double().transpose(1, 2), dim=-1)
    expected = half_log_determinant(x, 8 / (40 * 0.01)).sum(1)
    got = subspace_coding_rate(w, eps=0.1, normalise=True)
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-5, atol=1e-5)


def test_one_subspace_of_all_dimensions_is_the_coding_rate(device):
    w = make_inputs((2, 40, 1, 8), device=device)["w"]
    torch.testing.assert_close(subspace_coding_rate(w, eps=0.3), coding_rate(w.squeeze(2), eps=0.3))


def test_few_tokens_of_wide_heads(device):
    """On the side of the channels their zero eigenvalues spoilt the gradient by a tenth."""
    for normalise in (False, True):
        check(make_inputs((3, 5, 2, 96), device=device, eps=0.1, normalise=normalise), "auto")


def test_a_failed_factorisation_is_nan(device):
    inputs = make_inputs(device=device)
    inputs["w"] = inputs["w"].detach().clone()
    inputs["w"][0, 0, 1] = torch.nan
    rate = operator()(**inputs)
    assert rate.isnan().tolist() == [[False, True, False], [False] * 3]


def test_second_derivative_needs_the_reference():
    inputs = make_inputs(dtype=torch.float64)
    (first,) = torch.autograd.grad(operator()(**inputs).sin().sum(), inputs["w"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    (first,) = torch.autograd.grad(
        operator("reference")(**inputs).sin().sum(), inputs["w"], create_graph=True
    )
    first.sum().backward()


def test_any_memory_layout(device):
    inputs = make_inputs(device=device)
    heads_first = inputs["w"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    got = with_gradients(operator(), inputs | {"w": heads_first})
    for name, expected in with_gradients(operator(), inputs).items():
        torch.testing.assert_close(got[name], expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (3, 0, 2, 8)])
def test_nothing_in_nothing_out(device, shape):
    got = with_gradients(operator(), make_inputs(shape, device=device))
    assert got["out0"].shape == (shape[0], 2)
    assert got["dw"].shape == shape
    assert not got["out0"].count_nonzero()


# ------------------------------------------------------------------------------ registration


def test_registration(device):
    for lengths in (None, [4, 0, 9, 1]):
        inputs = make_inputs(lengths=lengths, device=device)
        arguments = (inputs["w"].detach(), inputs.get("cu_seqlens"))
        for normalise in (False, True):
            rate, factor = ops._forward(*arguments, 0.3, normalise)
            torch.library.opcheck(ops._forward, (*arguments, 0.3, normalise))
            torch.library.opcheck(ops._backward, (rate, *arguments, factor, 0.3, normalise))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_compiles_to_one_graph_of_any_size(device, packed):
    torch.compiler.reset()
    compiled = torch.compile(operator(), fullgraph=True, dynamic=True)
    for tokens in (9, 12):
        inputs = make_inputs((3, tokens, 3, 8), lengths=[tokens, 0, 3] if packed else None, device=device)
        eager = with_gradients(operator(), inputs)
        for name, value in with_gradients(compiled, inputs).items():
            torch.testing.assert_close(value, eager[name])


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"w": [1.0]}, TypeError, r"w is a list; pass a torch\.Tensor"),
        (
            {"w": torch.zeros(9, 3, 8)},
            ValueError,
            r"w has shape \(9, 3, 8\).*\[B, N, H, P\], or pass cu_seqlens",
        ),
        ({"cu_seqlens": bounds([9])}, ValueError, r"w has shape \(2, 9, 3, 8\).*\[T, H, P\]"),
        ({"w": torch.zeros(2, 9, 0, 8)}, ValueError, r"one head and one channel at least"),
        ({"w": torch.zeros(9, 3, 8), "cu_seqlens": bounds([9])[:0]}, ValueError, r"cu_seqlens is empty"),
        (
            {"w": torch.zeros(9, 3, 8), "cu_seqlens": torch.zeros(2)},
            TypeError,
            r"cu_seqlens has dtype.*int32",
        ),
        ({"eps": 0.0}, ValueError, r"eps is 0\.0; a code has a positive precision"),
        ({"reduction": "mean"}, ValueError, r"reduction is 'mean'; choose one of 'sum', 'none'"),
        ({"implementation": "cuda"}, ValueError, r"implementation is 'cuda'; choose one of"),
    ],
)
def test_refuses_and_says_what_to_do(changes, kind, message):
    with pytest.raises(kind, match=message):
        subspace_coding_rate(**(make_inputs() | changes))


def test_coding_rate_refuses_and_says_what_to_do():
    with pytest.raises(ValueError, match=r"z has shape \(3, 4\); reshape it to \[B, N, d\]"):
        coding_rate(torch.zeros(3, 4), eps=1.0)
    with pytest.raises(ValueError, match=r"eps is -1; a code has a positive precision"):
        coding_rate(torch.zeros(2, 3, 4), eps=-1)


def test_a_named_implementation_never_falls_back(monkeypatch):
    monkeypatch.setattr(_dispatch, "TRITON_INSTALLED", True)
    monkeypatch.setattr(_dispatch, "INTERPRET", True)
    with pytest.raises(ValueError, match="w has heads of 129 channels and the kernels hold 128"):
        operator("triton")(**make_inputs((1, 2, 1, 129)))
    with pytest.raises(ValueError, match="float64"):
        operator("triton")(**make_inputs(dtype=torch.float64))


# ------------------------------------------------------------------------------ tiles


def test_every_width_has_a_tile():
    for channels in range(1, tiles.MAX_CHANNELS + 1):
        assert tiles.choose(channels) in tiles.every_tile()
        assert tiles.choose(channels).channels >= channels


# ------------------------------------------------------------------------------ the kernels themselves


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernels, whose outputs start as NaN."""
    from scdd.kernels.coding_rate import triton as kernels

    poison(kernels)
    return kernel_device


@NORMALISE
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (2, 33, 1, 16),
        (1, 65, 3, 20),
        (2, 200, 1, 96),
        (1, 95, 2, 96),
        (3, 5, 2, 128),
        (1, 64, 2, 64),
    ],
)
def test_kernel(poisoned, shape, normalise):
    check(make_inputs(shape, device=poisoned, normalise=normalise), "triton")


@NORMALISE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("lengths", [None, [0, 17, 1, 80]], ids=["dense", "packed"])
def test_kernel_in_sixteen_bits(poisoned, lengths, dtype, normalise):
    check(
        make_inputs((1, 70, 2, 24), lengths=lengths, dtype=dtype, device=poisoned, normalise=normalise),
        "triton",
    )


@NORMALISE
@pytest.mark.parametrize("lengths", [RAGGED, [300, 1, 2, 0, 1, 3], [16, 63, 65, 0]], ids=str)
def test_kernel_on_ragged_segments(poisoned, lengths, normalise):
    check(make_inputs((2, 16), lengths=lengths, device=poisoned, normalise=normalise), "triton")


@pytest.mark.parametrize("spread", [1e4, 1e-4, 1e-13, 0.0])
def test_kernel_on_extreme_values(poisoned, spread):
    """Down to tokens that are shorter than the least length, which are scaled by a constant."""
    check(make_inputs((1, 40, 2, 16), device=poisoned, spread=spread, normalise=True), "triton", rtol=1e-5)


@NORMALISE
def test_kernel_keeps_segments_apart(poisoned, normalise):
    clean = make_inputs((2, 16), lengths=[17, 5, 40], device=poisoned, normalise=normalise)
    dirty = clean | {"w": clean["w"].detach().clone()}
    dirty["w"][17:22] = torch.nan
    dirty["w"].requires_grad_()
    got, expected = (with_gradients(operator("triton"), each) for each in (dirty, clean))
    others = torch.cat((torch.arange(17), torch.arange(22, 62))).to(poisoned)
    torch.testing.assert_close(got["out0"][[0, 2]], expected["out0"][[0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(got["dw"][others], expected["dw"][others], rtol=0, atol=0)


def test_kernel_does_not_mind_the_order_of_tokens(poisoned):
    inputs = make_inputs((1, 70, 2, 16), device=poisoned)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1)).to(poisoned)
    permuted = operator("triton")(**inputs | {"w": inputs["w"].detach()[:, order]})
    torch.testing.assert_close(permuted, operator("triton")(**inputs).detach(), rtol=1e-5, atol=1e-6)


def test_kernel_gives_the_same_bits_twice(poisoned):
    inputs = make_inputs((1, 100, 2, 16), device=poisoned)
    first = with_gradients(operator("triton"), inputs)
    for name, value in with_gradients(operator("triton"), inputs).items():
        assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (3, 0, 2, 8)])
def test_kernel_on_nothing(poisoned, shape):
    for value in with_gradients(operator("triton"), make_inputs(shape, device=poisoned)).values():
        assert not value.count_nonzero()
