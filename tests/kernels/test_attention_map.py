"""`attention_mass` and `attention_rows`: definition, registration, errors and kernels."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scdd.kernels._segments import segment_schedule
from scdd.kernels.attention_map import AttentionRows, attention_mass, attention_rows, ops, reference, tiles
from scdd.kernels.attention_map.plan import plan

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BIASED = pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
RAGGED = (0, 1, 15, 16, 0, 17, 63, 64, 65, 130, 0)
N_GENES = 150


def make_inputs(lengths=(7, 0, 12), heads=2, width=32, *, biased=True, dtype=torch.float32, device="cpu"):
    """Inputs of `attention_mass`, with the `lse` that is theirs, and `genes`."""
    generator = torch.Generator().manual_seed(sum(lengths) * 31 + heads)
    total = sum(lengths)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    inputs = {"q": draw(total, heads, width).to(dtype), "k": draw(total, heads, width).to(dtype)}
    inputs["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0).int()
    if biased:
        inputs |= {"key_weight": draw(heads).to(wide), "key_value": draw(total).exp().to(wide)}
        inputs |= {"slope": draw(heads).abs().to(wide), "coordinate": (3 * draw(total)).to(wide)}
    inputs["lse"] = naive_lse(inputs).to(wide)
    # no gene twice in a segment, and some tokens that are none
    genes = [torch.randperm(N_GENES + 3, generator=generator)[:length] - 2 for length in (*lengths, 0)]
    inputs["genes"] = torch.cat(genes).int()
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def naive_scores(inputs):
    """Scores [T, T, H] in float64, minus infinity across segments."""
    x = {name: t.detach().cpu().double() for name, t in inputs.items()}
    scores = torch.einsum("ihd,jhd->ijh", x["q"], x["k"]) * x["q"].shape[-1] ** -0.5
    if "slope" in x:
        scores += x["key_weight"] * torch.log1p(x["key_value"])[None, :, None]
        scores -= x["slope"] * (x["coordinate"][:, None] - x["coordinate"]).abs()[..., None]
    starts = x["cu_seqlens"].long()
    segment = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
    return scores.masked_fill((segment[:, None] != segment)[..., None], -torch.inf)


def naive_lse(inputs):
    scores = naive_scores(inputs)
    return scores.logsumexp(1)


def naive_attention(inputs):
    return (naive_scores(inputs) - inputs["lse"].cpu().double()[:, None]).exp()


def naive_rows(inputs, chosen, n_genes):
    """Pair by pair: sums per head [R, H, G] and counts [R, G]."""
    attention, genes = naive_attention(inputs), inputs["genes"].tolist()
    sums = torch.zeros(len(chosen), inputs["q"].shape[1], n_genes, dtype=torch.float64)
    counts = torch.zeros(len(chosen), n_genes, dtype=torch.int32)
    starts = inputs["cu_seqlens"].tolist()
    for start, end in pairwise(starts):
        for i in range(start, end):
            if genes[i] not in chosen:
                continue
            r = chosen.index(genes[i])
            for j in range(start, end):
                if 0 <= genes[j] < n_genes:
                    sums[r, :, genes[j]] += attention[i, j]
                    counts[r, genes[j]] += 1
    return sums, counts


def mass(inputs, **kwargs):
    x = {name: t for name, t in inputs.items() if name != "genes"}
    return attention_mass(x.pop("q"), x.pop("k"), x.pop("lse"), x.pop("cu_seqlens"), **x, **kwargs)


def rows(inputs, chosen, n_genes=N_GENES, **kwargs):
    x = dict(inputs)
    required = [x.pop(name) for name in ("q", "k", "lse", "cu_seqlens", "genes")]
    chosen = torch.as_tensor(chosen, dtype=torch.int32, device=required[0].device)
    return attention_rows(*required, chosen, n_genes, **x, **kwargs)


def check_mass(inputs, **kwargs):
    got = mass(inputs, **kwargs)
    assert got.dtype == inputs["lse"].dtype
    expected = naive_attention(inputs).sum(0)
    exact = got.dtype == torch.float64
    torch.testing.assert_close(
        got.cpu().double(), expected, rtol=1e-10 if exact else 2e-4, atol=1e-10 if exact else 1e-6
    )


CHOSEN = (3, 77, 149, 0, 20, 21, 22, 23, 101)


def check_rows(inputs, chosen=CHOSEN, *, n_genes=N_GENES, **kwargs):
    sums, counts = naive_rows(inputs, list(chosen), n_genes)
    exact = inputs["q"].dtype == torch.float64
    tolerance = {"rtol": 1e-10 if exact else 2e-4, "atol": 1e-10 if exact else 1e-6}
    for per_head in (False, True):
        got = rows(inputs, chosen, n_genes, per_head=per_head, **kwargs)
        assert isinstance(got, AttentionRows)
        expected = sums if per_head else sums.mean(1)
        torch.testing.assert_close(got.sums.cpu().double(), expected, **tolerance)
        assert torch.equal(got.counts.cpu(), counts)


# ------------------------------------------------------------------------------ definition, any device


@BIASED
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float64], ids=[*DTYPES, "fp64"])
def test_matches_definition(device, dtype, implementation, biased):
    inputs = make_inputs(dtype=dtype, device=device, biased=biased)
    check_mass(inputs, implementation=implementation)
    check_rows(inputs, implementation=implementation)


@pytest.mark.parametrize("width", [5, 40])
def test_any_width(device, width):
    inputs = make_inputs(width=width, device=device)
    check_mass(inputs)
    check_rows(inputs)


def test_a_long_segment_is_taken_in_steps(device, monkeypatch):
    monkeypatch.setattr(reference, "_MOST_SCORES", 1)
    inputs = make_inputs((40, 3), device=device)
    check_mass(inputs, implementation="reference")
    check_rows(inputs, range(60), implementation="reference")


def test_mass_of_a_segment_is_its_length(device):
    inputs = make_inputs((5, 0, 9), device=device)
    got = mass(inputs)
    torch.testing.assert_close(got[:5].sum(0), torch.full((2,), 5.0, device=device))
    torch.testing.assert_close(got[5:].sum(0), torch.full((2,), 9.0, device=device))


def test_a_gene_twice_in_a_segment_counts_twice(device):
    inputs = make_inputs(device=device)
    inputs["genes"][:5] = torch.tensor([3, 3, 77, 77, 77])
    check_rows(inputs)


def test_batches_add_up(device):
    inputs = make_inputs((9, 14), device=device)
    whole = rows(inputs, CHOSEN)
    parts = []
    for here in (slice(0, 9), slice(9, 23)):
        part = {n: t if len(t) != 23 else t[here] for n, t in inputs.items()}
        part["cu_seqlens"] = torch.tensor([0, here.stop - here.start], device=device)
        parts.append(rows(part, CHOSEN))
    torch.testing.assert_close(parts[0].sums + parts[1].sums, whole.sums)
    assert torch.equal(parts[0].counts + parts[1].counts, whole.counts)


def test_has_no_gradient(device):
    inputs = make_inputs(device=device)
    floats = {n: t.requires_grad_() if t.is_floating_point() else t for n, t in inputs.items()}
    for implementation in ("auto", "reference"):
        assert not mass(floats, implementation=implementation).requires_grad
        assert not rows(floats, CHOSEN, implementation=implementation).sums.requires_grad


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)])
def test_nothing_in_nothing_out(device, lengths):
    inputs = make_inputs(lengths, device=device)
    assert mass(inputs).shape == (0, 2)
    got = rows(inputs, CHOSEN)
    assert not got.sums.any()
    assert not got.counts.any()


def test_no_gene_chosen(device):
    got = rows(make_inputs(device=device), ())
    assert got.sums.shape == got.counts.shape == (0, N_GENES)


# ------------------------------------------------------------------------------ registration


@BIASED
def test_registration(device, biased):
    inputs = make_inputs(device=device, biased=biased)
    x = [inputs[name] for name in ("q", "k", "lse", "cu_seqlens")]
    biases = [inputs.get(name) for name in reference.Biases._fields]
    cut = segment_schedule(inputs["cu_seqlens"], 19, tile_rows=64)
    torch.library.opcheck(ops.mass, (*x, cut.tiles, cut.segments, *biases, 0.2, 64))
    chosen = torch.tensor(CHOSEN, device=device)
    for per_head in (False, True):
        torch.library.opcheck(ops.rows, (*x, inputs["genes"], chosen, *biases, N_GENES, 0.2, per_head))


@pytest.mark.parametrize("function", [mass, lambda inputs: rows(inputs, CHOSEN)], ids=["mass", "rows"])
def test_compiles_to_one_graph_of_any_size(device, function):
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for lengths in ((7, 0, 12), (9, 4, 11)):
        inputs = make_inputs(lengths, device=device)
        torch.testing.assert_close(compiled(inputs), function(inputs))


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"q": lambda t: t.tolist()}, TypeError, r"q is a list"),
        ({"q": lambda t: t[0]}, ValueError, r"q has shape \(2, 32\); reshape it to \[T, H, D\]"),
        ({"q": lambda t: t[:, :0]}, ValueError, r"q has shape \(19, 0, 32\).*H > 0"),
        ({"k": lambda t: t[:3]}, ValueError, r"k has shape \(3, 2, 32\)"),
        ({"k": lambda t: t.half()}, TypeError, r"k has dtype torch\.float16"),
        ({"lse": lambda t: t.mT}, ValueError, r"lse has shape \(2, 19\); give it the shape \(19, 2\)"),
        ({"lse": lambda t: t.half()}, TypeError, r"lse has dtype torch\.float16; cast it with lse\.to"),
        ({"cu_seqlens": lambda t: t.float()}, TypeError, r"cu_seqlens has dtype torch\.float32"),
        ({"cu_seqlens": lambda t: t + 1}, ValueError, r"cu_seqlens starts at 1"),
        ({"cu_seqlens": lambda t: t[:-1]}, ValueError, r"cu_seqlens ends at 7"),
        ({"key_weight": lambda t: None}, ValueError, r"key_value is given and key_weight is None"),
        ({"slope": lambda t: t.double()}, TypeError, r"slope has dtype torch\.float64"),
        ({"coordinate": lambda t: t[:4]}, ValueError, r"coordinate has shape \(4,\)"),
        ({"scale": lambda t: 0.0}, ValueError, r"scale is 0\.0; it must be positive"),
        ({"implementation": lambda t: "cuda"}, ValueError, r"implementation is 'cuda'"),
    ],
)  # fmt: skip
def test_refuses_and_says_what_to_do(changes, kind, message):
    inputs = make_inputs()
    inputs |= {name: change(inputs.get(name)) for name, change in changes.items()}
    with pytest.raises(kind, match=message):
        mass(inputs)
    x = {name: inputs.pop(name) for name in ("q", "k", "lse", "cu_seqlens", "genes")}
    with pytest.raises(kind, match=message):
        attention_rows(*x.values(), torch.tensor([1, 2]), N_GENES, **inputs)


def test_refuses_genes_that_do_not_fit():
    inputs = make_inputs()
    with pytest.raises(TypeError, match=r"genes has dtype torch\.float32"):
        rows(inputs | {"genes": inputs["genes"].float()}, CHOSEN)
    with pytest.raises(ValueError, match=r"genes has shape \(3,\); give it the shape \(19,\)"):
        rows(inputs | {"genes": inputs["genes"][:3]}, CHOSEN)
    with pytest.raises(ValueError, match=r"chosen has shape \(1, 2\); reshape it to \[R\]"):
        rows(inputs, [[1, 2]])
    with pytest.raises(ValueError, match="n_genes is 0"):
        rows(inputs, CHOSEN, 0)
    for implementation in ("auto", "reference"):
        if implementation == "auto" and tiles_are_used():
            continue
        with pytest.raises(ValueError, match=r"chosen names a gene twice; pass chosen\.unique\(\)"):
            rows(inputs, [1, 1], implementation=implementation)
        for outside in (-1, N_GENES):
            with pytest.raises(ValueError, match="chosen has ids outside 0 to 149"):
                rows(inputs, [outside], implementation=implementation)


@pytest.mark.parametrize("starts", [(1, 19), (0, 18), (0, 9, 5, 19)])
def test_plan_refuses_wrong_segments(starts):
    """Without waiting for a GPU; else tokens would be left out of the sums unseen."""
    genes = torch.zeros(19, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="cu_seqlens must start at 0, not decrease and end at the number"):
        plan(torch.tensor(starts), genes, torch.tensor([0]), 5, 64)


def tiles_are_used():
    from scdd.kernels import _dispatch

    return _dispatch.INTERPRET


# ------------------------------------------------------------------------------ the kernels themselves


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernels, whose outputs start as NaN."""
    from scdd.kernels.attention_map import triton as kernels

    poison(kernels)
    return kernel_device


@BIASED
@pytest.mark.parametrize("width", tiles.WIDTHS)
def test_mass_kernel(poisoned, width, biased):
    inputs = make_inputs((20, 70), 1, width, device=poisoned, biased=biased)
    check_mass(inputs, implementation="triton")


@BIASED
def test_mass_kernel_on_ragged_segments(poisoned, biased):
    check_mass(make_inputs(RAGGED, 2, device=poisoned, biased=biased), implementation="triton")


@pytest.mark.parametrize("tile_rows", [16, 50, 128])
def test_mass_kernel_with_any_schedule(poisoned, tile_rows):
    inputs = make_inputs((0, 140, 3, 30, 1), 1, device=poisoned)
    schedule = segment_schedule(inputs["cu_seqlens"], 174, tile_rows=tile_rows)
    check_mass(inputs, schedule=schedule, implementation="triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_kernels_in_sixteen_bits(poisoned, dtype):
    inputs = make_inputs((20, 70), 2, 64, dtype=dtype, device=poisoned)
    check_mass(inputs, implementation="triton")
    check_rows(inputs, implementation="triton")


@BIASED
@pytest.mark.parametrize("width", tiles.WIDTHS)
def test_rows_kernel(poisoned, width, biased):
    inputs = make_inputs((20, 70), 2, width, device=poisoned, biased=biased)
    check_rows(inputs, implementation="triton")


def test_rows_kernel_on_ragged_segments(poisoned):
    inputs = make_inputs(RAGGED, 1, device=poisoned)
    check_rows(inputs, implementation="triton")
    # all tokens are queries: full tiles, and several a segment
    check_rows(inputs, range(N_GENES), implementation="triton")


def test_rows_kernel_on_repeated_genes(poisoned):
    inputs = make_inputs((40, 30), 1, device=poisoned)
    inputs["genes"][:] %= 5
    check_rows(inputs, (1, 4), n_genes=5, implementation="triton")


def test_rows_kernel_leaves_out_genes_beyond_the_last(poisoned):
    check_rows(make_inputs((40, 30), 1, device=poisoned), (0, 9), n_genes=30, implementation="triton")


def test_rows_kernel_refuses_a_gene_twice_or_outside(poisoned):
    if poisoned.type == "cuda":
        pytest.skip("the assertion ends the process")
    inputs = make_inputs(device=poisoned)
    for chosen in ((1, 1), (-1,), (N_GENES,)):
        with pytest.raises(
            RuntimeError, match="chosen names a gene twice, or one that n_genes does not hold"
        ):
            rows(inputs, chosen, implementation="triton")


def test_kernels_keep_segments_apart(poisoned):
    """NaN in one segment, in a tile that it shares with others, stays there."""
    inputs = make_inputs((20, 10, 25), 2, device=poisoned)
    chosen = range(0, N_GENES, 4)
    clean, clean_rows = mass(inputs, implementation="triton"), rows(inputs, chosen, implementation="triton")
    for name in ("q", "k", "lse", "key_value", "coordinate"):
        inputs[name][20:30] = torch.nan
    dirty, dirty_rows = mass(inputs, implementation="triton"), rows(inputs, chosen, implementation="triton")
    others = torch.cat([torch.arange(20), torch.arange(30, 55)]).to(poisoned)
    torch.testing.assert_close(dirty[others], clean[others], rtol=0, atol=0)
    assert dirty[20:30].isnan().all()
    touched = torch.isin(torch.tensor(chosen, device=poisoned), inputs["genes"][20:30])
    assert touched.any()
    assert not touched.all()
    assert dirty_rows.sums[touched].isnan().all()
    torch.testing.assert_close(dirty_rows.sums[~touched], clean_rows.sums[~touched], rtol=0, atol=0)
    assert torch.equal(dirty_rows.counts, clean_rows.counts)


@pytest.mark.parametrize("factor", [1e-4, 30.0])
def test_kernels_on_extreme_scores(poisoned, factor):
    inputs = make_inputs((20, 70), 1, device=poisoned)
    inputs["q"] *= factor
    inputs["lse"] = naive_lse(inputs).float().to(poisoned)
    got, expected = mass(inputs, implementation="triton"), naive_attention(inputs).sum(0)
    torch.testing.assert_close(got.cpu().double(), expected, rtol=2e-3, atol=1e-4)


def test_kernels_read_pieces_of_one_projection(poisoned):
    inputs = make_inputs((20, 30), 2, device=poisoned)
    expected, expected_rows = mass(inputs), rows(inputs, CHOSEN)
    q, k, _ = torch.stack([inputs["q"], inputs["k"], inputs["k"]], 1).unbind(1)
    lse = inputs["lse"].mT.contiguous().mT
    assert not q.is_contiguous()
    pieces = inputs | {"q": q, "k": k, "lse": lse, "genes": inputs["genes"].long()}
    assert torch.equal(mass(pieces, implementation="triton"), expected)
    assert torch.equal(rows(pieces, CHOSEN, implementation="triton").sums, expected_rows.sums)
    swapped = inputs | {"q": inputs["q"].transpose(0, 1).contiguous().transpose(0, 1)}
    assert torch.equal(mass(swapped, implementation="triton"), expected)


def test_kernels_give_the_same_bits_in_any_order(poisoned):
    """Sums over segments do not depend on their order."""
    inputs = make_inputs((20, 30, 9), 2, device=poisoned)
    first = rows(inputs, CHOSEN, implementation="triton")
    order = torch.cat([torch.arange(50, 59), torch.arange(20, 50), torch.arange(20)]).to(poisoned)
    turned = {n: t[order] if len(t) == 59 else t for n, t in inputs.items()}
    turned["cu_seqlens"] = torch.tensor([0, 9, 39, 59], device=poisoned)
    assert torch.equal(rows(turned, CHOSEN, implementation="triton").sums, first.sums)


def test_kernels_say_what_they_can_not_take(poisoned):
    inputs = make_inputs(width=40, device=poisoned)
    with pytest.raises(
        ValueError, match="head dimension 40 and the kernels take 32, 64, 96, 128; pad q and k"
    ):
        mass(inputs, implementation="triton")
    check_mass(inputs)
