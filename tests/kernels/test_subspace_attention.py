"""`multihead_subspace_attention`: definition, gradients, registration, errors and kernels."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support.accuracy import DTYPES, assert_as_accurate_as_pytorch, in_float64, with_gradients

from scdd.kernels import _dispatch
from scdd.kernels._segments import SegmentSchedule, segment_schedule
from scdd.kernels.subspace_attention import multihead_subspace_attention, ops, tiles

ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


def tokens(*shape, dtype=torch.float32, device="cpu", spread=1.0):
    """Random `w`."""
    generator = torch.Generator().manual_seed(sum(7**i * size for i, size in enumerate(shape)))
    return (spread * torch.randn(*shape, generator=generator)).to(device, dtype).requires_grad_()


def packed(lengths, heads=2, width=32, *, dtype=torch.float32, device="cpu", spread=1.0):
    """Random `w` of segments with those lengths, and where each starts."""
    starts = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    return {
        "w": tokens(sum(lengths), heads, width, dtype=dtype, device=device, spread=spread),
        "cu_seqlens": starts,
    }


def naive(w, scale=None, cu_seqlens=None):
    """The formula one head at a time, in the dtype of `w`."""
    scale = w.shape[-1] ** -0.5 if scale is None else scale
    starts = [0, w.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    inputs = w if cu_seqlens is None else w[None]
    out = torch.zeros_like(inputs)
    for b in range(inputs.shape[0]):
        for i, j in pairwise(starts):
            for h in range(inputs.shape[2]):
                x = inputs[b, i:j, h]
                out[b, i:j, h] = torch.softmax(scale * (x @ x.T), dim=-1) @ x
    return out.reshape(w.shape)


def padded_sdpa(w, scale=None, cu_seqlens=None):
    """PyTorch's own attention with `w` in all three places, a segment at a time."""
    if cu_seqlens is None:
        x = w.transpose(1, 2)
        return F.scaled_dot_product_attention(x, x, x, scale=scale).transpose(1, 2)
    starts = cu_seqlens.tolist()
    pieces = [padded_sdpa(w[None, i:j], scale)[0] for i, j in pairwise(starts) if j > i]
    return torch.cat([w[:0], *pieces])


def assert_accurate(inputs, **options):
    """Hold results and gradients to twice the error of the formula in PyTorch in the same dtype."""
    plain = {name: value for name, value in inputs.items() if name != "schedule"}
    assert_as_accurate_as_pytorch(
        with_gradients(lambda **kw: multihead_subspace_attention(**kw, **options), inputs),
        with_gradients(naive, plain),
        with_gradients(naive, in_float64(plain)),
        # each is a sum over about as many tokens, of scores that are sums over a head
        summed={"out0": 256, "dw": 1024},
    )


# ------------------------------------------------------------------------------ definition, any device


@ALL_DTYPES
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 8), (1, 70, 2, 96), (2, 1, 1, 32), (1, 200, 1, 96)])
def test_matches_definition(device, shape, implementation, dtype):
    assert_accurate({"w": tokens(*shape, dtype=dtype, device=device)}, implementation=implementation)


@ALL_DTYPES
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("lengths", [(3, 0, 17, 1), (0,), (0, 5, 0), (64, 65)])
def test_matches_definition_in_segments(device, lengths, implementation, dtype):
    assert_accurate(packed(lengths, dtype=dtype, device=device), implementation=implementation)


def test_many_tokens_by_blocks_of_rows(device):
    """Beyond 512 tokens a CPU takes the gradient some rows at a time."""
    inputs = {"w": tokens(2, 650, 1, 16, dtype=torch.float64, device=device)}
    expected = with_gradients(naive, inputs)
    for name, value in with_gradients(multihead_subspace_attention, inputs).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_gradcheck(implementation):
    def function(w, cu_seqlens=None):
        return multihead_subspace_attention(
            w, scale=0.7, cu_seqlens=cu_seqlens, implementation=implementation
        )

    assert torch.autograd.gradcheck(function, (tokens(2, 4, 2, 3, dtype=torch.float64),))
    assert torch.autograd.gradcheck(function, tuple(packed((3, 0, 2), 2, 3, dtype=torch.float64).values()))


def test_agrees_with_attention_given_one_tensor_thrice(device):
    for inputs in ({"w": tokens(2, 9, 2, 32, device=device)}, packed((5, 0, 7), device=device)):
        expected = with_gradients(padded_sdpa, inputs)
        for name, value in with_gradients(multihead_subspace_attention, inputs).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_second_derivative_needs_the_reference():
    w = tokens(1, 4, 1, 8, dtype=torch.float64)
    (first,) = torch.autograd.grad(multihead_subspace_attention(w).sin().sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    reference = multihead_subspace_attention(w, implementation="reference")
    (first,) = torch.autograd.grad(reference.sin().sum(), w, create_graph=True)
    first.sum().backward()
    assert w.grad is not None


def test_any_memory_layout(device):
    w = tokens(2, 6, 2, 32, device=device)
    other = w.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    assert not other.is_contiguous()
    expected = with_gradients(multihead_subspace_attention, {"w": w})
    for name, value in with_gradients(multihead_subspace_attention, {"w": other}).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 5, 2, 32), (2, 0, 2, 32)])
def test_nothing_in_nothing_out(device, shape):
    for value in with_gradients(multihead_subspace_attention, {"w": tokens(*shape, device=device)}).values():
        assert value.shape == shape
    assert with_gradients(multihead_subspace_attention, packed((0, 0), device=device))["dw"].shape == (
        0,
        2,
        32,
    )


def test_order_of_tokens_does_not_matter(device):
    w = tokens(2, 21, 2, 32, device=device)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0)).to(device)
    torch.testing.assert_close(
        multihead_subspace_attention(w[:, order]), multihead_subspace_attention(w)[:, order]
    )


def test_under_autocast(device):
    w = tokens(1, 6, 2, 32, dtype=torch.bfloat16, device=device)
    with torch.autocast(device.type, dtype=torch.float16 if device.type == "cuda" else torch.bfloat16):
        cast = with_gradients(multihead_subspace_attention, {"w": w})
    for name, value in with_gradients(multihead_subspace_attention, {"w": w}).items():
        torch.testing.assert_close(cast[name], value, rtol=0, atol=0)


# ------------------------------------------------------------------------------ registration


def operator_calls(device):
    """Each registered operator with arguments that it would get."""
    w = tokens(2, 20, 2, 32, device=device).detach()
    segments = packed((5, 0, 15), device=device)
    schedule = segment_schedule(segments["cu_seqlens"], 20, tile_rows=64)
    for x, rest in (
        (w, (None, None, None, 0)),
        (segments["w"].detach(), (segments["cu_seqlens"], *schedule)),
    ):
        out, lse = ops._forward(x, 0.2, *rest)
        yield ops._forward, (x, 0.2, *rest)
        yield ops._backward, (out, x, out, lse, 0.2, *rest)


def test_registration(device):
    for op, arguments in operator_calls(device):
        torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("segmented", [False, True], ids=["fixed", "segments"])
def test_compiles_to_one_graph_of_any_size(device, segmented):
    torch.compiler.reset()
    compiled = torch.compile(multihead_subspace_attention, fullgraph=True, dynamic=True)
    for n in (5, 6):
        inputs = (
            packed((n, 3, 2 * n), device=device) if segmented else {"w": tokens(2, n, 3, 32, device=device)}
        )
        eager = with_gradients(multihead_subspace_attention, inputs)
        for name, value in with_gradients(compiled, inputs).items():
            torch.testing.assert_close(value, eager[name])


# ------------------------------------------------------------------------------ errors


W = tokens(2, 5, 2, 32).detach()
SEGMENTS = torch.tensor([0, 2, 10], dtype=torch.int32)
SCHEDULE = segment_schedule(SEGMENTS, 10, tile_rows=64)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"w": W.tolist()}, TypeError, r"w is a list; pass a torch\.Tensor"),
        ({"w": W.long()}, TypeError, r"w has dtype torch\.int64; cast it to float32"),
        ({"w": W[0, 0]}, ValueError, r"w has shape \(2, 32\); reshape it to \[B, N, H, P\], or \[T, H, P\]"),
        ({"w": W[..., :0]}, ValueError, r"w has shape \(2, 5, 2, 0\).*P > 0"),
        (
            {"w": W[0]},
            ValueError,
            r"w has shape \(5, 2, 32\); reshape it to \[B, N, H, P\], or give cu_seqlens",
        ),
        (
            {"w": W, "cu_seqlens": SEGMENTS},
            ValueError,
            r"\(2, 5, 2, 32\).*\[T, H, P\], or leave cu_seqlens out",
        ),
        ({"w": W, "scale": -0.5}, ValueError, r"scale is -0\.5; pass a finite number above 0"),
        ({"w": W, "scale": float("inf")}, ValueError, "scale is inf"),
        ({"w": W, "schedule": SCHEDULE}, ValueError, "schedule is given without cu_seqlens"),
        ({"w": W.flatten(0, 1), "cu_seqlens": [0, 10]}, TypeError, "cu_seqlens is a list"),
        ({"w": W.flatten(0, 1), "cu_seqlens": SEGMENTS.float()}, TypeError, "cu_seqlens has dtype"),
        ({"w": W.flatten(0, 1), "cu_seqlens": SEGMENTS[:-1]}, ValueError, "cu_seqlens ends at 2"),
        ({"w": W.flatten(0, 1), "cu_seqlens": SEGMENTS + 1}, ValueError, "cu_seqlens starts at 1"),
        (
            {"w": W.flatten(0, 1), "cu_seqlens": SEGMENTS.to("meta")},
            ValueError,
            "cu_seqlens is on meta and w",
        ),
        (
            {"w": W.flatten(0, 1)[1:], "cu_seqlens": SEGMENTS, "schedule": SCHEDULE},
            ValueError,
            r"schedule\.segments has shape \(10,\)",
        ),
        (
            {"w": W, "implementation": "cuda"},
            ValueError,
            "implementation is 'cuda'; choose one of 'auto', 'reference', 'triton'",
        ),
    ],
)
def test_refuses_and_says_what_to_do(arguments, kind, message):
    with pytest.raises(kind, match=message):
        multihead_subspace_attention(**arguments)


def test_a_named_implementation_never_falls_back(monkeypatch):
    def message(w, **kwargs):
        with pytest.raises(ValueError, match="implementation='triton' can not be had") as raised:
            multihead_subspace_attention(w, implementation="triton", **kwargs)
        return str(raised.value)

    monkeypatch.setattr(_dispatch, "TRITON_INSTALLED", False)
    assert "pip install triton" in message(W)
    monkeypatch.setattr(_dispatch, "TRITON_INSTALLED", True)
    monkeypatch.setattr(_dispatch, "INTERPRET", False)
    assert "move them with .cuda()" in message(W)
    monkeypatch.setattr(_dispatch, "INTERPRET", True)
    assert "w has heads of 31 and the kernels take 32, 64, 96, 128" in message(W[..., 1:])
    wide = SegmentSchedule(SCHEDULE.tiles, SCHEDULE.segments, 256)
    assert "schedule.tile_rows is 256" in message(W.flatten(0, 1), cu_seqlens=SEGMENTS, schedule=wide)


# ------------------------------------------------------------------------------ tiles


@pytest.mark.parametrize(
    ("length", "rows"), [(1, 64), (64, 64), (65, 128), (200, 128), (256, 128), (320, 64), (4096, 128)]
)
def test_rows_pad_little(length, rows):
    assert tiles.rows_of(length) == rows


@pytest.mark.parametrize(("length", "last"), [(64, 0), (200, 16), (1, 16), (17, 32), (40, 64)])
def test_last_block_of_keys_is_narrow(length, last):
    assert tiles.last_keys(length, tiles.choose(64, 2)) == last


# ------------------------------------------------------------------------------ the kernels themselves


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernels, whose outputs start as NaN."""
    from scdd.kernels.subspace_attention import launch

    poison(launch)
    return kernel_device


LENGTHS = (1, 15, 16, 17, 63, 64, 65, 130, 200, 256)


@pytest.mark.parametrize(("width", "length"), [*((32, n) for n in LENGTHS), (64, 65), (96, 200), (128, 17)])
def test_kernel(poisoned, length, width):
    assert_accurate(
        {"w": tokens(1, length, 1 if length > 65 else 2, width, device=poisoned)}, implementation="triton"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("length", "width"), [(200, 96), (256, 64), (130, 128), (17, 32)])
def test_kernel_in_sixteen_bits(poisoned, length, width, dtype):
    assert_accurate({"w": tokens(1, length, 1, width, dtype=dtype, device=poisoned)}, implementation="triton")


def test_kernel_keeps_inputs_and_heads_apart(poisoned):
    """NaN in one input or one head stays there, and a row is the same bits whatever batch it is in."""
    clean = tokens(3, 40, 3, 32, device=poisoned)
    dirty = clean.detach().clone()
    dirty[1], dirty[:, :, 1] = torch.nan, torch.nan
    dirty.requires_grad_()
    expected = with_gradients(multihead_subspace_attention, {"w": clean})
    alone = with_gradients(multihead_subspace_attention, {"w": clean.detach()[:1].requires_grad_()})
    for name, value in with_gradients(multihead_subspace_attention, {"w": dirty}).items():
        torch.testing.assert_close(value[::2, :, ::2], expected[name][::2, :, ::2], rtol=0, atol=0)
        assert value[1].isnan().all()
        assert value[:, :, 1].isnan().all()
    torch.testing.assert_close(alone["out0"], expected["out0"][:1], rtol=0, atol=0)


def test_kernel_gives_the_same_bits_twice(poisoned):
    inputs = {"w": tokens(1, 130, 2, 64, device=poisoned)}
    first = with_gradients(multihead_subspace_attention, inputs)
    for name, value in with_gradients(multihead_subspace_attention, inputs).items():
        assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("shape", [(0, 5, 2, 32), (2, 0, 2, 32)])
def test_kernel_on_nothing(poisoned, shape):
    for value in with_gradients(
        multihead_subspace_attention, {"w": tokens(*shape, device=poisoned)}
    ).values():
        assert value.shape == shape


# One giant among many tiny; empty first, middle and last; pairs that fill a tile exactly.
PACKINGS = [
    (0, 1, 15, 16, 17, 0, 63, 64, 65, 130, 0),
    (200, *[3] * 30),
    (64, 64, 64),
    (1,) * 70,
    (0, 0, 5),
]


@pytest.mark.parametrize("tile_rows", [40, 64, 128])
@pytest.mark.parametrize("lengths", PACKINGS, ids=lambda lengths: f"{len(lengths)}-{sum(lengths)}")
def test_kernel_in_segments(poisoned, lengths, tile_rows):
    # in 16 bits, as float32 visits 16 keys at a time and knows no blocks without a mask
    inputs = packed(lengths, 1, 32, dtype=torch.float16, device=poisoned)
    if tile_rows != 64:
        inputs["schedule"] = segment_schedule(inputs["cu_seqlens"], sum(lengths), tile_rows=tile_rows)
    assert_accurate(inputs, implementation="triton")


@pytest.mark.parametrize("width", [64, 96, 128])
@ALL_DTYPES
def test_kernel_in_segments_of_any_width(poisoned, width, dtype):
    assert_accurate(
        packed((3, 70, 20, 0, 9), 1, width, dtype=dtype, device=poisoned), implementation="triton"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("lengths", [(5, 9, 20, 7), (70, 9, 20, 70)])
def test_kernel_keeps_segments_apart(poisoned, lengths, dtype):
    """NaN and infinity in one segment, in a tile that it shares with others, stay there."""
    clean = packed(lengths, 1, dtype=dtype, device=poisoned)
    expected = with_gradients(multihead_subspace_attention, clean)
    first, end = clean["cu_seqlens"][1:3].tolist()
    for bad in (torch.nan, torch.inf):
        dirty = clean["w"].detach().clone()
        dirty[first:end] = bad
        got = with_gradients(multihead_subspace_attention, clean | {"w": dirty.requires_grad_()})
        for name, value in got.items():
            assert value[first:end].isnan().all(), name
            for rest in (slice(0, first), slice(end, None)):
                torch.testing.assert_close(value[rest], expected[name][rest], rtol=0, atol=0)


def test_kernel_does_not_mind_empty_tiles(poisoned):
    """Where the number of tiles is not known, the schedule ends with tiles of nothing."""
    inputs = packed((3, 70, 20), device=poisoned)
    tiles_, segments, rows = segment_schedule(inputs["cu_seqlens"], 93, tile_rows=64)
    schedule = SegmentSchedule(F.pad(tiles_, (0, 0, 0, 4)), segments, rows)
    expected = with_gradients(multihead_subspace_attention, inputs)
    for name, value in with_gradients(multihead_subspace_attention, inputs | {"schedule": schedule}).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


@ALL_DTYPES
@pytest.mark.parametrize("spread", [1e4, 1e-4])
def test_kernel_on_extreme_values(poisoned, spread, dtype):
    """Large scores leave each token to itself: the result is `w`, and nothing overflows."""
    if dtype == torch.float16 and spread > 1:
        spread = 1e3
    w = tokens(1, 70, 1, 64, dtype=dtype, device=poisoned, spread=spread)
    got = with_gradients(multihead_subspace_attention, {"w": w})
    assert all(value.isfinite().all() for value in got.values())
    if spread > 1:
        torch.testing.assert_close(got["out0"], w.detach(), rtol=1e-2, atol=0)
    else:
        mean = w.detach().double().mean(1, keepdim=True).expand_as(w)
        torch.testing.assert_close(got["out0"].double(), mean, rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("length", [1, 17, 200])
def test_kernel_on_equal_tokens(poisoned, length):
    """Tokens that are all the same share their weight, and the result is that token."""
    row = tokens(1, 1, 1, 96, device=poisoned).detach()
    w = row.expand(1, length, 1, 96).contiguous().requires_grad_()
    torch.testing.assert_close(multihead_subspace_attention(w), w)
