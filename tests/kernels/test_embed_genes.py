"""`embed_genes`: definition, gradients, registration, errors and kernels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scdd.kernels.embed_genes import SoftBins, ValueMLP, embed_genes, ops, reference, tiles
from support.accuracy import DTYPES, assert_as_accurate_as_pytorch, in_float64, with_gradients

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())

# encoding, streams, prefix, norm, affine
FORMS = {
    "genes": ("none", False, False, "none", False),
    "layer": ("none", False, False, "layer", True),
    "bins": ("bins", False, False, "layer", True),
    "mixed": ("mixed", True, True, "rms", True),
    "silu": ("silu", True, False, "layer", False),
    "gelu": ("gelu", False, True, "none", True),
    "streams": ("none", True, True, "layer", True),
    "all": ("bins", True, True, "rms", False),
    "all-layer": ("mixed", True, True, "layer", True),
}
FORM = pytest.mark.parametrize("form", FORMS)


def make_inputs(
    form="all", *, tokens=37, genes=11, width=24, bins=5, hidden=None, dtype=torch.float32, device="cpu"
):
    """The inputs of `operator` by name; values of tokens that have none are NaN."""
    encoding, streams, prefix, norm, affine = FORMS[form]
    generator = torch.Generator().manual_seed(tokens * 101 + width)

    def draw(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=generator)).to(device, dtype).requires_grad_()

    ids = torch.randint(-2 if prefix else 0, genes, (tokens,), generator=generator, dtype=torch.int32)
    inputs = {"genes": ids.to(device), "gene_table": draw(genes, width), "norm": norm}
    valued = ids >= 0
    if streams:
        stream = torch.randint(0, 2, (tokens,), generator=generator, dtype=torch.int32)
        inputs |= {"streams": stream.to(device), "stream_table": draw(2, width), "value_stream": 1}
        valued &= stream == 1
    if prefix:
        inputs["prefix_table"] = draw(2, width)
    if affine:
        inputs |= {"weight": draw(width), "bias": draw(width)}
    if encoding != "none":
        values = 4 * torch.rand(tokens, generator=generator)
        values[~valued] = torch.nan
        inputs["values"] = values.to(device).requires_grad_()
        hidden = hidden or (bins + 2 if encoding == "mixed" else bins)
        inputs |= {"w": draw(hidden), "b": draw(hidden), "table": draw(bins, width)}
        inputs["kind"] = encoding
    if encoding == "mixed":
        inputs["mixing"] = draw(bins, hidden)
    if encoding in {"silu", "gelu"}:
        inputs["offset"] = draw(width)
    return inputs


def operator(genes, gene_table, kind=None, w=None, b=None, table=None, mixing=None, offset=None, **rest):
    """`embed_genes` with the tensors of the encoding as plain arguments."""
    encoding = None
    if kind in {"bins", "mixed"}:
        encoding = SoftBins(w, b, table, mixing)
    elif kind is not None:
        encoding = ValueMLP(w, b, table, offset, kind)
    return embed_genes(genes, gene_table=gene_table, encoding=encoding, eps=1e-5, **rest)


def naive(
    genes, gene_table, norm, kind=None, w=None, b=None, table=None, mixing=None, offset=None, values=None,
    streams=None, stream_table=None, value_stream=None, prefix_table=None, weight=None, bias=None,
):  # fmt: skip
    """Token by token, as the formula says, in the dtype of the tables."""
    rows = []
    for t, gene in enumerate(genes.tolist()):
        row = gene_table[gene] if gene >= 0 else prefix_table[-1 - gene]
        stream = None if streams is None else int(streams[t])
        if kind is not None and gene >= 0 and (value_stream is None or stream == value_stream):
            hidden = w * values[t].to(w.dtype) + b
            if kind == "mixed":
                hidden = mixing @ F.leaky_relu(hidden, 0.1)
            if kind in {"silu", "gelu"}:
                hidden = F.silu(hidden) if kind == "silu" else F.gelu(hidden, approximate="tanh")
                row = row + offset
            else:
                hidden = hidden.softmax(0)
            row = row + hidden @ table
        rows.append(row if stream_table is None else row + stream_table[stream])
    y = torch.stack(rows) if rows else gene_table.new_zeros(0, gene_table.shape[1])
    # a weight that no token uses has a gradient too, of zeros
    every = (gene_table, w, b, table, mixing, offset, values, stream_table, prefix_table, weight, bias)
    y = y + sum(x[:0].sum().to(y.dtype) for x in every if x is not None)
    if norm == "layer":
        return F.layer_norm(y, y.shape[-1:], weight, bias, 1e-5)
    if norm == "rms":
        y = F.rms_norm(y, y.shape[-1:], None, 1e-5)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def check(inputs, **kwargs):
    """Hold the operator to the accuracy of PyTorch."""
    exact = with_gradients(naive, in_float64(inputs))
    theirs = with_gradients(naive, inputs)
    ours = with_gradients(lambda **x: operator(**x, **kwargs), inputs)
    tokens = inputs["genes"].shape[0]
    summed = {name: 16 * max(tokens, 1) for name in ours}
    assert_as_accurate_as_pytorch(ours, theirs, exact, summed=summed)


# ------------------------------------------------------------------------------ definition, any device


@FORM
@EVERY_DTYPE
@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_matches_definition(device, form, dtype, implementation):
    check(make_inputs(form, dtype=dtype, device=device), implementation=implementation)


@FORM
@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_is_exact_in_float64(form, implementation):
    inputs = in_float64(make_inputs(form))
    exact = with_gradients(naive, inputs)
    for name, value in with_gradients(
        lambda **x: operator(**x, implementation=implementation), inputs
    ).items():
        torch.testing.assert_close(value, exact[name], rtol=1e-10, atol=1e-10, msg=name)


@FORM
@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_gradcheck(form, implementation):
    inputs = in_float64(make_inputs(form, tokens=5, genes=4, width=6, bins=3))
    if "values" in inputs:
        inputs["values"] = inputs["values"].detach().nan_to_num(1.0).requires_grad_()
    names = [name for name, x in inputs.items() if isinstance(x, torch.Tensor) and x.requires_grad]
    rest = {name: x for name, x in inputs.items() if name not in names}

    def function(*tensors):
        return operator(**dict(zip(names, tensors, strict=True)), **rest, implementation=implementation)

    assert torch.autograd.gradcheck(function, [inputs[name] for name in names])


def test_second_derivative_needs_the_reference():
    inputs = in_float64(make_inputs("bins", tokens=3, genes=4, width=4, bins=3))
    (first,) = torch.autograd.grad(operator(**inputs).sin().sum(), inputs["values"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    y = operator(**inputs, implementation="reference")
    (first,) = torch.autograd.grad(y.sin().sum(), inputs["values"], create_graph=True)
    first.sum().backward()


def test_a_frozen_table_has_no_gradient(device):
    inputs = make_inputs("all", device=device)
    inputs["gene_table"].requires_grad_(False)
    inputs["prefix_table"].requires_grad_(False)
    full = with_gradients(operator, make_inputs("all", device=device))
    got = with_gradients(operator, inputs)
    assert "dgene_table" not in got
    for name, value in got.items():
        torch.testing.assert_close(value, full[name])


def test_a_cell_does_not_depend_on_its_batch(device):
    inputs = {
        name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in make_inputs("all").items()
    }
    inputs = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    whole = operator(**inputs)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0)).to(device)
    part = inputs | {name: inputs[name][order[:9]] for name in ("genes", "values", "streams")}
    torch.testing.assert_close(operator(**part), whole[order[:9]], rtol=1e-6, atol=1e-6)


def test_one_row_of_streams_needs_no_streams(device):
    inputs = make_inputs("layer", device=device)
    row = torch.randn(1, 24, device=device, requires_grad=True)
    got = operator(**inputs, stream_table=row)
    expected = operator(**inputs, stream_table=row, streams=torch.zeros_like(inputs["genes"]))
    torch.testing.assert_close(got, expected)
    assert torch.autograd.grad(got.square().sum(), row)[0].abs().sum() > 0


@FORM
def test_nothing_in_nothing_out(device, form):
    results = with_gradients(operator, make_inputs(form, tokens=0, device=device))
    assert results["out0"].shape == (0, 24)
    assert all(not value.count_nonzero() for value in results.values())


@EVERY_DTYPE
def test_values_of_any_dtype(device, dtype):
    inputs = make_inputs("bins", device=device)
    inputs["values"] = inputs["values"].detach().to(dtype).requires_grad_()
    got = with_gradients(operator, inputs)
    assert got["dvalues"].dtype == dtype


# ------------------------------------------------------------------------------ registration


def operator_calls(form, device):
    """Both registered operators with arguments that they would get."""
    inputs = {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in make_inputs(form).items()}
    calls = []
    original = ops.EmbedGenes.apply
    try:
        ops.EmbedGenes.apply = lambda *operands: calls.append(operands) or original(*operands)
        operator(**{n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in inputs.items()})
    finally:
        ops.EmbedGenes.apply = original
    (operands,) = calls
    y, mean, rstd = ops._forward(*operands)
    yield ops._forward, operands
    for tables in (True, False):
        yield ops._backward, (torch.ones_like(y), mean, rstd, tables, *operands)


@FORM
def test_registration(device, form):
    for op, arguments in operator_calls(form, device):
        torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("form", ["mixed", "silu", "genes"])
def test_compiles_to_one_graph_of_any_size(device, form):
    torch.compiler.reset()
    compiled = torch.compile(operator, fullgraph=True, dynamic=True)
    for tokens in (37, 50):
        inputs = make_inputs(form, tokens=tokens, device=device)
        eager = with_gradients(operator, inputs)
        for name, value in with_gradients(compiled, inputs).items():
            torch.testing.assert_close(value, eager[name])


@pytest.mark.parametrize("form", ["mixed", "silu"])
def test_under_autocast(device, form):
    """The gradients too are what they are without it; their products are PyTorch's."""
    inputs = make_inputs(form, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        cast = with_gradients(operator, inputs)
    for name, value in with_gradients(operator, inputs).items():
        torch.testing.assert_close(cast[name], value, rtol=0, atol=0)


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"genes": lambda t: t.tolist()}, TypeError, r"genes is a list; pass a torch\.Tensor"),
        ({"genes": lambda t: t.float()}, TypeError, r"genes has dtype torch\.float32; cast it with"),
        ({"genes": lambda t: t[None]}, ValueError, r"genes has shape \(1, 37\); pack the tokens"),
        ({"gene_table": lambda t: t.long()}, TypeError, r"gene_table has dtype torch\.int64"),
        ({"gene_table": lambda t: t[0]}, ValueError, r"gene_table has shape \(24,\); give it \[G, D\]"),
        ({"values": lambda t: t[:5]}, ValueError, r"values has shape \(5,\); give it the shape \(37,\)"),
        ({"values": lambda t: None}, ValueError, r"encoding is given and values is not; give both"),
        ({"kind": lambda t: None}, ValueError, r"values is given and encoding is not; give both"),
        ({"values": lambda t: t.to("meta")}, ValueError, r"values is on meta and gene_table is on cpu"),
        ({"streams": lambda t: t.float()}, TypeError, r"streams has dtype torch\.float32"),
        ({"streams": lambda t: None}, ValueError, r"stream_table has 2 rows and streams is None"),
        ({"stream_table": lambda t: t[:, :3]}, ValueError, r"stream_table has shape \(2, 3\).*\[S, D\]"),
        ({"prefix_table": lambda t: t.half()}, TypeError, r"prefix_table has dtype torch\.float16"),
        ({"value_stream": lambda t: -1}, ValueError, r"value_stream is -1; streams count from 0"),
        ({"w": lambda t: t[:2]}, ValueError, r"encoding\.weight has shape \(2,\).*\(7,\), \[M\]|\[K, M\]"),
        ({"mixing": lambda t: t[:, :2]}, ValueError, r"encoding\.mixing has shape \(5, 2\).*\[K, M\]"),
        ({"table": lambda t: t[:0]}, ValueError, r"encoding\.table has shape \(0, 24\); give it \[K, D\]"),
        ({"weight": lambda t: t[:3]}, ValueError, r"weight has shape \(3,\)"),
        ({"norm": lambda t: "batch"}, ValueError, r"norm is 'batch'; choose one of 'none', 'rms', 'layer'"),
    ],
)  # fmt: skip
def test_refuses_and_says_what_to_do(changes, kind, message):
    inputs = {
        n: x.detach() if isinstance(x, torch.Tensor) else x for n, x in make_inputs("all-layer").items()
    }
    inputs |= {name: change(inputs[name]) for name, change in changes.items()}
    with pytest.raises(kind, match=message):
        operator(**inputs)


def test_refuses_other_settings():
    inputs = make_inputs("silu")
    with pytest.raises(ValueError, match="activation is 'relu'; choose one of 'silu', 'gelu'"):
        operator(**inputs | {"kind": "relu"})
    with pytest.raises(TypeError, match="encoding is a int; pass SoftBins or ValueMLP"):
        embed_genes(inputs["genes"], inputs["values"], gene_table=inputs["gene_table"], encoding=1)
    genes, table = inputs["genes"], inputs["gene_table"]
    with pytest.raises(ValueError, match=r"eps is -1\.0; .* can not be negative"):
        embed_genes(genes, gene_table=table, eps=-1.0)
    with pytest.raises(ValueError, match="value_stream is 0 and streams is None"):
        embed_genes(genes, gene_table=table, value_stream=0)
    with pytest.raises(ValueError, match="implementation is 'cuda'"):
        embed_genes(genes, gene_table=table, implementation="cuda")


def test_a_gene_without_a_row_is_refused_on_the_cpu():
    inputs = make_inputs("layer")
    with pytest.raises(IndexError):
        operator(**inputs | {"genes": inputs["genes"] + 50}, implementation="reference")


# ------------------------------------------------------------------------------ the kernels themselves


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernels, whose outputs start as NaN."""
    from scdd.kernels.embed_genes import encode, scatter
    from scdd.kernels.embed_genes import triton as kernels

    for module in (kernels, encode, scatter):
        poison(module)
    return kernel_device


@FORM
@pytest.mark.parametrize(("tokens", "width"), [(37, 24), (130, 200)])
def test_kernel(poisoned, form, tokens, width):
    inputs = make_inputs(form, tokens=tokens, width=width, device=poisoned)
    check(inputs, implementation="triton")


@pytest.mark.parametrize("tokens", [0, 1, 63, 64, 65])
def test_kernel_on_every_length(poisoned, tokens):
    check(make_inputs("all-layer", tokens=tokens, width=16, device=poisoned), implementation="triton")


@pytest.mark.parametrize("width", [1, 7, 96, 128, 129, 300, 1100])
def test_kernel_on_every_width(poisoned, width):
    check(make_inputs("all-layer", tokens=20, width=width, device=poisoned), implementation="triton")


@FORM
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_kernel_in_sixteen_bits(poisoned, form, dtype):
    check(make_inputs(form, tokens=70, width=40, dtype=dtype, device=poisoned), implementation="triton")


@pytest.mark.parametrize(("form", "bins"), [("bins", 1), ("mixed", 17), ("silu", 64), ("all", 126)])
def test_kernel_on_numbers_of_bins(poisoned, form, bins):
    inputs = make_inputs(form, tokens=40, width=32, bins=bins, device=poisoned)
    check(inputs, implementation="triton")


@pytest.mark.parametrize("value", [0.0, 1e-6, 1e4, -1e4])
@pytest.mark.parametrize("form", ["all", "silu", "gelu", "mixed"])
def test_kernel_on_extreme_values(poisoned, form, value):
    inputs = make_inputs(form, device=poisoned)
    inputs["values"].detach().fill_(value)
    results = with_gradients(lambda **x: operator(**x, implementation="triton"), inputs)
    exact = with_gradients(naive, in_float64(inputs))
    for name, got in results.items():
        size = max(exact[name].abs().max().item(), 1e-3)
        torch.testing.assert_close(got.cpu().double(), exact[name], rtol=1e-3, atol=2e-3 * size, msg=name)


def test_kernel_on_rows_that_barely_vary(poisoned):
    inputs = make_inputs("layer", width=300, device=poisoned)
    with torch.no_grad():
        inputs["gene_table"].add_(3e3)
    check(inputs, implementation="triton")
    inputs["gene_table"].detach().fill_(1e4 / 3)
    y = operator(**inputs, implementation="triton")
    torch.testing.assert_close(y, inputs["bias"].expand_as(y), rtol=1e-6, atol=1e-6)


def test_kernel_keeps_tokens_apart(poisoned):
    """NaN in one gene's row and one value stays in the tokens that have them."""
    inputs = make_inputs("all", tokens=70, device=poisoned)
    clean = operator(**inputs, implementation="triton")
    with torch.no_grad():
        inputs["gene_table"][3] = torch.nan
        inputs["values"][5] = torch.nan
    dirty = operator(**inputs, implementation="triton")
    touched = inputs["genes"] == 3
    touched[5] |= (inputs["genes"][5] >= 0) & (inputs["streams"][5] == 1)
    assert touched.any()
    assert not touched.all()
    torch.testing.assert_close(dirty[~touched], clean[~touched], rtol=0, atol=0)


def test_kernel_takes_a_gene_that_no_table_holds_as_zeros(poisoned):
    inputs = make_inputs("all", tokens=20, device=poisoned)
    inputs["genes"][3], inputs["genes"][4] = 11, -3
    inputs["streams"][3:5] = 0
    y = operator(**inputs, implementation="triton")
    expected = F.rms_norm(inputs["stream_table"][0], (24,), None, 1e-5)
    torch.testing.assert_close(y[3:5], expected.expand(2, 24), rtol=1e-5, atol=1e-5)
    assert y.isfinite().all()
    gradients = torch.autograd.grad(y.sum(), [inputs["gene_table"], inputs["prefix_table"]])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_kernel_sums_a_gene_of_every_token(poisoned):
    inputs = make_inputs("all", tokens=130, device=poisoned)
    inputs["genes"][1:] = 7
    inputs["values"] = inputs["values"].detach().nan_to_num(1.0).requires_grad_()
    check(inputs, implementation="triton")


@pytest.mark.parametrize("form", ["all", "mixed"])
def test_kernel_gives_the_same_bits_twice(poisoned, form):
    inputs = make_inputs(form, tokens=130, device=poisoned)
    first, second = (
        with_gradients(lambda **x: operator(**x, implementation="triton"), inputs) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_kernel_takes_sixty_four_bit_ids(poisoned):
    inputs = make_inputs("all", device=poisoned)
    wide = inputs | {"genes": inputs["genes"].long(), "streams": inputs["streams"].long()}
    expected = with_gradients(lambda **x: operator(**x, implementation="triton"), inputs)
    for name, value in with_gradients(lambda **x: operator(**x, implementation="triton"), wide).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_kernel_says_what_it_can_not_hold(poisoned):
    inputs = make_inputs("bins", bins=tiles.MAX_COLUMNS + 1, device=poisoned)
    with pytest.raises(ValueError, match=f"at most {tiles.MAX_COLUMNS}; use fewer bins"):
        operator(**inputs, implementation="triton")
    operator(**inputs)
    inputs = make_inputs("genes", width=tiles.MAX_WIDTH + 1, device=poisoned)
    with pytest.raises(ValueError, match=f"at most {tiles.MAX_WIDTH}; make the model narrower"):
        operator(**inputs, implementation="triton")
    inputs = make_inputs("mixed", hidden=tiles.MAX_HIDDEN + 1, device=poisoned)
    with pytest.raises(ValueError, match=f"at most {tiles.MAX_HIDDEN}; use fewer"):
        operator(**inputs, implementation="triton")


# ------------------------------------------------------------------------------ tiles


@pytest.mark.parametrize("element_size", [2, 4])
def test_every_width_has_a_tile(element_size):
    known = [tile for tile, size in tiles.every_tile() if size == element_size]
    sums = tiles.every_sum_tile()
    for width in range(1, tiles.MAX_WIDTH + 1):
        assert tiles.choose(width, element_size) in known
        assert tiles.choose_sum(width) in sums


def test_columns_of_every_form():
    for form, expected in {
        "genes": (0, 0, 0),
        "all": (5, 5, 2),
        "silu": (5, 6, 2),
        "streams": (0, 0, 2),
    }.items():
        ((_, operands), *_) = operator_calls(form, "cpu")
        assert reference.columns(reference.Operands(*operands)) == expected
