"""`segment_attention`: definition, gradients, registration, errors, schedules and kernels."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scdd.kernels import _dispatch, _segments
from scdd.kernels._segments import SegmentSchedule, segment_schedule
from scdd.kernels.segment_attention import (
    SegmentAttentionOutput,
    ops,
    segment_attention,
    segment_attention_with_lse,
    tiles,
)
from scdd.kernels.segment_attention.reference import key_gradients
from support.accuracy import DTYPES, assert_as_accurate_as_pytorch, error, in_float64, with_gradients

# what a tile meets: nothing, less and more than 16 and 64 rows, several tiles; empty first, inside and last
LENGTHS = (0, 1, 15, 16, 17, 0, 63, 64, 65, 130, 0)
BIASES = {"plain": "", "key": "k", "slope": "s", "both": "ks"}
BIASED = pytest.mark.parametrize("biases", BIASES.values(), ids=BIASES.keys())
ARGUMENTS = ("q", "k", "v", "cu_seqlens", "key_weight", "key_value", "slope", "coordinate")


def starts(lengths, device="cpu"):
    return torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32, device=device)


def make_inputs(
    lengths=LENGTHS, heads=2, width=32, biases="ks", *, dtype=torch.float32, device="cpu", spread=1.0
):
    """Random inputs by name; only the biases that are named by a letter."""
    generator = torch.Generator().manual_seed(sum(lengths) * 31 + width)
    rows = sum(lengths)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    inputs = {name: (spread * draw(rows, heads, width)).to(device, dtype).requires_grad_() for name in "qkv"}
    inputs["cu_seqlens"] = starts(lengths, device)
    if "k" in biases:
        inputs["key_weight"] = draw(heads).to(device, wide).requires_grad_()
        inputs["key_value"] = (5 * draw(rows).abs()).to(device, wide).requires_grad_()
    if "s" in biases:
        # a slope may turn negative while it is learnt
        inputs["slope"] = draw(heads).to(device, wide).requires_grad_()
        inputs["coordinate"] = (1000 + 3 * draw(rows)).to(device, wide)
    return inputs


def naive(q, k, v, cu_seqlens, scale=None, key_weight=None, key_value=None, slope=None, coordinate=None):
    """The formula head by head and segment by segment, in the dtype of the inputs."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    outs, wide = torch.zeros_like(q), torch.promote_types(q.dtype, torch.float32)
    lses = torch.zeros(q.shape[:2], dtype=wide, device=q.device)
    bounds = cu_seqlens.tolist()
    pieces = []
    for start, end in pairwise(bounds):
        heads = []
        for h in range(q.shape[1]):
            scores = scale * (q[start:end, h] @ k[start:end, h].T)
            if key_value is not None:
                scores = scores + key_weight[h] * (1 + key_value[start:end]).log()
            if coordinate is not None:
                c = coordinate[start:end]
                scores = scores - slope[h] * (c.unsqueeze(1) - c.unsqueeze(0)).abs()
            weights = torch.softmax(scores, 1).to(v.dtype)
            heads.append(weights @ v[start:end, h])
            if start < end:
                lses[start:end, h] = scores.detach().logsumexp(1).to(lses.dtype)
        pieces.append(torch.stack(heads, 1))
    outs = torch.cat(pieces) if pieces else outs
    return outs, lses


def operator(implementation="auto", **settings):
    """The operator with its settings, as a function of the inputs."""
    return lambda **inputs: segment_attention_with_lse(**inputs, implementation=implementation, **settings)


def check(inputs, implementation, *, spread=1.0, **kwargs):
    """Hold the operator to twice PyTorch's error.

    Two roundings are allowed beside, which it has and PyTorch has not: a score is known to its size times
    eps, and so is its weight when it is computed again from `lse`; and the gradient of a score is the
    difference of two numbers from different sums, where PyTorch's may cancel to zero (a segment of one row).
    """
    ours = with_gradients(operator(implementation, **kwargs), inputs)
    theirs = with_gradients(naive, inputs)
    exact = with_gradients(naive, in_float64(inputs))
    rows = len(inputs["q"])
    summed = {"dkey_weight": rows * rows, "dslope": rows * rows, "out1": 8}
    width = inputs["q"].shape[-1]
    rounding = torch.finfo(torch.float32).eps * spread**2
    # root mean square of q.k / sqrt(D) is spread**2, and of dout.v it is spread * sqrt(D)
    allowed = dict.fromkeys(("dq", "dk"), 8 * rounding) | {"dkey_value": 16 * rounding * width**0.5}
    allowed |= dict.fromkeys(("dkey_weight", "dslope"), 4 * rounding * (width * max(rows, 1)) ** 0.5)
    summed |= dict.fromkeys(("out0", "dv"), 64 * spread**4)
    if inputs["q"].dtype != torch.float32:
        # in both it is computed in float32, of scores that PyTorch rounds and we do not
        theirs["out1"], summed["out1"] = theirs["out1"].float(), rows
    for name, value in allowed.items():
        if name in ours and error(ours[name], exact[name]) <= value:
            del ours[name], theirs[name], exact[name]
    assert_as_accurate_as_pytorch(ours, theirs, exact, summed=summed)


# ------------------------------------------------------------------------------ definition, any device


@BIASED
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_matches_definition(device, dtype, implementation, biases):
    check(make_inputs(biases=biases, dtype=dtype, device=device), implementation)


@BIASED
@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_gradcheck(implementation, biases):
    inputs = make_inputs((2, 0, 3, 3), 2, 4, biases, dtype=torch.float64)
    names = list(inputs)

    def function(*tensors):
        return segment_attention(**dict(zip(names, tensors, strict=True)), implementation=implementation)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


@BIASED
def test_float64_is_exact(biases):
    inputs = make_inputs(biases=biases, dtype=torch.float64)
    exact = with_gradients(naive, inputs)
    for name, value in with_gradients(operator(), inputs).items():
        torch.testing.assert_close(value, exact[name], rtol=1e-10, atol=1e-10)


@BIASED
def test_a_segment_that_is_taken_in_parts(biases, monkeypatch):
    """Few scores at a time: 16 queries of the long segment, and segments of one length in several goes."""
    from scdd.kernels.segment_attention import reference

    monkeypatch.setattr(reference, "_MOST_SCORES", 2000)
    inputs = make_inputs((70, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9), biases=biases)
    check(inputs, "auto")


def test_scale(device):
    inputs = make_inputs(device=device)
    out = segment_attention(**inputs, scale=0.7)
    torch.testing.assert_close(out, naive(**inputs, scale=0.7)[0])


def test_returns_a_named_pair(device):
    inputs = make_inputs(device=device)
    found = segment_attention_with_lse(**inputs)
    assert isinstance(found, SegmentAttentionOutput)
    assert found.lse.shape == found.out.shape[:2]
    assert not found.lse.requires_grad
    torch.testing.assert_close(found.out, segment_attention(**inputs), rtol=0, atol=0)


def test_second_derivative_needs_the_reference():
    inputs = make_inputs((2, 3), dtype=torch.float64)
    (first,) = torch.autograd.grad(segment_attention(**inputs).sin().sum(), inputs["q"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    reference = segment_attention(**inputs, implementation="reference")
    (first,) = torch.autograd.grad(reference.sin().sum(), inputs["q"], create_graph=True)
    first.sum().backward()
    assert inputs["q"].grad is not None


@pytest.mark.parametrize("wanted", ["q", "v", "key_weight", "key_value", "slope"])
def test_each_gradient_alone(device, wanted):
    inputs = make_inputs(device=device)
    (expected,) = torch.autograd.grad(segment_attention(**inputs).sin().sum(), inputs[wanted])
    alone = {name: t.detach() for name, t in inputs.items()}
    alone[wanted].requires_grad_()
    (got,) = torch.autograd.grad(segment_attention(**alone).sin().sum(), alone[wanted])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_pieces_of_one_projection_are_read_in_place(device):
    inputs = make_inputs(device=device)
    whole = torch.stack([inputs[name].detach() for name in "qkv"], 1)
    pieces = inputs | dict(zip("qkv", whole.unbind(1), strict=True))
    assert not pieces["q"].is_contiguous()
    assert ops._unit_stride(pieces["q"]) is pieces["q"]
    torch.testing.assert_close(segment_attention(**pieces), segment_attention(**inputs), rtol=0, atol=0)


def test_any_memory_layout(device):
    inputs = make_inputs(device=device)
    turned = inputs | {name: inputs[name].detach().mT.contiguous().mT for name in "qkv"}
    torch.testing.assert_close(segment_attention(**turned), segment_attention(**inputs), rtol=0, atol=0)
    repeated = inputs | {"v": inputs["v"][:1].expand_as(inputs["v"])}
    expected = inputs | {"v": repeated["v"].contiguous()}
    torch.testing.assert_close(segment_attention(**repeated), segment_attention(**expected), rtol=0, atol=0)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0)])
@BIASED
def test_nothing_in_nothing_out(device, biases, lengths):
    inputs = make_inputs(lengths, biases=biases, device=device)
    for name, value in with_gradients(operator(), inputs).items():
        assert not value.count_nonzero(), name
        assert name.startswith("out") or value.shape == inputs[name[1:]].shape


@BIASED
def test_segments_do_not_see_one_another(device, biases):
    inputs = make_inputs(biases=biases, device=device)
    found = segment_attention(**inputs)
    bounds = inputs["cu_seqlens"].tolist()
    for start, end in pairwise(bounds):
        alone = {name: t if name in {"key_weight", "slope"} else t[start:end] for name, t in inputs.items()}
        alone["cu_seqlens"] = starts([end - start], device)
        torch.testing.assert_close(found[start:end], segment_attention(**alone), rtol=1e-5, atol=1e-5)


def test_order_of_keys_does_not_matter(device):
    inputs = make_inputs((40, 90), device=device)
    order = torch.cat([torch.randperm(40), 40 + torch.randperm(90)]).to(device)
    turned = {name: t[order] if len(t) == 130 else t for name, t in inputs.items()}
    torch.testing.assert_close(segment_attention(**turned), segment_attention(**inputs)[order])


def test_under_autocast(device):
    inputs = make_inputs(dtype=torch.bfloat16, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        cast = with_gradients(operator(), inputs)
    for name, value in with_gradients(operator(), inputs).items():
        torch.testing.assert_close(cast[name], value, rtol=0, atol=0)


# ------------------------------------------------------------------------------ registration


def operator_calls(device, biases):
    """Each registered operator with arguments that it would get."""
    inputs = {name: t.detach() for name, t in make_inputs((3, 0, 20), biases=biases, device=device).items()}
    schedule = segment_schedule(inputs["cu_seqlens"], 23, tile_rows=64)
    cut = (schedule.tiles, schedule.segments)
    q, k, v, cu_seqlens, *others = (inputs.get(name) for name in ARGUMENTS)
    out, lse = ops._forward(q, k, v, cu_seqlens, *cut, *others, 0.2, 64)
    yield ops._forward, (q, k, v, cu_seqlens, *cut, *others, 0.2, 64)
    yield (
        ops._backward,
        (v, q, k, v, out, lse, cu_seqlens, *cut, *others, 0.2, 64, "k" in biases, "s" in biases),
    )
    yield _segments._bounded_schedule, (cu_seqlens, 23, 64)


@BIASED
def test_registration(device, biases):
    for op, arguments in operator_calls(device, biases):
        torch.library.opcheck(op, arguments)


def test_gradients_that_are_not_asked_for_are_of_one_kind():
    """Where they are empty too they are what the fake says, as a captured graph relies on it."""
    like = torch.zeros(2, 3, dtype=torch.float64, device="meta")
    for gradient in key_gradients(None, None, None, like):
        assert (gradient.dtype, gradient.device, gradient.numel()) == (like.dtype, like.device, 0)


@pytest.mark.parametrize("biases", ["", "ks"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_compiles_to_one_graph_of_any_size(device, scheduled, biases):
    torch.compiler.reset()

    compiled = torch.compile(segment_attention_with_lse, fullgraph=True, dynamic=True)
    for lengths in (LENGTHS, (5, 0, 90, 2, 33)):
        inputs = make_inputs(lengths, biases=biases, device=device)
        schedule = segment_schedule(inputs["cu_seqlens"], sum(lengths), tile_rows=64) if scheduled else None
        eager = with_gradients(operator(schedule=schedule), inputs)
        for name, value in with_gradients(partial(compiled, schedule=schedule), inputs).items():
            torch.testing.assert_close(value, eager[name])


# ------------------------------------------------------------------------------ errors


def wrong(**changes):
    inputs = {name: t.detach() for name, t in make_inputs().items()}
    inputs["schedule"] = segment_schedule(inputs["cu_seqlens"], len(inputs["q"]), tile_rows=64)
    inputs |= {name: change(inputs.get(name)) for name, change in changes.items()}
    return segment_attention(**inputs)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"q": lambda t: t.tolist()}, TypeError, r"q is a list; pass a torch\.Tensor"),
        ({"q": lambda t: t.long()}, TypeError, r"q has dtype torch\.int64; cast it to float32"),
        ({"q": lambda t: t[:, 0]}, ValueError, r"q has shape \(371, 32\); reshape it to \[T, H, D\]"),
        ({"q": lambda t: t[..., :0]}, ValueError, r"q has shape \(371, 2, 0\).*D > 0"),
        ({"k": lambda t: t[:3]}, ValueError, r"k has shape \(3, 2, 32\); give it the shape \(371, 2, 32\)"),
        ({"v": lambda t: t.half()}, TypeError, r"v has dtype torch\.float16 and q has torch\.float32"),
        ({"k": lambda t: t.to("meta")}, ValueError, r"k is on meta and q is on cpu"),
        ({"scale": lambda t: 0.0}, ValueError, r"scale is 0\.0; it must be positive"),
        ({"scale": lambda t: math.nan}, ValueError, r"scale is nan"),
        ({"cu_seqlens": lambda t: t.float()}, TypeError, r"cu_seqlens has dtype torch\.float32; cast it"),
        ({"cu_seqlens": lambda t: t[None]}, ValueError, r"cu_seqlens has shape \(1, 12\).*\[S \+ 1\]"),
        ({"cu_seqlens": lambda t: t[:0]}, ValueError, r"cu_seqlens is empty"),
        ({"cu_seqlens": lambda t: t + 1}, ValueError, r"cu_seqlens starts at 1; the first segment starts"),
        ({"cu_seqlens": lambda t: t[:-3]}, ValueError, r"cu_seqlens ends at 176; .* number of rows, 371"),
        (
            {"cu_seqlens": lambda t: t[[0, 4, 3, 11]]},
            ValueError,
            r"cu_seqlens falls from 32 to 16 at 2; pass running totals",
        ),
        ({"key_weight": lambda t: None}, ValueError, r"key_value is given and key_weight is None"),
        ({"coordinate": lambda t: None}, ValueError, r"slope is given and coordinate is None"),
        ({"key_weight": lambda t: t[:1]}, ValueError, r"key_weight has shape \(1,\).*\(2,\), \[H\]"),
        ({"key_value": lambda t: t[:1]}, ValueError, r"key_value has shape \(1,\).*\(371,\), \[T\]"),
        ({"slope": lambda t: t.bfloat16()}, TypeError, r"slope has dtype .*slope\.to\(torch\.float32\)"),
        ({"coordinate": lambda t: t.to("meta")}, ValueError, r"coordinate is on meta and q is on cpu"),
        ({"schedule": lambda s: s._replace(tiles=s.tiles[:, :5])}, ValueError, r"schedule\.tiles has shape"),
        ({"schedule": lambda s: s._replace(segments=s.segments[:5])}, ValueError, r"schedule\.segments has"),
        ({"schedule": lambda s: s._replace(tiles=s.tiles.long())}, TypeError, r"schedule\.tiles has dtype"),
        ({"schedule": lambda s: s._replace(tiles=s.tiles.to("meta"))}, ValueError, r"tiles is on meta"),
        ({"schedule": lambda s: s._replace(tile_rows=0)}, ValueError, r"schedule\.tile_rows is 0"),
        (
            {"schedule": lambda s: s._replace(tiles=s.tiles.T.contiguous().T)},
            ValueError,
            r"tiles has strides",
        ),
        (
            {"schedule": lambda s: s._replace(segments=s.segments.repeat_interleave(2)[::2])},
            ValueError,
            r"schedule\.segments has strides \(2,\); the kernels read it",
        ),
        ({"implementation": lambda i: "cuda"}, ValueError, r"implementation is 'cuda'; choose one of"),
    ],
)
@pytest.mark.skipif(_dispatch.INTERPRET, reason="values of cu_seqlens are trusted where a schedule is used")
def test_refuses_and_says_what_to_do(changes, kind, message):
    with pytest.raises(kind, match=message):
        wrong(**changes)


def test_a_named_implementation_never_falls_back(monkeypatch):
    def message(inputs):
        with pytest.raises(ValueError, match="implementation='triton' can not be had") as raised:
            segment_attention(**inputs, implementation="triton")
        return str(raised.value)

    monkeypatch.setattr(_dispatch, "INTERPRET", False)
    assert ".cuda()" in message(make_inputs())
    monkeypatch.setattr(_dispatch, "INTERPRET", True)
    assert "float64" in message(make_inputs(dtype=torch.float64))
    assert "head dimension 48 and the kernels take 32, 64, 96, 128" in message(make_inputs(width=48))


def test_works_where_triton_is_absent():
    code = """
import sys
sys.modules["triton"] = None
import torch
from scdd.kernels.segment_attention import segment_attention
x = torch.ones(4, 1, 8, requires_grad=True)
segment_attention(x, x, x, torch.tensor([0, 1, 4])).sum().backward()
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------ schedules


def greedy(lengths, tile_rows):
    """Tiles by a plain loop: a segment joins those before it while all fit one tile."""
    groups, row = [], 0
    for segment, length in enumerate(lengths):
        if length:
            if groups and row + length - groups[-1][0] <= tile_rows:
                groups[-1][1], groups[-1][3] = row + length, segment
            else:
                groups.append([row, row + length, segment, segment])
        row += length
    groups.sort(key=lambda group: group[0] - group[1])
    return [
        (row, min(row + tile_rows, end), first, last, begin, end)
        for begin, end, first, last in groups
        for row in range(begin, end, tile_rows)
    ]


def random_lengths(seed):
    generator = np.random.default_rng(seed)
    choice = generator.choice([0, 0, 1, 2, 15, 16, 17, 63, 64, 65, 130], size=generator.integers(0, 40))
    return choice.tolist()


@pytest.mark.parametrize("tile_rows", [1, 16, 64, 128])
@pytest.mark.parametrize("seed", range(8))
def test_schedule_is_the_greedy_one(seed, tile_rows):
    lengths = random_lengths(seed)
    schedule = segment_schedule(starts(lengths), sum(lengths), tile_rows=tile_rows)
    assert [tuple(tile) for tile in schedule.tiles.tolist()] == greedy(lengths, tile_rows)
    assert schedule.segments.tolist() == np.repeat(np.arange(len(lengths)), lengths).tolist()
    assert {schedule.tiles.dtype, schedule.segments.dtype} == {torch.int32}
    assert schedule.tile_rows == tile_rows


@pytest.mark.parametrize("tile_rows", [1, 16, 64, 128])
@pytest.mark.parametrize("seed", range(8))
def test_schedule_without_a_loop_is_the_same(device, seed, tile_rows):
    lengths = random_lengths(seed)
    cu_seqlens = starts(lengths, device)
    cut, segments = _segments._bounded_schedule(cu_seqlens, sum(lengths), tile_rows)
    expected = greedy(lengths, tile_rows)
    assert [tuple(tile) for tile in cut[: len(expected)].tolist()] == expected
    assert not cut[len(expected) :].any()
    assert len(cut) == min(len(lengths) + sum(lengths) // tile_rows, 3 * (sum(lengths) // tile_rows) + 2)
    assert segments.tolist() == np.repeat(np.arange(len(lengths)), lengths).tolist()


def test_schedule_of_the_loader_is_the_same():
    pytest.importorskip("scdd._csr")
    from scdd.data.loading.schedule import tile_schedule

    lengths = random_lengths(3)
    theirs = tile_schedule(starts(lengths).numpy(), tile_rows=64)
    handed_over = SegmentSchedule(
        torch.from_numpy(theirs.tiles), torch.from_numpy(theirs.segments), theirs.tile_rows
    )
    ours = segment_schedule(starts(lengths), sum(lengths), tile_rows=64)
    assert torch.equal(handed_over.tiles, ours.tiles)
    assert torch.equal(handed_over.segments, ours.segments)


def test_schedule_without_a_loop_refuses_wrong_values():
    for values in ([1, 5], [0, 4], [0, 3, 2, 5]):
        with pytest.raises(RuntimeError, match="cu_seqlens must start at 0, not decrease and end"):
            _segments._bounded_schedule(torch.tensor(values), 5, 64)


def test_schedule_refuses_an_empty_tile():
    with pytest.raises(ValueError, match="tile_rows is 0; a tile has at least one row"):
        segment_schedule(starts([3]), 3, tile_rows=0)


# ------------------------------------------------------------------------------ tiles


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize("kernel", tiles.KERNELS)
def test_every_width_and_schedule_has_a_tile(kernel, element_size, biased):
    known = {tile for _, _, _, tile in tiles.every_tile()}
    for width in tiles.WIDTHS:
        for tile_rows in (1, 64, 100, 128, 256):
            tile = tiles.choose(kernel, width, element_size, tile_rows, biased=biased)
            assert tile in known
            assert tile.rows <= max(tile_rows, 64)


# ------------------------------------------------------------------------------ the kernels themselves


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernels, whose outputs start as NaN."""
    from scdd.kernels.segment_attention import launch

    poison(launch)
    return kernel_device


@BIASED
def test_kernel(poisoned, biases):
    check(make_inputs(biases=biases, device=poisoned), "triton")


@pytest.mark.parametrize("biases", ["", "ks"])
@pytest.mark.parametrize("width", tiles.WIDTHS)
def test_kernel_of_any_width(poisoned, width, biases):
    check(make_inputs((0, 17, 64, 130), 1, width, biases, device=poisoned), "triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("biases", ["", "ks"])
@pytest.mark.parametrize("width", [64, 96])
def test_kernel_in_sixteen_bits(poisoned, width, biases, dtype):
    check(make_inputs((0, 17, 64, 130), 1, width, biases, dtype=dtype, device=poisoned), "triton")


@pytest.mark.parametrize(
    "lengths", [(300,), (200, *[1] * 40), (*[3] * 40, 200), (64, 64), (128, 128), (129,), (0, 1, 0)]
)
def test_kernel_on_awkward_lengths(poisoned, lengths):
    check(make_inputs(lengths, 1, device=poisoned), "triton")


@pytest.mark.parametrize("tile_rows", [1, 16, 64, 100, 128, 256])
@pytest.mark.parametrize("bounded", [False, True])
def test_kernel_with_any_schedule(poisoned, tile_rows, bounded):
    """A loader may cut to any number of rows; from a GPU come empty tiles as well."""
    inputs = make_inputs((0, 17, 3, 70) if tile_rows > 1 else (0, 3, 5), 1, device=poisoned)
    rows = len(inputs["q"])
    schedule = segment_schedule(inputs["cu_seqlens"], rows, tile_rows=tile_rows)
    if bounded:
        made = _segments._bounded_schedule(inputs["cu_seqlens"], rows, tile_rows)
        schedule = SegmentSchedule(*made, tile_rows)
    check(inputs, "triton", schedule=schedule)


@pytest.mark.parametrize(
    ("spread", "dtype"),
    [
        *((spread, dtype) for spread in (1e-4, 10, 100, 1e4) for dtype in ("fp32", "bf16")),
        (10, "fp16"),
    ],
)
def test_kernel_on_extreme_values(poisoned, spread, dtype):
    """Scores of up to 1e9, of which one takes all the weight; and so small that all have the same."""
    inputs = make_inputs((5, 70), 1, biases="", dtype=DTYPES[dtype], device=poisoned, spread=spread)
    check(inputs, "triton", spread=max(spread, 1))


def test_kernel_shows_a_query_that_is_not_a_number(poisoned):
    """It attends to all of its segment, so all of their gradients are lost; those of others are not."""
    inputs = make_inputs((20, 3, 70), device=poisoned)
    with torch.no_grad():
        inputs["q"][21] = torch.nan
        inputs["q"][40] = torch.nan
    found = with_gradients(operator("triton"), inputs)
    for name in ("dk", "dv", "dkey_value"):
        assert found[name][:20].isfinite().all(), name
        assert found[name][20:].isnan().all(), name


def test_kernel_on_constant_rows(poisoned):
    """Equal keys have equal weights, whatever their size: each query gets the mean."""
    inputs = make_inputs((5, 70), 1, biases="", device=poisoned)
    with torch.no_grad():
        inputs["k"].fill_(1e4)
        inputs["v"].fill_(-12345.678)
    got = with_gradients(operator("triton"), inputs)
    torch.testing.assert_close(got["out0"], inputs["v"], rtol=1e-6, atol=0)
    assert got["dq"].abs().max() < 1e-6 * 1e4 * 12345 * 32**0.5


@BIASED
def test_kernel_keeps_segments_apart(poisoned, biases):
    """NaN and infinity in one segment, in a tile that it shares with others, stay there."""
    lengths = (20, 9, 30, 70)
    clean = make_inputs(lengths, 1, biases=biases, device=poisoned)
    rows = torch.arange(129, device=poisoned)
    others = (rows < 20) | (rows >= 29)
    expected = with_gradients(operator("triton"), clean)
    for value in (torch.nan, torch.inf):
        dirty = {name: t.detach().clone() for name, t in clean.items()}
        for name in "qkv":
            dirty[name][~others] = value
        dirty = {name: t.requires_grad_(clean[name].requires_grad) for name, t in dirty.items()}
        for name, found in with_gradients(operator("triton"), dirty).items():
            if name in {"dkey_weight", "dslope"}:
                continue
            torch.testing.assert_close(found[others], expected[name][others], rtol=0, atol=0)
            assert not found[~others].isfinite().any(), name


def test_kernel_lets_a_bad_cotangent_be_seen(poisoned):
    inputs = make_inputs((20, 9, 30), 1, biases="", device=poisoned)
    out = segment_attention(**inputs, implementation="triton")
    dout = torch.ones_like(out)
    dout[22] = torch.nan
    for gradient in torch.autograd.grad(out, [inputs[name] for name in "kv"], dout):
        assert gradient[20:29].isnan().all()
        assert gradient[:20].isfinite().all()
        assert gradient[29:].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_gives_the_same_bits_twice(poisoned, dtype):
    inputs = make_inputs((17, 3, 130), dtype=dtype, device=poisoned)
    first = with_gradients(operator("triton"), inputs)
    for name, value in with_gradients(operator("triton"), inputs).items():
        assert torch.equal(value, first[name]), name


def test_kernel_does_not_depend_on_the_batch(poisoned):
    """A long segment gets the same bits whatever lies before and after it."""
    inputs = make_inputs((9, 130, 20), biases="", device=poisoned)
    alone = {name: inputs[name].detach()[9:139].requires_grad_() for name in "qkv"}
    alone["cu_seqlens"] = starts([130], poisoned)
    found = segment_attention(**inputs, implementation="triton")[9:139]
    assert torch.equal(found, segment_attention(**alone, implementation="triton"))


def test_kernel_reads_pieces_in_place(poisoned):
    inputs = make_inputs((9, 70), device=poisoned)
    whole = torch.stack([inputs[name].detach() for name in "qkv"], 1)
    pieces = inputs | {n: t.requires_grad_() for n, t in zip("qkv", whole.unbind(1), strict=True)}
    expected = with_gradients(operator("triton"), inputs)
    for name, value in with_gradients(operator("triton"), pieces).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("lengths", [(), (0, 0)])
def test_kernel_on_nothing(poisoned, lengths):
    inputs = make_inputs(lengths, device=poisoned)
    made = _segments._bounded_schedule(inputs["cu_seqlens"], 0, 64)
    for schedule in (None, SegmentSchedule(*made, 64)):
        for value in with_gradients(operator("triton", schedule=schedule), inputs).values():
            assert not value.count_nonzero()


def test_a_coordinate_that_would_get_no_gradient_is_refused():
    q = torch.randn(5, 2, 32)
    biases = {"slope": torch.ones(2), "coordinate": torch.rand(5, requires_grad=True)}
    lengths = torch.tensor([0, 5], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"pass coordinate\.detach\(\)"):
        segment_attention(q, q, q, lengths, **biases)
    with torch.no_grad():
        segment_attention(q, q, q, lengths, **biases)
