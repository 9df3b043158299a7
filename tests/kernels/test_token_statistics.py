"""`token_statistics_attention`: definition, gradients, registration, errors and kernels."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scdd.kernels import _dispatch
from scdd.kernels.token_statistics import ops, tiles, token_statistics_attention
from support.accuracy import DTYPES, assert_as_accurate_as_pytorch, in_float64, with_gradients

DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
RAGGED = [0, 0, 17, 1, 0, 64, 15, 130, 0]


def make_inputs(shape=(2, 9, 3, 8), *, lengths=None, dtype=torch.float32, device="cpu", spread=1.0):
    """Random inputs by name; with `lengths`, packed tokens of the last two sizes of `shape`."""
    generator = torch.Generator().manual_seed(sum(shape))
    if lengths is not None:
        shape = (sum(lengths), *shape[-2:])
    w = spread * torch.randn(shape, generator=generator)
    temperature = 1 + 0.5 * torch.randn(shape[-2], generator=generator)
    inputs = {
        name: t.to(device, dtype).requires_grad_() for name, t in (("w", w), ("temperature", temperature))
    }
    if lengths is not None:
        inputs["cu_seqlens"] = bounds(lengths).to(device)
    return inputs


def bounds(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def one_segment(w, temperature):
    """The published formulas for [N, H, P], heads first as ToST's code has them."""
    w = w.transpose(0, 1)
    normed = torch.nn.functional.normalize(w, dim=-2, eps=1e-12).square()
    membership = torch.softmax(temperature.unsqueeze(1) * normed.sum(-1), dim=0)
    share = membership / (membership.sum(-1, keepdim=True) + 1e-8)
    moment = torch.matmul(share.unsqueeze(-2), w.square())
    return (-(w * membership.unsqueeze(-1)) / (1 + moment)).transpose(0, 1)


def naive(w, temperature, cu_seqlens=None):
    """The same for every segment by itself, in the dtype of the inputs."""
    if cu_seqlens is None:
        return torch.stack([one_segment(x, temperature) for x in w]) if len(w) else w * temperature[:, None]
    ends = cu_seqlens.tolist()
    parts = [one_segment(w[a:b], temperature) for a, b in pairwise(ends) if b > a]
    return torch.cat(parts)


def operator(implementation="auto"):
    return lambda **inputs: token_statistics_attention(**inputs, implementation=implementation)


def check(inputs, implementation, **kwargs):
    exact = with_gradients(naive, in_float64(inputs))
    theirs = with_gradients(naive, inputs)
    ours = with_gradients(operator(implementation), inputs)
    tokens = inputs["w"].numel() // inputs["w"].shape[-1]
    assert_as_accurate_as_pytorch(
        ours, theirs, exact, summed={"dtemperature": tokens, "dw": 16, "out0": 4}, **kwargs
    )
    return ours


# ------------------------------------------------------------------------------ definition, any device


@DTYPE
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("lengths", [None, [4, 0, 9, 1]], ids=["dense", "packed"])
def test_matches_definition(device, lengths, implementation, dtype):
    check(make_inputs(lengths=lengths, dtype=dtype, device=device), implementation)


def test_float64_is_exact():
    for lengths in (None, RAGGED):
        inputs = make_inputs((3, 40, 4, 12), lengths=lengths, dtype=torch.float64)
        exact = with_gradients(naive, inputs)
        for name, value in with_gradients(operator(), inputs).items():
            torch.testing.assert_close(value, exact[name], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("lengths", [None, [0, 3, 1, 0, 2]], ids=["dense", "packed"])
def test_gradcheck(lengths, implementation):
    inputs = make_inputs((2, 3, 2, 3), lengths=lengths, dtype=torch.float64)

    def function(w, temperature):
        return operator(implementation)(w=w, temperature=temperature, cu_seqlens=inputs.get("cu_seqlens"))

    assert torch.autograd.gradcheck(function, (inputs["w"], inputs["temperature"]))


def test_second_derivative_needs_the_reference():
    inputs = make_inputs(dtype=torch.float64)
    (first,) = torch.autograd.grad(operator()(**inputs).sin().sum(), inputs["w"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    (first,) = torch.autograd.grad(
        operator("reference")(**inputs).sin().sum(), inputs["w"], create_graph=True
    )
    first.sum().backward()


def test_the_order_of_tokens_does_not_matter(device):
    inputs = make_inputs((2, 70, 3, 16), device=device)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1)).to(device)
    permuted = inputs | {"w": inputs["w"][:, order]}
    torch.testing.assert_close(operator()(**permuted), operator()(**inputs)[:, order], rtol=1e-5, atol=1e-6)


def test_packed_tokens_are_those_of_a_batch(device):
    dense = make_inputs((4, 30, 3, 16), device=device)
    packed = dense | {"w": dense["w"].flatten(0, 1), "cu_seqlens": bounds([30] * 4).to(device)}
    torch.testing.assert_close(operator()(**packed).view_as(dense["w"]), operator()(**dense))


def test_a_temperature_in_float32_beside_narrow_tokens(device):
    inputs = make_inputs(dtype=torch.bfloat16, device=device)
    wide = inputs | {"temperature": inputs["temperature"].detach().float().requires_grad_()}
    got, expected = (with_gradients(operator(), each) for each in (wide, inputs))
    torch.testing.assert_close(got["out0"], expected["out0"])
    assert got["dtemperature"].dtype == torch.float32
    torch.testing.assert_close(got["dtemperature"].bfloat16(), expected["dtemperature"])


def test_any_memory_layout(device):
    inputs = make_inputs(device=device)
    heads_first = inputs["w"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    assert not heads_first.is_contiguous()
    got = with_gradients(operator(), inputs | {"w": heads_first})
    for name, expected in with_gradients(operator(), inputs).items():
        torch.testing.assert_close(got[name], expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (3, 0, 2, 8)])
def test_nothing_in_nothing_out(device, shape):
    inputs = make_inputs(shape, device=device)
    for name, value in with_gradients(operator(), inputs).items():
        assert value.shape == inputs["temperature" if name == "dtemperature" else "w"].shape
        assert not value.count_nonzero()


# ------------------------------------------------------------------------------ registration


def test_registration(device):
    for lengths in (None, [4, 0, 9, 1]):
        inputs = make_inputs(lengths=lengths, device=device)
        w, temperature = inputs["w"].detach(), inputs["temperature"].detach()
        arguments = (w, temperature, inputs.get("cu_seqlens"))
        statistics = ops._forward(*arguments)[1:]
        torch.library.opcheck(ops._forward, arguments)
        torch.library.opcheck(ops._backward, (torch.ones_like(w), *arguments, *statistics))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_compiles_to_one_graph_of_any_size(device, packed):
    torch.compiler.reset()
    compiled = torch.compile(operator(), fullgraph=True, dynamic=True)
    for tokens in (7, 10):
        inputs = make_inputs((3, tokens, 3, 8), lengths=[tokens, 0, 3] if packed else None, device=device)
        eager = with_gradients(operator(), inputs)
        for name, value in with_gradients(compiled, inputs).items():
            torch.testing.assert_close(value, eager[name])


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"w": [1.0]}, TypeError, r"w is a list; pass a torch\.Tensor"),
        ({"w": torch.zeros(2, 3, 4, 5).long()}, TypeError, r"w has dtype torch\.int64; cast it to float32"),
        (
            {"w": torch.zeros(9, 3, 8)},
            ValueError,
            r"w has shape \(9, 3, 8\).*\[B, N, H, P\], or pass cu_seqlens",
        ),
        ({"cu_seqlens": bounds([9])}, ValueError, r"w has shape \(2, 9, 3, 8\).*\[T, H, P\]"),
        ({"w": torch.zeros(2, 9, 3, 0)}, ValueError, r"one head and one channel at least"),
        ({"temperature": torch.ones(4)}, ValueError, r"temperature has shape \(4,\).*\(3,\), \[H\]"),
        ({"temperature": torch.ones(3).long()}, TypeError, r"temperature has dtype torch\.int64"),
        (
            {"temperature": torch.ones(3, device="meta")},
            ValueError,
            r"temperature is on meta and w is on cpu",
        ),
        (
            {"w": torch.zeros(9, 3, 8), "cu_seqlens": torch.zeros(2)},
            TypeError,
            r"cu_seqlens has dtype.*int32",
        ),
        ({"w": torch.zeros(9, 3, 8), "cu_seqlens": bounds([9])[None]}, ValueError, r"cu_seqlens.*\[S \+ 1\]"),
        ({"w": torch.zeros(9, 3, 8), "cu_seqlens": bounds([9])[:0]}, ValueError, r"cu_seqlens is empty"),
        ({"implementation": "cuda"}, ValueError, r"implementation is 'cuda'; choose one of"),
    ],
)
def test_refuses_and_says_what_to_do(changes, kind, message):
    with pytest.raises(kind, match=message):
        token_statistics_attention(**(make_inputs() | changes))


def test_a_named_implementation_never_falls_back(monkeypatch):
    monkeypatch.setattr(_dispatch, "TRITON_INSTALLED", True)
    monkeypatch.setattr(_dispatch, "INTERPRET", True)
    with pytest.raises(ValueError, match="w has 17 heads of 128 channels and the kernels hold 2048 numbers"):
        operator("triton")(**make_inputs((1, 1, 17, 128)))
    with pytest.raises(ValueError, match="float64"):
        operator("triton")(**make_inputs(dtype=torch.float64))


# ------------------------------------------------------------------------------ tiles


def test_every_size_has_a_tile():
    for heads in range(1, 17):
        for channels in range(1, 129):
            if tiles.padded_size(heads, channels) <= tiles.MAX_SIZE:
                tile = tiles.choose(heads, channels)
                assert tile.heads >= heads
                assert tile.channels >= channels


@pytest.mark.parametrize("segments", [0, 1, 16, 527, 528, 10**5])
@pytest.mark.parametrize("tokens", [0, 1, 200, 10**6])
def test_slices_fit_a_grid_and_are_worth_their_sums(segments, tokens):
    slices = tiles.slices(segments, tokens)
    assert 1 <= slices < 65_536
    assert slices == 1 or slices * 32 <= -(-tokens // segments)


# ------------------------------------------------------------------------------ the kernels themselves


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernels, whose outputs start as NaN."""
    from scdd.kernels.token_statistics import triton as kernels

    poison(kernels)
    return kernel_device


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 33, 1, 16), (1, 65, 3, 20), (2, 70, 2, 96), (1, 200, 4, 32), (1, 15, 12, 64)]
)
def test_kernel(poisoned, shape):
    check(make_inputs(shape, device=poisoned), "triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("lengths", [None, [0, 17, 9, 40]], ids=["dense", "packed"])
def test_kernel_in_sixteen_bits(poisoned, lengths, dtype):
    check(make_inputs((1, 70, 2, 24), lengths=lengths, dtype=dtype, device=poisoned), "triton")


@pytest.mark.parametrize("lengths", [RAGGED, [300, 1, 2, 0, 1, 3], [16, 63, 65, 0], [0, 0]], ids=str)
def test_kernel_on_ragged_segments(poisoned, lengths):
    if sum(lengths):
        check(make_inputs((2, 16), lengths=lengths, device=poisoned), "triton")
    else:
        out = operator("triton")(**make_inputs((2, 16), lengths=lengths, device=poisoned))
        assert out.shape == (0, 2, 16)


@pytest.mark.parametrize("slices", [1, 3])
def test_kernel_in_one_pass_and_in_three(poisoned, slices, monkeypatch):
    """However segments are cut, also to slices that hold nothing."""
    monkeypatch.setattr(tiles, "slices", lambda segments, tokens: slices)
    check(make_inputs((2, 16), lengths=[0, 5, 100, 33], device=poisoned), "triton")


@pytest.mark.parametrize("spread", [1e4, 1e-4, 1e-9, 1e-14, 0.0])
def test_kernel_on_extreme_values(poisoned, spread):
    """Down to tokens whose norm is below its least, where it is a constant."""
    inputs = make_inputs((1, 40, 2, 16), device=poisoned, spread=spread)
    exact = with_gradients(naive, in_float64(inputs))
    for name, value in with_gradients(operator("triton"), inputs).items():
        scale = exact[name].abs().max().item()
        torch.testing.assert_close(value.cpu().double(), exact[name], rtol=1e-3, atol=1e-5 * scale)


def test_kernel_on_equal_tokens(poisoned):
    inputs = make_inputs((1, 40, 2, 16), device=poisoned)
    with torch.no_grad():
        inputs["w"].fill_(3.0)
        inputs["temperature"].fill_(1.0)
    out = operator("triton")(**inputs)
    torch.testing.assert_close(out, torch.full_like(out, -3.0 * 0.5 / 10))


def test_kernel_on_a_hot_temperature(poisoned):
    """Logits of a thousand saturate the softmax and do not overflow it."""
    inputs = make_inputs((1, 33, 3, 16), device=poisoned)
    with torch.no_grad():
        inputs["temperature"].mul_(1e3)
    check(inputs, "triton")


def test_kernel_keeps_segments_apart(poisoned):
    """NaN in one segment stays there, on either side of a boundary inside a tile."""
    clean = make_inputs((2, 16), lengths=[17, 5, 40], device=poisoned)
    dirty = clean | {"w": clean["w"].detach().clone()}
    dirty["w"][17:22] = torch.nan
    dirty["w"].requires_grad_()
    got, expected = (with_gradients(operator("triton"), each) for each in (dirty, clean))
    others = torch.cat((torch.arange(17), torch.arange(22, 62))).to(poisoned)
    for name in ("out0", "dw"):
        torch.testing.assert_close(got[name][others], expected[name][others], rtol=0, atol=0)


def test_kernel_does_not_mind_the_order_of_tokens(poisoned):
    inputs = make_inputs((1, 70, 2, 16), device=poisoned)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1)).to(poisoned)
    permuted = inputs | {"w": inputs["w"].detach()[:, order]}
    expected = operator("triton")(**inputs)[:, order]
    torch.testing.assert_close(operator("triton")(**permuted), expected, rtol=1e-5, atol=1e-6)


def test_kernel_gives_the_same_bits_twice(poisoned):
    inputs = make_inputs((1, 100, 2, 16), device=poisoned)
    first = with_gradients(operator("triton"), inputs)
    for name, value in with_gradients(operator("triton"), inputs).items():
        assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (3, 0, 2, 8)])
def test_kernel_on_nothing(poisoned, shape):
    for value in with_gradients(operator("triton"), make_inputs(shape, device=poisoned)).values():
        assert not value.count_nonzero()
