"""`masked_linear_cross_entropy`: definition, gradients, bound, registration, errors and kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scdd.kernels import _dispatch
from scdd.kernels.linear_cross_entropy import chunks, masked_linear_cross_entropy, ops, tiles
from support.accuracy import DTYPES, assert_as_accurate_as_pytorch, in_float64, with_gradients

DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
REDUCTION = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def make_inputs(
    tokens=40, width=12, genes=37, *, share=0.4, bias=True, dtype=torch.float32, device="cpu", spread=1.0
):
    """Random inputs by name; about `share` of the tokens are masked."""
    generator = torch.Generator().manual_seed(tokens + width + genes)
    hidden = spread * torch.randn(tokens, width, generator=generator)
    weight = torch.randn(genes, width, generator=generator) * width**-0.5
    offset = torch.randn(genes, generator=generator)
    gene = torch.randint(genes, (tokens,), generator=generator)
    target = torch.where(torch.rand(tokens, generator=generator) < share, gene, -100)
    inputs = {"hidden": hidden, "weight": weight} | ({"bias": offset} if bias else {})
    inputs = {name: t.to(device, dtype).requires_grad_() for name, t in inputs.items()}
    return inputs | {"target": target.to(device)}


def naive(hidden, weight, target, bias=None, reduction="mean", max_masked=None):
    """Index, linear, cross-entropy: what users write, its loss in the dtype of the operator's."""
    some = (target != -100).nonzero().squeeze(1)
    logits = F.linear(hidden[some], weight, bias)
    if hidden.dtype != torch.float64:
        logits = logits.float()
    losses = F.cross_entropy(logits, target[some].long(), reduction=reduction)
    if reduction != "none":
        return losses
    return losses.new_zeros(len(target)).index_copy(0, some, losses)


def operator(implementation="auto"):
    return lambda **inputs: masked_linear_cross_entropy(**inputs, implementation=implementation)


def check(inputs, implementation):
    exact = with_gradients(naive, in_float64(inputs))
    ours = with_gradients(operator(implementation), inputs)
    counts = {"dweight": len(inputs["target"]), "dbias": len(inputs["target"]), "out0": len(inputs["weight"])}
    summed = counts | {"dhidden": len(inputs["weight"])}
    theirs = with_gradients(naive, inputs)
    if not ours["out0"].ndim:
        # the error of one number may be small by luck: allow the rounding of the logits beside
        loss, rounding = exact.pop("out0"), torch.finfo(inputs["hidden"].dtype).eps
        allowed = 2 * (theirs.pop("out0").cpu() - loss).abs() + rounding * loss.abs()
        assert (ours.pop("out0").cpu() - loss).abs() <= allowed
    assert_as_accurate_as_pytorch(ours, theirs, exact, summed=summed)


@pytest.fixture
def all_rows(monkeypatch):
    """Compute the rows without a token, too, as where their number is not at hand."""
    monkeypatch.setattr(chunks, "rows_to_compute", lambda index, tokens: index.shape[0])


@pytest.fixture
def small_chunks(monkeypatch):
    """Make several chunks of few tokens, the last of them short."""
    monkeypatch.setattr(tiles, "chunk_rows", lambda rows, *_, **__: min(rows, 7))


@pytest.fixture
def poisoned_logits(monkeypatch):
    """Fill what is allocated for logits with NaN."""

    def new_empty(self, *args, **kwargs):
        out = allocate(self, *args, **kwargs)
        return out.fill_(torch.nan) if out.is_floating_point() else out

    allocate = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)


# ------------------------------------------------------------------------------ definition, any device


@DTYPE
@REDUCTION
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_matches_definition(device, implementation, bias, reduction, dtype):
    check(make_inputs(bias=bias, dtype=dtype, device=device) | {"reduction": reduction}, implementation)


@REDUCTION
@DTYPE
def test_in_several_chunks(device, small_chunks, all_rows, reduction, dtype):
    check(make_inputs(dtype=dtype, device=device) | {"reduction": reduction, "max_masked": 30}, "auto")


@DTYPE
@REDUCTION
def test_logits_end_in_zeros(device, poisoned_logits, reduction, dtype):
    """The product of oneDNN reads past rows of odd length: what was in memory there became NaN at times."""
    check(make_inputs(100, dtype=dtype, device=device) | {"reduction": reduction}, "auto")


@REDUCTION
def test_float64_is_exact(reduction, small_chunks):
    inputs = make_inputs(dtype=torch.float64) | {"reduction": reduction}
    exact = with_gradients(naive, inputs)
    for name, value in with_gradients(operator(), inputs).items():
        torch.testing.assert_close(value, exact[name], rtol=1e-12, atol=1e-12)


@REDUCTION
@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_gradcheck(implementation, reduction):
    inputs = make_inputs(6, 3, 5, dtype=torch.float64)

    def function(hidden, weight, bias):
        return operator(implementation)(
            hidden=hidden, weight=weight, bias=bias, target=inputs["target"], reduction=reduction
        )

    assert torch.autograd.gradcheck(function, (inputs["hidden"], inputs["weight"], inputs["bias"]))


@REDUCTION
def test_without_a_gradient(device, reduction):
    inputs = make_inputs(device=device) | {"reduction": reduction}
    with torch.no_grad():
        got = operator()(**inputs)
    assert not got.requires_grad
    torch.testing.assert_close(got, naive(**inputs))


@REDUCTION
@pytest.mark.parametrize("wanted", ["hidden", "weight", "bias"])
def test_one_gradient_alone(device, wanted, reduction):
    inputs = make_inputs(device=device) | {"reduction": reduction}
    all_of_them = with_gradients(operator(), inputs)
    for name in ("hidden", "weight", "bias"):
        inputs[name] = inputs[name].detach().requires_grad_(name == wanted)
    got = with_gradients(operator(), inputs)
    assert got.keys() == {"out0", f"d{wanted}"}
    torch.testing.assert_close(got[f"d{wanted}"], all_of_them[f"d{wanted}"])


@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("max_masked", [None, 30, 40, 1000])
def test_a_bound_that_holds_changes_nothing(device, max_masked, implementation):
    inputs = make_inputs(device=device)
    got = with_gradients(operator(implementation), inputs | {"max_masked": max_masked})
    for name, expected in with_gradients(naive, inputs).items():
        torch.testing.assert_close(got[name], expected)


@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("max_masked", [0, 3])
def test_a_bound_that_does_not_hold_is_seen(device, max_masked, implementation):
    """Rather than that tokens are left out in silence: NaN for them, and so for their mean and sum."""
    inputs = make_inputs(device=device) | {"max_masked": max_masked}
    for reduction in ("mean", "sum"):
        assert operator(implementation)(**inputs, reduction=reduction).isnan()
    losses = operator(implementation)(**inputs, reduction="none")
    masked = inputs["target"] != -100
    surplus = masked & (masked.cumsum(0) > max_masked)
    assert torch.equal(losses.isnan(), surplus)
    torch.testing.assert_close(
        losses[~surplus], naive(**make_inputs(device=device), reduction="none")[~surplus]
    )


@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_tokens_that_are_not_masked_do_not_matter(device, implementation):
    """NaN and infinity in them leak neither to the loss nor to the weight."""
    inputs = make_inputs(device=device)
    expected = with_gradients(operator(implementation), inputs)
    hidden = inputs["hidden"].detach().clone()
    hidden[inputs["target"] == -100] = torch.nan
    for bound in (None, 35):
        got = with_gradients(
            operator(implementation), inputs | {"hidden": hidden.requires_grad_(), "max_masked": bound}
        )
        for name, value in got.items():
            torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_none_or_all_masked(device, implementation, share):
    inputs = make_inputs(share=share, device=device) | {"reduction": "sum"}
    expected = with_gradients(naive, inputs)
    for name, value in with_gradients(operator(implementation), inputs).items():
        torch.testing.assert_close(value, expected[name])
    assert operator(implementation)(**inputs | {"reduction": "mean"}).isnan() == (share == 0)


@REDUCTION
@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_no_gradient_where_none_is_masked(device, implementation, reduction):
    """Also of a mean, which is NaN: a step that masks nothing must not undo a model."""
    inputs = make_inputs(share=0.0, device=device) | {"reduction": reduction}
    for name, value in with_gradients(operator(implementation), inputs).items():
        assert name.startswith("out") or not value.count_nonzero(), name


@REDUCTION
def test_under_autocast(device, reduction):
    inputs = make_inputs(200, 32, 300, device=device) | {"reduction": reduction}
    with torch.autocast(device.type, dtype=torch.bfloat16):
        cast = with_gradients(operator(), inputs)
    for name, value in with_gradients(operator(), inputs).items():
        torch.testing.assert_close(cast[name], value, rtol=0, atol=0)


@REDUCTION
def test_no_token(device, reduction):
    inputs = make_inputs(0, device=device) | {"reduction": reduction}
    got = with_gradients(operator(), inputs)
    assert got["out0"].shape == ((0,) if reduction == "none" else ())
    if reduction != "mean":
        assert all(not value.count_nonzero() for value in got.values())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_another_ignore_index_and_integer(device, dtype):
    inputs = make_inputs(device=device)
    expected = operator()(**inputs)
    target = inputs["target"].masked_fill(inputs["target"] == -100, -1).to(dtype)
    torch.testing.assert_close(operator()(**inputs | {"target": target}, ignore_index=-1), expected)


def test_any_memory_layout(device):
    inputs = make_inputs(device=device)
    turned = {n: t.detach().t().contiguous().t().requires_grad_() for n, t in inputs.items() if t.ndim == 2}
    got = with_gradients(operator(), inputs | turned)
    for name, expected in with_gradients(operator(), inputs).items():
        torch.testing.assert_close(got[name], expected, rtol=0, atol=0)


def test_a_target_out_of_range_raises_on_a_cpu():
    if _dispatch.INTERPRET:
        pytest.skip("the kernel answers for the CPU")
    inputs = make_inputs(share=1.0)
    inputs["target"][3] = 37
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        operator()(**inputs)


def test_gathers_masked_tokens_in_order():
    target = torch.tensor([-100, 4, -100, 2, 7, -100])
    assert chunks.gather(target, -100, 5).tolist() == [1, 3, 4, 6, 6]
    assert chunks.gather(target, -100, 2).tolist() == [1, 3]
    values = torch.tensor([1.0, 2.0, 3.0, 9.0, 9.0])
    assert chunks.scatter(values, torch.tensor([1, 3, 4, 6, 6]), 6).tolist() == [0, 1, 0, 2, 3, 0]


# ------------------------------------------------------------------------------ registration


def test_registration(device):
    inputs = {name: t.detach() for name, t in make_inputs(device=device).items()}
    for bias in (None, inputs["bias"]):
        arguments = (inputs["hidden"], inputs["weight"], bias, inputs["target"])
        losses, lse, index = ops._losses(*arguments, -100, 30)
        torch.library.opcheck(ops._losses, (*arguments, -100, 30))
        for wanted in ((True, True, bias is not None), (False, True, False), (True, False, False)):
            torch.library.opcheck(ops._gradients, (*arguments, -100, 30, *wanted))
            torch.library.opcheck(ops._backward, (losses, *arguments, lse, index, -100, *wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@REDUCTION
def test_compiles_to_one_graph_of_any_size(device, reduction, dtype):
    torch.compiler.reset()
    compiled = torch.compile(operator(), fullgraph=True, dynamic=True)
    for tokens in (40, 50):
        inputs = make_inputs(tokens, dtype=dtype, device=device) | {"reduction": reduction, "max_masked": 35}
        eager = with_gradients(operator(), inputs)
        for name, value in with_gradients(compiled, inputs).items():
            torch.testing.assert_close(value, eager[name])


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"hidden": [1.0]}, TypeError, r"hidden is a list; pass a torch\.Tensor"),
        ({"hidden": torch.zeros(2, 20, 12)}, ValueError, r"hidden has shape \(2, 20, 12\).*\[T, D\]"),
        ({"weight": torch.zeros(37, 11)}, ValueError, r"weight has shape \(37, 11\).*\(37, 12\), \[V, D\]"),
        ({"weight": torch.zeros(0, 12)}, ValueError, r"one channel and one gene at least"),
        (
            {"weight": torch.zeros(37, 12).half()},
            TypeError,
            r"weight has dtype torch\.float16 and hidden has",
        ),
        (
            {"weight": torch.zeros(37, 12, device="meta")},
            ValueError,
            r"weight is on meta and hidden is on cpu",
        ),
        ({"bias": torch.zeros(36)}, ValueError, r"bias has shape \(36,\).*\(37,\), \[V\]"),
        ({"target": torch.zeros(40)}, TypeError, r"target has dtype torch\.float32; cast it with target\.to"),
        ({"target": torch.zeros(41).long()}, ValueError, r"target has shape \(41,\).*\(40,\), \[T\]"),
        ({"max_masked": -1}, ValueError, r"max_masked is -1; it counts tokens, or pass None"),
        ({"reduction": "max"}, ValueError, r"reduction is 'max'; choose one of 'mean', 'sum', 'none'"),
        ({"implementation": "cuda"}, ValueError, r"implementation is 'cuda'; choose one of"),
    ],
)
def test_refuses_and_says_what_to_do(changes, kind, message):
    with pytest.raises(kind, match=message):
        masked_linear_cross_entropy(**(make_inputs() | changes))


# ------------------------------------------------------------------------------ tiles


@pytest.mark.parametrize("rows", [1, 127, 128, 8192, 10**6])
@pytest.mark.parametrize("vocabulary", [5, 20_000, 60_001, 10**7])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_chunks_are_few_and_fit(rows, vocabulary, on_gpu):
    size = tiles.chunk_rows(rows, vocabulary, 2, on_gpu=on_gpu)
    assert 1 <= size <= rows
    assert size <= 128 or size * vocabulary * 2 <= tiles._CHUNK_BYTES[on_gpu]
    # no chunk is much smaller than the others
    assert size == rows or rows / (size * -(-rows // size)) > 0.5


# ------------------------------------------------------------------------------ the kernel itself


@pytest.fixture
def poisoned(kernel_device, poisoned_logits):
    """Give the device of the kernel, where the logits start as NaN."""
    return kernel_device


@REDUCTION
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("genes", [1, 37, 64, 4096, 9001])
def test_kernel(poisoned, all_rows, small_chunks, genes, bias, reduction):
    inputs = make_inputs(30, 8, genes, bias=bias, device=poisoned) | {
        "reduction": reduction,
        "max_masked": 25,
    }
    check(inputs, "triton")


@REDUCTION
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_kernel_in_sixteen_bits(poisoned, dtype, reduction):
    check(make_inputs(30, 16, 300, dtype=dtype, device=poisoned) | {"reduction": reduction}, "triton")


@pytest.mark.parametrize("spread", [1e4, 1e-6, 0.0])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_kernel_on_extreme_logits(poisoned, spread, reduction):
    check(make_inputs(20, 8, 50, spread=spread, device=poisoned) | {"reduction": reduction}, "triton")


@REDUCTION
def test_kernel_with_genes_that_are_ruled_out(poisoned, reduction):
    """By a bias of minus infinity, whole blocks of them first."""
    width = tiles.choose(4).width
    inputs = make_inputs(20, 8, width + 40, share=1.0, device=poisoned) | {"reduction": reduction}
    inputs["bias"] = torch.zeros(width + 40, device=poisoned).index_fill_(
        0, torch.arange(width + 9, device=poisoned), -torch.inf
    )
    inputs["target"] = width + 9 + inputs["target"] % 31
    check(inputs, "triton")


@REDUCTION
def test_kernel_leaves_out_what_is_not_masked(poisoned, all_rows, small_chunks, reduction):
    inputs = make_inputs(30, device=poisoned) | {"reduction": reduction}
    # what fills the rows without a token
    inputs["target"][-1] = -100
    expected = with_gradients(naive, inputs)
    hidden = inputs["hidden"].detach().clone()
    hidden[inputs["target"] == -100] = torch.nan
    inputs["hidden"] = hidden.requires_grad_()
    for bound in (None, 25):
        for name, value in with_gradients(operator("triton"), inputs | {"max_masked": bound}).items():
            torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_kernel_with_none_or_all_masked(poisoned, share):
    check(make_inputs(20, share=share, device=poisoned) | {"reduction": "sum"}, "triton")


@pytest.mark.parametrize("gene", [37, 10**6, -1])
def test_kernel_shows_a_target_out_of_range(poisoned, gene):
    inputs = make_inputs(10, device=poisoned)
    inputs["target"][4] = gene
    losses = operator("triton")(**inputs, reduction="none")
    assert losses.isnan().nonzero().flatten().tolist() == [4]


@REDUCTION
def test_kernel_gives_the_same_bits_twice(poisoned, small_chunks, reduction):
    inputs = make_inputs(30, device=poisoned) | {"reduction": reduction}
    first = with_gradients(operator("triton"), inputs)
    for name, value in with_gradients(operator("triton"), inputs).items():
        assert torch.equal(value, first[name]), name
