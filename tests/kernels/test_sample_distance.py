"""Maximum mean discrepancy, energy distance, bandwidths and the permutation test; and their kernels."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from scdd.kernels import _dispatch
from scdd.kernels.sample_distance import (
    bandwidth_heuristic,
    blocks,
    energy_distance,
    maximum_mean_discrepancy,
    mmd_permutation_test,
    ops,
    reference,
    tiles,
)
from support.accuracy import DTYPES, assert_as_accurate_as_pytorch, in_float64, with_gradients

DOUBLING = (0.125, 0.25, 0.5, 1.0, 2.0)
BANDWIDTHS = {"doubling": DOUBLING, "any": (0.3, 1.0, 0.7), "one": (1.0,)}
UNBIASED = pytest.mark.parametrize("unbiased", [True, False], ids=["unbiased", "biased"])
WEIGHTED = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


def make_inputs(
    n=7, m=5, genes=6, *, dtype=torch.float32, device="cpu", weighted=False, offset=0.0, scale=1.0
):
    """Random samples that differ by a shift, with positive weights if asked for."""
    generator = torch.Generator().manual_seed(n * 1009 + m * 13 + genes)
    x, y = (scale * torch.randn(rows, genes, generator=generator, dtype=torch.float64) for rows in (n, m))
    samples = {"x": offset + x, "y": offset + 0.3 * scale + y}
    if weighted:
        samples |= {
            f"weights_{name}": 0.5 + torch.rand(rows, generator=generator)
            for name, rows in (("x", n), ("y", m))
        }
    return {
        name: t.to(
            device, torch.float32 if "weights" in name and dtype.itemsize == 2 else dtype
        ).requires_grad_()
        for name, t in samples.items()
    }


def naive(x, y, kernels, *, unbiased, weights_x=None, weights_y=None):
    """``E k(x, x') + E k(y, y') - 2 E k(x, y)`` by whole tensors of differences, one kernel after another."""

    def mean(a, b, u, v, *, same):
        u = torch.full((len(a),), 1 / len(a), dtype=a.dtype, device=a.device) if u is None else u / u.sum()
        v = torch.full((len(b),), 1 / len(b), dtype=a.dtype, device=a.device) if v is None else v / v.sum()
        counted = torch.outer(u, v)
        if same and unbiased:
            counted = counted * (1 - torch.eye(len(a), dtype=a.dtype, device=a.device))
        square = (a[:, None] - b[None]).square().sum(-1)
        return sum((counted * kernel(square)).sum() / counted.sum() for kernel in kernels)

    return (
        mean(x, x, weights_x, weights_x, same=True)
        + mean(y, y, weights_y, weights_y, same=True)
        - 2 * mean(x, y, weights_x, weights_y, same=False)
    )


def naive_mmd(x, y, bandwidths, unit, *, unbiased=True, **weights):
    kernels = [lambda d2, s=s * unit: torch.exp(-d2 / (2 * s)) for s in bandwidths]
    return naive(x, y, kernels, unbiased=unbiased, **weights)


def naive_energy(x, y, *, unbiased=True, **weights):
    def distance(square):
        return -torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)

    return naive(x, y, [distance], unbiased=unbiased, **weights)


def distances(bandwidths=DOUBLING, unit=8.0, unbiased=True, implementation="auto"):
    """Both distances of the same samples, ours and the definition."""

    def ours(x, y, **weights):
        options = {"unbiased": unbiased, "implementation": implementation, **weights}
        mmd = maximum_mean_discrepancy(x, y, bandwidths=bandwidths, unit=unit, **options)
        return mmd, energy_distance(x, y, **options)

    def theirs(x, y, **weights):
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        options = {name: w.to(x.dtype) for name, w in weights.items()} | {"unbiased": unbiased}
        found = naive_mmd(x, y, bandwidths, unit, **options), naive_energy(x, y, **options)
        return tuple(value.to(wide) for value in found)

    return ours, theirs


def assert_right(inputs, *, bandwidths=DOUBLING, unit=8.0, unbiased=True, implementation="auto"):
    """As accurate as the definition in PyTorch of the same dtype.

    Both distances are a difference of means, so beside that a result may round as those means do; the
    gradient of a weight is a difference of kernel values to their mean, ten times its own size and more, and
    that of a row cancels in the Gram form where rows are near.
    """
    ours, theirs = distances(bandwidths, unit, unbiased, implementation)
    exact, found = with_gradients(theirs, in_float64(inputs)), with_gradients(ours, inputs)
    eager = with_gradients(theirs, inputs)
    spread = inputs["x"].detach().double().std().item() * inputs["x"].shape[1] ** 0.5
    for name, size in (("out0", len(bandwidths)), ("out1", 4 * spread)):
        truth = float(exact.pop(name))
        allowed = 2 * abs(float(eager.pop(name)) - truth)
        rounding = (4e-7 if inputs["x"].dtype.itemsize >= 4 else 4e-3) * size
        difference = abs(float(found.pop(name)) - truth)
        assert difference <= max(allowed, rounding), f"{name}: {difference:.3g} {allowed:.3g} {rounding:.3g}"
    # tensor cores cut sums off where a CPU rounds them: there the Gram form loses more of its digits
    of_rows, of_weights = (256, 1000) if inputs["x"].is_cuda else (16, 128)
    roundings = {name: of_weights if "weights" in name else of_rows for name in found}
    assert_as_accurate_as_pytorch(found, eager, exact, summed=roundings)


# ------------------------------------------------------------------------------ definition, any device


@UNBIASED
@WEIGHTED
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("bandwidths", BANDWIDTHS.values(), ids=BANDWIDTHS.keys())
def test_matches_definition(device, bandwidths, implementation, weighted, unbiased):
    if device.type == "cpu" and _dispatch.INTERPRET:
        pytest.skip("the kernels have their own test")
    inputs = make_inputs(9, 6, 30, device=device, weighted=weighted)
    assert_right(inputs, bandwidths=bandwidths, unbiased=unbiased, implementation=implementation)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_every_dtype(device, dtype):
    assert_right(make_inputs(9, 6, 30, dtype=dtype, device=device))


@UNBIASED
@WEIGHTED
@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_gradcheck(implementation, weighted, unbiased):
    inputs = make_inputs(4, 3, 2, dtype=torch.float64, weighted=weighted)
    for bandwidths in BANDWIDTHS.values():
        ours, _ = distances(bandwidths, 2.0, unbiased, implementation)
        names = list(inputs)
        assert torch.autograd.gradcheck(
            lambda *values, f=ours, names=names: f(**dict(zip(names, values, strict=True))),
            tuple(inputs.values()),
        )


@pytest.mark.parametrize("needed", ["x", "y", "weights_x"])
def test_gradient_of_one_argument_alone(device, needed):
    inputs = {name: t.detach() for name, t in make_inputs(9, 6, 8, device=device, weighted=True).items()}
    inputs[needed].requires_grad_()
    ours, theirs = distances()
    got, expected = (with_gradients(f, inputs)[f"d{needed}"] for f in (ours, theirs))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_matches_scikit_learn():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    inputs = make_inputs(40, 25, 12, dtype=torch.float64)
    x, y = (t.detach().numpy() for t in inputs.values())
    xx, yy, xy = (
        sum(pairwise.rbf_kernel(a, b, gamma=1 / (2 * 8.0 * s)) for s in DOUBLING)
        for a, b in ((x, x), (y, y), (x, y))
    )
    biased = xx.mean() + yy.mean() - 2 * xy.mean()
    off_diagonal = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
    for unbiased, expected in ((False, biased), (True, sum(off_diagonal) - 2 * xy.mean())):
        for implementation in ("auto", "reference"):
            got = maximum_mean_discrepancy(
                **inputs, bandwidths=DOUBLING, unit=8.0, unbiased=unbiased, implementation=implementation
            )
            assert got.item() == pytest.approx(expected, rel=1e-12)


def test_matches_scipy_energy_distance_in_one_dimension():
    stats = pytest.importorskip("scipy.stats")
    inputs = make_inputs(30, 22, 1, dtype=torch.float64, weighted=True)
    x, y, u, v = (t.detach().numpy().ravel() for t in inputs.values())
    got = energy_distance(**inputs, unbiased=False).item()
    assert got == pytest.approx(stats.energy_distance(x, y, u, v) ** 2, rel=1e-9)


def test_the_published_multi_scale_form():
    """Kernels ``exp(-d^2 / b)``, b = mean / 4 x (1, 2, 4, 8, 16), biased: default bandwidths and unit."""
    inputs = make_inputs(20, 20, 7, dtype=torch.float64)
    z = torch.cat(tuple(inputs.values()))
    square = ((z[None] - z[:, None]) ** 2).sum(2)
    base = square.sum().item() / (len(z) ** 2 - len(z)) / 4
    kernel = sum(torch.exp(-square / (base * 2**k)) for k in range(5))
    n = 20
    expected = (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).mean()
    got = maximum_mean_discrepancy(**inputs, unbiased=False)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_none_gives_one_result_for_each_bandwidth_in_the_order_given(device):
    inputs = make_inputs(9, 6, 5, device=device)
    for bandwidths in ((0.5, 2.0, 1.0), (1.0, 0.3), torch.tensor([0.5, 3.0], device=device)):
        each = maximum_mean_discrepancy(**inputs, bandwidths=bandwidths, unit=5.0, reduction="none")
        for k, width in enumerate(bandwidths):
            alone = maximum_mean_discrepancy(**inputs, bandwidths=(float(width),), unit=5.0)
            torch.testing.assert_close(each[k], alone, rtol=1e-4, atol=1e-6)
        for reduction in ("sum", "mean"):
            got = maximum_mean_discrepancy(**inputs, bandwidths=bandwidths, unit=5.0, reduction=reduction)
            torch.testing.assert_close(got, getattr(each, reduction)(), rtol=1e-4, atol=1e-6)


def test_integer_weights_are_repeated_rows(device):
    """In the biased form a weight of 2 is a row that lies there twice."""
    inputs = make_inputs(6, 5, 4, device=device)
    x, y = (t.detach() for t in inputs.values())
    weights = torch.tensor([2.0, 1, 1, 3, 1, 1], device=device)
    repeated = x.repeat_interleave(weights.long(), 0)
    for function, options in ((maximum_mean_discrepancy, {"unit": 4.0}), (energy_distance, {})):
        got = function(x, y, weights_x=weights, unbiased=False, **options)
        torch.testing.assert_close(
            got, function(repeated, y, unbiased=False, **options), rtol=1e-5, atol=2e-6
        )


@pytest.mark.parametrize("offset", [1e3, -1e3])
def test_a_large_common_offset_does_not_cancel(device, offset):
    inputs = make_inputs(20, 15, 50, device=device, offset=offset)
    assert_right(inputs, unit=100.0)


def test_the_same_sample_twice_is_at_distance_zero(device):
    x = make_inputs(30, 2, 40, device=device)["x"]
    assert energy_distance(x, x.detach().clone(), unbiased=False).item() == pytest.approx(0, abs=2e-6)
    got = maximum_mean_discrepancy(x, x.detach().clone(), unbiased=False)
    assert got.item() == pytest.approx(0, abs=2e-6)


def test_gradient_at_distance_zero_is_zero(device):
    x = torch.ones(3, 4, device=device, requires_grad=True)
    y = torch.ones(2, 4, device=device)
    for value in (energy_distance(x, y), maximum_mean_discrepancy(x, y)):
        (gradient,) = torch.autograd.grad(value, x)
        assert value == 0
        assert not gradient.count_nonzero()


def test_equal_rows_of_both_samples_do_not_blow_up_the_gradient(device):
    inputs = make_inputs(8, 5, 200, device=device, offset=5.0)
    inputs["y"] = torch.cat((inputs["y"], inputs["x"][:4])).detach()
    inputs["x"] = torch.cat((inputs["x"], inputs["x"][:2])).detach().requires_grad_()
    assert_right(inputs, unit=100.0)


def test_second_derivative_needs_the_reference():
    inputs = make_inputs(4, 3, 2, dtype=torch.float64)
    value = maximum_mean_discrepancy(**inputs, unit=2.0).sin()
    (first,) = torch.autograd.grad(value, inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    value = maximum_mean_discrepancy(**inputs, unit=2.0, implementation="reference")
    (first,) = torch.autograd.grad(value, inputs["x"], create_graph=True)
    first.square().sum().backward()
    assert inputs["x"].grad is not None


def test_any_memory_layout(device):
    inputs = make_inputs(9, 6, 8, device=device)
    ours, _ = distances()
    expected = with_gradients(ours, inputs)
    strided = {name: t.detach().mT.contiguous().mT.requires_grad_() for name, t in inputs.items()}
    for name, value in with_gradients(ours, strided).items():
        torch.testing.assert_close(value, expected[name])


# ------------------------------------------------------------------------------ blocks


@WEIGHTED
@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_blocks_of_any_size_give_the_same(monkeypatch, block, weighted):
    inputs = make_inputs(7, 5, 6, dtype=torch.float64, weighted=weighted)
    ours, theirs = distances()
    monkeypatch.setattr(blocks, "BLOCK", block)
    expected = with_gradients(theirs, inputs)
    for name, value in with_gradients(ours, inputs).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)
    got = mmd_permutation_test(inputs["x"], inputs["y"], permutations=7)
    expected = mmd_permutation_test(inputs["x"], inputs["y"], permutations=7, implementation="reference")
    for value, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory in KiB is Linux's")
def test_memory_stays_small_where_the_published_form_needs_67_gigabytes():
    code = """
import resource, torch
from scdd.kernels.sample_distance import energy_distance, maximum_mean_discrepancy
x, y = torch.randn(1024, 2000, requires_grad=True), torch.randn(1300, 2000)
energy_distance(x[:9, :9], y[:9, :9]).backward()
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
maximum_mean_discrepancy(x, y).backward()
print((peak() - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # one centred copy of the samples, its gradient and those of x: 60 MiB; the rest is blocks
    assert int(done.stdout) < 160


# ------------------------------------------------------------------------------ bandwidths


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_mean_of_squared_distances(device, offset):
    x, y = make_inputs(12, 9, 5, dtype=torch.float64, device=device, offset=offset).values()
    for samples in ((x,), (x, y), (x.float(), y.float())):
        z = torch.cat(samples).double()
        square = (z[:, None] - z[None]).square().sum(-1)
        expected = square.sum() / (len(z) * (len(z) - 1))
        got = bandwidth_heuristic(*samples)
        assert not got.requires_grad
        torch.testing.assert_close(got, expected.to(samples[0].dtype).detach())


def test_median_of_squared_distances():
    x, y = (t.detach() for t in make_inputs(12, 9, 5, dtype=torch.float64).values())
    square = torch.pdist(torch.cat((x, y))).square()
    torch.testing.assert_close(bandwidth_heuristic(x, y, statistic="median"), square.median())
    many = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    got = bandwidth_heuristic(many[:2000], many[2000:], statistic="median")
    assert got == bandwidth_heuristic(many[:2000], many[2000:], statistic="median")
    assert got != bandwidth_heuristic(many[:2000], many[2000:], statistic="median", seed=1)
    assert got.item() == pytest.approx(torch.pdist(many[:1500]).square().median().item(), rel=0.1)


# ------------------------------------------------------------------------------ permutation test


@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_permutation_statistics_are_those_of_relabeled_samples(implementation):
    if _dispatch.INTERPRET and implementation == "auto":
        pytest.skip("the kernels have their own test")
    x, y = (t.detach() for t in make_inputs(9, 6, 4, dtype=torch.float64).values())
    found = mmd_permutation_test(x, y, permutations=20, seed=3, implementation=implementation)
    z, unit = torch.cat((x, y)), bandwidth_heuristic(x, y)
    generator = torch.Generator().manual_seed(3)
    expected = []
    for _ in range(20):
        order = torch.randperm(15, generator=generator)
        expected.append(maximum_mean_discrepancy(z[order[:9]], z[order[9:]], unit=unit))
    torch.testing.assert_close(found.null, torch.stack(expected), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.mmd2, maximum_mean_discrepancy(x, y), rtol=1e-9, atol=1e-12)
    assert found.p_value.item() == pytest.approx((1 + (found.null >= found.mmd2).sum().item()) / 21)


def test_a_relabeling_that_is_the_observed_one_counts(device):
    """Of 3 + 3 rows there are 20 relabelings; a rounding must not let the observed one beat itself."""
    x, y = (t.detach() for t in make_inputs(3, 3, 2, device=device).values())
    y = y + 50
    found = mmd_permutation_test(x, y, permutations=2000)
    # the observed labels and their swap, of 20
    assert found.p_value.item() == pytest.approx(0.1, abs=0.03)


def test_permutation_test_tells_samples_apart_and_holds_its_level():
    x, y = (t.detach() for t in make_inputs(60, 50, 5).values())
    assert mmd_permutation_test(x, y + 1, permutations=99).p_value.item() == pytest.approx(0.01)
    generator = torch.Generator().manual_seed(0)
    levels = [
        mmd_permutation_test(*torch.randn(2, 15, 3, generator=generator), permutations=39, seed=s).p_value
        for s in range(60)
    ]
    assert 0.35 < torch.stack(levels).mean() < 0.65


def test_permutation_test_is_reproducible():
    x, y = (t.detach() for t in make_inputs(20, 15, 5).values())
    first, again, other = (mmd_permutation_test(x, y, permutations=9, seed=s).null for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ------------------------------------------------------------------------------ registration


def operator_calls(device):
    for weighted, form in itertools.product((False, True), ("gaussian", "doubling", "distance")):
        inputs = {n: t.detach() for n, t in make_inputs(4, 3, 5, device=device, weighted=weighted).items()}
        samples = (inputs["x"], inputs["y"], inputs.get("weights_x"), inputs.get("weights_y"))
        rates = torch.tensor([0.1, 0.2] if form != "distance" else [1.0], device=device)
        yield ops._forward, (*samples, rates, form)
        dsums = torch.ones(3, len(rates), dtype=torch.float64, device=device)
        yield ops._backward, (dsums, *samples, rates, form, True, not weighted, weighted)
        if not weighted:
            yield ops.products, (*samples[:2], rates, form, torch.ones(7, 2, device=device))


def test_registration(device):
    for op, arguments in operator_calls(device):
        torch.library.opcheck(op, arguments)


@WEIGHTED
def test_compiles_to_one_graph_of_any_size(device, weighted):
    torch.compiler.reset()

    def both(x, y, **weights):
        return maximum_mean_discrepancy(x, y, **weights), energy_distance(x, y, **weights)

    # what inductor makes of the few numbers around the operator is not in question, and takes it a minute
    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, m in ((6, 5), (9, 7)):
        inputs = make_inputs(n, m, 8, device=device, weighted=weighted)
        eager = with_gradients(both, inputs)
        for name, value in with_gradients(compiled, inputs).items():
            torch.testing.assert_close(value, eager[name], rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"x": [1.0]}, TypeError, r"x is a list; pass a torch\.Tensor"),
        ({"x": torch.ones(4, 3).long()}, TypeError, r"x has dtype torch\.int64; cast it"),
        ({"y": torch.ones(4, 3).half()}, TypeError, r"y has dtype torch\.float16.*cast with y\.to\(x\.dtype"),
        ({"y": torch.ones(4)}, ValueError, r"y has shape \(4,\); reshape it to \[m, G\]"),
        ({"y": torch.ones(4, 2)}, ValueError, r"x has 3 features and y has 2; give both the same number"),
        ({"x": torch.ones(1, 3)}, ValueError, r"x has 1 rows, too few.*unbiased=False"),
        ({"y": torch.ones(0, 3), "unbiased": False}, ValueError, r"y has 0 rows, too few.*give it some"),
        ({"y": torch.ones(4, 3, device="meta")}, ValueError, r"y is on meta and x is on cpu"),
        (
            {"weights_x": torch.ones(2)},
            ValueError,
            r"weights_x has shape \(2,\).*\(4,\), \[n\], one for each",
        ),
        ({"weights_y": torch.ones(4).long()}, TypeError, r"weights_y has dtype torch\.int64"),
        ({"bandwidths": ()}, ValueError, r"there are 0 bandwidths; give 1 to 16"),
        ({"bandwidths": torch.ones(17)}, ValueError, r"there are 17 bandwidths; give 1 to 16"),
        ({"bandwidths": (1.0, 0.0)}, ValueError, r"bandwidths hold 0\.0; each is a squared width"),
        ({"bandwidths": torch.ones(2, 2)}, ValueError, r"bandwidths has shape \(2, 2\); reshape it to \[K\]"),
        ({"unit": -1.0}, ValueError, r"unit is -1\.0; it is a squared width, positive"),
        ({"unit": torch.ones(2)}, ValueError, r"unit has shape \(2,\); reshape it to a scalar"),
        ({"reduction": "max"}, ValueError, r"reduction is 'max'; choose one of 'sum', 'mean', 'none'"),
        ({"implementation": "cuda"}, ValueError, r"implementation is 'cuda'; choose one of"),
    ],
)
def test_refuses_and_says_what_to_do(changes, kind, message):
    arguments = {"x": torch.ones(4, 3), "y": torch.ones(4, 3)} | changes
    with pytest.raises(kind, match=message):
        maximum_mean_discrepancy(arguments.pop("x"), arguments.pop("y"), **arguments)


def test_other_functions_refuse_too():
    x = torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"permutations is 0; draw at least one"):
        mmd_permutation_test(x, x, permutations=0)
    with pytest.raises(ValueError, match=r"statistic is 'mode'; choose one of 'mean', 'median'"):
        bandwidth_heuristic(x, statistic="mode")
    with pytest.raises(ValueError, match=r"there are 1 rows in all and no pair"):
        bandwidth_heuristic(x[:1])
    with pytest.raises(ValueError, match="implementation='triton' can not be had"):
        energy_distance(x.double(), x.double(), implementation="triton")


# ------------------------------------------------------------------------------ tiles


@pytest.mark.parametrize(("n", "m"), [(1, 1), (64, 1), (65, 64), (300, 7), (1000, 130)])
def test_folded_triangle_holds_every_tile_once(n, m):
    plan = tiles.triangle(n, m, tiles.choose(4))
    seen = []
    for program in range(plan.height * plan.width):
        first = program // (tiles.GROUP * plan.width) * tiles.GROUP
        grouped = min(plan.height - first, tiles.GROUP)
        row = first + program % (tiles.GROUP * plan.width) % grouped
        column = program % (tiles.GROUP * plan.width) // grouped
        i, j = (row, column - 1) if column > row else (plan.width - 2 - row, plan.width - 2 - column)
        if j < plan.tiles:
            seen.append((i, j))
    assert sorted(seen) == [(i, j) for i in range(plan.tiles) for j in range(i, plan.tiles)]


# ------------------------------------------------------------------------------ the kernels themselves


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernels, whose outputs start as NaN."""
    from scdd.kernels.sample_distance import triton as kernels

    poison(kernels)
    return kernel_device


@pytest.mark.parametrize(
    ("n", "m", "genes"),
    [(2, 2, 3), (15, 16, 17), (63, 65, 64), (64, 64, 16), (130, 2, 96), (3, 129, 200), (129, 130, 31)],
)
def test_kernel(poisoned, n, m, genes):
    inputs = make_inputs(n, m, genes, device=poisoned)
    assert_right(inputs, unit=2.0 * genes, implementation="triton")


def test_kernel_on_one_feature(poisoned):
    """With few features some rows are near, where the Gram form keeps fewer digits of their distance."""
    inputs = make_inputs(20, 9, 1, device=poisoned)
    ours, theirs = distances(unit=2.0, implementation="triton")
    expected = with_gradients(theirs, in_float64(inputs))
    for name, value in with_gradients(ours, inputs).items():
        rtol, atol = (1e-3, 1e-4) if poisoned.type == "cuda" else (1e-5, 1e-5)
        torch.testing.assert_close(value.cpu().double(), expected[name].double(), rtol=rtol, atol=atol)


@UNBIASED
@WEIGHTED
@pytest.mark.parametrize("bandwidths", BANDWIDTHS.values(), ids=BANDWIDTHS.keys())
def test_kernel_forms(poisoned, bandwidths, weighted, unbiased):
    inputs = make_inputs(70, 20, 24, device=poisoned, weighted=weighted)
    assert_right(inputs, unit=50.0, bandwidths=bandwidths, unbiased=unbiased, implementation="triton")


@WEIGHTED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("n", "m", "genes"), [(15, 9, 5), (130, 65, 70)])
def test_kernel_in_sixteen_bits(poisoned, n, m, genes, dtype, weighted):
    inputs = make_inputs(n, m, genes, dtype=dtype, device=poisoned, weighted=weighted)
    assert_right(inputs, unit=2.0 * genes, implementation="triton")


@pytest.mark.parametrize(("offset", "scale"), [(1e3, 1.0), (0.0, 1e4), (0.0, 1e-4)])
def test_kernel_on_extreme_values(poisoned, offset, scale):
    inputs = make_inputs(20, 15, 50, device=poisoned, offset=offset, scale=scale)
    assert_right(inputs, unit=100.0 * scale**2, implementation="triton")


def test_kernel_knows_equal_rows(poisoned):
    x = make_inputs(70, 2, 40, device=poisoned, offset=100.0)["x"].detach()
    for dtype in DTYPES.values():
        values = x[:1].to(dtype).repeat(70, 1)
        y = values[:9].clone()
        assert energy_distance(values, y, implementation="triton") == 0
        assert maximum_mean_discrepancy(values, y, unit=1.0, implementation="triton") == 0


@WEIGHTED
def test_kernel_by_few_rows_at_a_time(poisoned, monkeypatch, weighted):
    from scdd.kernels.sample_distance import triton as kernels

    inputs = make_inputs(130, 70, 20, device=poisoned, weighted=weighted)
    ours, _ = distances(unit=40.0, implementation="triton")
    whole = with_gradients(ours, inputs)
    monkeypatch.setattr(kernels, "MATRIX_BYTES", 1)
    for name, value in with_gradients(ours, inputs).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-7)


def test_kernel_gives_the_same_bits_twice(poisoned):
    inputs = make_inputs(70, 65, 20, device=poisoned)
    ours, _ = distances(implementation="triton")
    first = with_gradients(ours, inputs)
    for name, value in with_gradients(ours, inputs).items():
        assert torch.equal(value, first[name]), name


def test_kernel_does_not_see_the_order_of_rows(poisoned):
    inputs = {name: t.detach() for name, t in make_inputs(70, 65, 20, device=poisoned).items()}
    shuffled = {name: t[torch.randperm(len(t)).to(t.device)] for name, t in inputs.items()}
    ours, _ = distances(unit=40.0, implementation="triton")
    for got, expected in zip(ours(**shuffled), ours(**inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-6)


def test_kernel_passes_on_nan(poisoned):
    inputs = {name: t.detach() for name, t in make_inputs(9, 8, 5, device=poisoned).items()}
    inputs["y"][3, 2] = torch.nan
    ours, _ = distances(implementation="triton")
    assert all(value.isnan() for value in ours(**inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_kernel_permutation_test(poisoned, dtype):
    inputs = {n: t.detach() for n, t in make_inputs(70, 66, 20, dtype=dtype, device=poisoned).items()}
    got = mmd_permutation_test(**inputs, permutations=9, unit=40.0, implementation="triton")
    wide = {name: t.double() for name, t in inputs.items()}
    expected = mmd_permutation_test(**wide, permutations=9, unit=40.0, implementation="reference")
    tolerance = 1e-6 if dtype == torch.float32 else 1e-3
    torch.testing.assert_close(got.null, expected.null, rtol=0, atol=tolerance)
    torch.testing.assert_close(got.mmd2, expected.mmd2, rtol=0, atol=tolerance)


def test_reference_products_are_those_of_the_blocks():
    x, y = (t.detach() for t in make_inputs(6, 4, 3, dtype=torch.float64).values())
    labels = torch.randn(10, 3, dtype=torch.float64)
    rates = torch.tensor([0.1, 0.2], dtype=torch.float64)
    got, expected = (f(x, y, rates, "doubling", labels) for f in (blocks.products, reference.products))
    torch.testing.assert_close(got, expected)
