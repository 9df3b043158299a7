"""`denoise_step`, its coefficients: textbook samplers, guidance, noise, registration, errors, kernel."""

from __future__ import annotations

import math

import pytest
import torch
from scdd.kernels._philox import philox_normal_quads
from scdd.kernels.denoise_step import (
    DenoisedStep,
    ddim_coefficients,
    ddpm_coefficients,
    denoise_step,
    denoise_step_with_estimate,
    dpm_solver_coefficients,
    ops,
    tiles,
)
from support.accuracy import DTYPES, assert_as_accurate_as_pytorch, in_float64, with_gradients

DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
PREDICTION = pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
# the linear schedule of DDPM: alpha_bar at t = 0..1000, with the data itself at 0
ALPHA_BAR = torch.cat((torch.ones(1), torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0)))
SEED = 2**35 + 17
TIMES = pytest.mark.parametrize(("t", "s"), [(1000, 999), (500, 480), (40, 20), (1, 0), (10, 0)])


def network_says(prediction, x, x0, t):
    """What a network that knew x0 would say of x."""
    a, s = ALPHA_BAR[t].sqrt(), (1 - ALPHA_BAR[t]).sqrt()
    eps = (x - a * x0) / s
    return {"eps": eps, "v": a * eps - s * x0, "x0": x0}[prediction]


@pytest.fixture
def cells():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 10, generator=generator, dtype=torch.float64)


def close(got, expected, t=500):
    """Float32 coefficients; eps is divided by the signal, which at the end of the schedule is 1/157."""
    torch.testing.assert_close(got, expected, rtol=1e-4 if t > 900 else 2e-6, atol=1e-4 if t > 900 else 2e-6)


# ------------------------------------------------------------------------------ samplers


@PREDICTION
@TIMES
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(cells, prediction, t, s, eta):
    """Equation 12 of Song et al.: x' = a' x0 + sqrt(1 - a'^2 - sigma^2) eps + sigma z."""
    x, x0 = cells
    step = ddim_coefficients(ALPHA_BAR[t], ALPHA_BAR[s], prediction=prediction, eta=eta)
    got = denoise_step_with_estimate(x, network_says(prediction, x, x0, t), step, seed=SEED)
    now, after = ALPHA_BAR[t].item(), ALPHA_BAR[s].item()
    sigma = eta * math.sqrt((1 - after) / (1 - now)) * math.sqrt(1 - now / after)
    eps = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
    expected = math.sqrt(after) * x0 + math.sqrt(max(0, 1 - after - sigma**2)) * eps
    expected += sigma * philox_normal_quads(torch.tensor(SEED), 0, (3, 10), torch.float64)
    close(got.x, expected, t)
    close(got.x0, x0, t)


@PREDICTION
@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("t", [1000, 500, 2, 1])
def test_ddpm(cells, prediction, t, variance):
    """Equations 6 and 7 of Ho et al., written with the beta of one step."""
    x, x0 = cells
    step = ddpm_coefficients(ALPHA_BAR[t], ALPHA_BAR[t - 1], prediction=prediction, variance=variance)
    got = denoise_step(x, network_says(prediction, x, x0, t), step, seed=SEED)
    beta = 1 - (ALPHA_BAR[t] / ALPHA_BAR[t - 1]).item()
    now, after = ALPHA_BAR[t].item(), ALPHA_BAR[t - 1].item()
    mean = math.sqrt(after) * beta / (1 - now) * x0 + math.sqrt(1 - beta) * (1 - after) / (1 - now) * x
    square = (1 - after) / (1 - now) * beta if variance == "posterior" or t == 1 else beta
    noise = philox_normal_quads(torch.tensor(SEED), 0, (3, 10), torch.float64)
    close(got, mean + math.sqrt(square) * noise, t)


@PREDICTION
def test_dpm_solver(cells, prediction):
    """Algorithm 2 of Lu et al. in the lambda of the paper, over a few steps down to clean cells."""
    x, _ = cells
    mine = theirs = x
    previous = before = None
    times = [999, 700, 400, 100, 0]
    lambdas = [0.5 * (math.log(a) - math.log1p(-a)) if a < 1 else math.inf for a in ALPHA_BAR[times].tolist()]
    for i in range(len(times) - 1):
        t, s = times[i], times[i + 1]
        a, sigma = ALPHA_BAR[s].sqrt(), (1 - ALPHA_BAR[s]).sqrt()
        last = None if i == 0 else ALPHA_BAR[times[i - 1]]
        step = dpm_solver_coefficients(ALPHA_BAR[t], ALPHA_BAR[s], last, prediction=prediction)
        # a network that is wrong in its own way at each step
        clean = torch.sin(theirs + i)
        mine, previous = denoise_step_with_estimate(
            mine, network_says(prediction, mine, torch.sin(mine + i), t), step, previous=previous
        )
        h = lambdas[i + 1] - lambdas[i]
        direction = clean
        if before is not None and math.isfinite(h):
            r = (lambdas[i] - lambdas[i - 1]) / h
            direction = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * before
        theirs = sigma / (1 - ALPHA_BAR[t]).sqrt() * theirs - a * math.expm1(-h) * direction
        before = clean
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine, before, rtol=1e-4, atol=1e-4)


def test_ddim_with_all_its_noise_is_ddpm():
    for t in (1000, 500, 2, 1):
        now, after = ALPHA_BAR[t], ALPHA_BAR[t - 1]
        # the coefficients of x are equal up to what float32 keeps of numbers near 1
        torch.testing.assert_close(
            ddim_coefficients(now, after, eta=1.0), ddpm_coefficients(now, after), rtol=1e-5, atol=1e-6
        )


def test_samplers_reach_the_distribution_of_the_data():
    """Gaussian data, whose optimal network is known: the variance must come out."""
    spread = 0.3
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(1))
    times = torch.linspace(1000, 0, 101).round().long()

    def sample(table, multistep):
        cells, previous = x, None
        for i, t in enumerate(times[:-1]):
            a2 = ALPHA_BAR[t].item()
            clean = math.sqrt(a2) * spread**2 / (a2 * spread**2 + 1 - a2) * cells
            eps = (cells - math.sqrt(a2) * clean) / math.sqrt(1 - a2)
            cells, estimate = denoise_step_with_estimate(
                cells, eps.float(), table[i], previous=previous, seed=i
            )
            previous = estimate if multistep else None
        return cells.std().item()

    now, after = ALPHA_BAR[times[:-1]], ALPHA_BAR[times[1:]]
    multistep = torch.cat(
        (
            dpm_solver_coefficients(now[:1], after[:1]),
            dpm_solver_coefficients(now[1:], after[1:], now[:-1]),
        )
    )
    # steps of first order are short of the variance, the more so the larger they are; one of second is not
    assert abs(sample(ddim_coefficients(now, after), False) - spread) < 0.02
    assert abs(sample(ddim_coefficients(now, after, eta=1.0), False) - spread) < 0.04
    assert abs(sample(ddpm_coefficients(now, after), False) - spread) < 0.04
    assert abs(sample(multistep, True) - spread) < 0.004


def test_coefficients_of_many_times_are_a_table():
    times = torch.tensor([999, 500, 20, 0])
    now, after = ALPHA_BAR[times[:-1]], ALPHA_BAR[times[1:]]
    for function in (ddim_coefficients, ddpm_coefficients, dpm_solver_coefficients):
        table = function(now, after)
        assert table.dtype == torch.float32
        assert table.shape == (3, 6)
        assert table.isfinite().all()
        for row, n, a in zip(table, now, after, strict=True):
            torch.testing.assert_close(row, function(n, a))
            torch.testing.assert_close(row, function(n.item(), a.item()))


# ------------------------------------------------------------------------------ the step itself


def make_inputs(cells=5, genes=23, *, dtype=torch.float32, device="cpu", each=False, spread=1.0):
    """Inputs by name, those of a guided multistep sampler; `each` gives every cell its own coefficients."""
    generator = torch.Generator().manual_seed(cells * 1009 + genes)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    names = ("x", "output", "unconditional", "previous")
    inputs = {name: (spread * draw(cells, genes)).to(device, dtype) for name in names}
    coefficients = draw(cells, 6) if each else draw(6)
    return inputs | {"coefficients": coefficients.to(device), "guidance": 2.5, "clamp": (-1.5, 2.0)}


def naive(x, output, coefficients, unconditional=None, guidance=1.0, previous=None, seed=None, clamp=None):
    """The formula, in at least float32 as samplers keep their state."""
    wide = torch.promote_types(x.dtype, torch.float32)
    dtype, (x, output) = x.dtype, (x.to(wide), output.to(wide))
    c = coefficients.to(wide).reshape(-1, 6, 1).unbind(1)
    if unconditional is not None:
        output = unconditional.to(wide) + guidance * (output - unconditional.to(wide))
    x0 = c[0] * x + c[1] * output
    if clamp is not None:
        x0 = x0.clamp(*clamp)
    after = c[2] * x + c[3] * x0
    if previous is not None:
        after = after + c[4] * previous.to(wide)
    if seed is not None:
        noise = philox_normal_quads(torch.tensor(int(seed)), 0, x.shape, torch.float64)
        after = after + c[5] * noise.to(x)
    return after.to(dtype), x0.to(dtype)


def check(inputs, implementation="auto"):
    def ours(**inputs):
        return denoise_step_with_estimate(**inputs, implementation=implementation)

    assert_as_accurate_as_pytorch(
        with_gradients(ours, inputs),
        with_gradients(naive, inputs),
        with_gradients(naive, in_float64(inputs)),
        # a handful of terms that may cancel; the noise of a seed is known to a few units of float32
        summed={"out0": 100, "out1": 100},
    )


@DTYPE
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize(
    "left_out", [(), ("previous",), ("unconditional", "guidance"), ("clamp", "previous")]
)
def test_matches_definition(device, left_out, implementation, each, dtype):
    inputs = make_inputs(dtype=dtype, device=device, each=each)
    check({n: v for n, v in inputs.items() if n not in left_out}, implementation)
    check({n: v for n, v in inputs.items() if n not in left_out} | {"seed": SEED}, implementation)


def test_returns_a_named_pair(device):
    inputs = make_inputs(device=device)
    out = denoise_step_with_estimate(**inputs)
    assert isinstance(out, DenoisedStep)
    torch.testing.assert_close(out.x, denoise_step(**inputs), rtol=0, atol=0)
    assert out.x0.min() >= -1.5
    assert out.x0.max() <= 2.0


def test_dtypes_of_state_and_network_may_differ(device):
    inputs = make_inputs(device=device)
    half = {n: inputs[n].bfloat16() for n in ("output", "unconditional")}
    got = denoise_step(**inputs | half)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, denoise_step(**inputs | {n: v.float() for n, v in half.items()}))


def test_guidance_of_one_is_none(device):
    inputs = make_inputs(device=device) | {"guidance": 1.0}
    alone = {n: v for n, v in inputs.items() if n != "unconditional"}
    torch.testing.assert_close(denoise_step(**inputs), denoise_step(**alone))


def test_expression_does_not_become_negative(device):
    inputs = make_inputs(device=device) | {"clamp": (0, math.inf)}
    assert denoise_step_with_estimate(**inputs).x0.min() == 0


def test_nan_is_not_clamped_away(device):
    inputs = make_inputs(device=device)
    inputs["output"][2, 3] = torch.nan
    out = denoise_step_with_estimate(**inputs)
    for value in out:
        assert value.isnan().nonzero().tolist() == [[2, 3]]


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_nothing_in_nothing_out(device, shape):
    assert denoise_step(**make_inputs(*shape, device=device), seed=1).shape == shape


def test_reference_can_be_differentiated_and_the_operator_says_that_it_can_not():
    inputs = make_inputs(dtype=torch.float64)
    inputs["output"].requires_grad_()
    with pytest.raises(ValueError, match=r"wants a gradient.*torch\.no_grad"):
        denoise_step(**inputs)
    with torch.no_grad():
        denoise_step(**inputs)
    denoise_step(**inputs, implementation="reference").sum().backward()
    assert inputs["output"].grad is not None


# ------------------------------------------------------------------------------ registration


def test_registration(device):
    inputs = make_inputs(device=device)
    x, output, coefficients = (inputs[n] for n in ("x", "output", "coefficients"))
    seed = torch.tensor(SEED, device=device)
    torch.library.opcheck(
        ops.denoise_step, (x, output, coefficients, None, None, None, 1.0, -math.inf, math.inf, False)
    )
    rest = (inputs["unconditional"], inputs["previous"], seed, 2.0, -1.0, 1.0, True)
    torch.library.opcheck(ops.denoise_step, (x, output, coefficients, *rest))


@pytest.mark.parametrize("each", [False, True])
def test_compiles_to_one_graph_of_any_size(device, each):
    torch.compiler.reset()
    compiled = torch.compile(denoise_step_with_estimate, fullgraph=True, dynamic=True)
    for cells in (5, 6):
        inputs = make_inputs(cells, device=device, each=each) | {"seed": SEED}
        for got, expected in zip(compiled(**inputs), denoise_step_with_estimate(**inputs), strict=True):
            torch.testing.assert_close(got, expected)


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"x": [1.0]}, TypeError, "x is a list"),
        ({"x": torch.ones(3)}, ValueError, r"x has shape \(3,\); reshape it to \[B, G\]"),
        ({"output": torch.ones(5, 22)}, ValueError, r"output has shape \(5, 22\).*\(5, 23\)"),
        ({"output": torch.ones(5, 23, dtype=torch.int32)}, TypeError, r"output has dtype torch\.int32"),
        ({"unconditional": torch.ones(5, 1)}, ValueError, r"unconditional has shape \(5, 1\)"),
        ({"previous": torch.ones(5, 23).half()}, TypeError, "previous has dtype torch.float16 and x has"),
        ({"previous": torch.ones(5, 23, device="meta")}, ValueError, "previous is on meta and x is on cpu"),
        (
            {"coefficients": torch.ones(5)},
            ValueError,
            r"coefficients has shape \(5,\); give it \[6\], or \(5, 6\)",
        ),
        (
            {"coefficients": torch.ones(6, device="meta")},
            ValueError,
            "coefficients is on meta and x is on cpu",
        ),
        ({"clamp": (1.0, 0.0)}, ValueError, r"clamp is \(1\.0, 0\.0\); give the least"),
        ({"clamp": (math.nan, 0.0)}, ValueError, "clamp is"),
        ({"seed": 0.5}, TypeError, "seed is a float"),
        ({"implementation": "cuda"}, ValueError, "implementation is 'cuda'; choose one of"),
    ],
)
def test_refuses_and_says_what_to_do(changes, kind, message):
    with pytest.raises(kind, match=message):
        denoise_step(**make_inputs() | changes)


def test_refuses_coefficients_that_mean_nothing():
    with pytest.raises(ValueError, match=r"alpha_bar is 0\.5 and alpha_bar_next is 0\.4; they grow"):
        ddim_coefficients(0.5, 0.4)
    with pytest.raises(ValueError, match="prediction is 'score'; choose one of 'eps', 'v', 'x0'"):
        dpm_solver_coefficients(0.5, 0.6, prediction="score")
    with pytest.raises(ValueError, match="variance is 'learned'; choose one of 'posterior', 'beta'"):
        ddpm_coefficients(0.5, 0.6, variance="learned")
    with pytest.raises(ValueError, match=r"eta is -1"):
        ddim_coefficients(0.5, 0.6, eta=-1)


# ------------------------------------------------------------------------------ the kernel itself


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernel, whose outputs start as NaN."""
    from scdd.kernels.denoise_step import triton as kernels

    poison(kernels)
    return kernel_device


@DTYPE
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(("cells", "genes"), [(1, 1), (5, 23), (70, 15), (3, 16), (2, 1000), (2, 2003)])
def test_kernel(poisoned, cells, genes, each, dtype):
    inputs = make_inputs(cells, genes, dtype=dtype, device=poisoned, each=each)
    check(inputs, "triton")
    check(inputs | {"seed": SEED}, "triton")


@pytest.mark.parametrize("left_out", [("previous",), ("unconditional", "guidance"), ("clamp", "previous")])
def test_kernel_with_less(poisoned, left_out):
    inputs = make_inputs(device=poisoned)
    check({n: v for n, v in inputs.items() if n not in left_out}, "triton")


@DTYPE
@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e3])
def test_kernel_on_extreme_values(poisoned, spread, dtype):
    check(make_inputs(dtype=dtype, device=poisoned, spread=spread) | {"clamp": (-math.inf, 900.0)}, "triton")


def test_kernel_keeps_nan_in_its_place(poisoned):
    inputs = make_inputs(5, 40, device=poisoned)
    clean = denoise_step_with_estimate(**inputs, seed=SEED, implementation="triton")
    inputs["x"][2, 3] = torch.nan
    dirty = denoise_step_with_estimate(**inputs, seed=SEED, implementation="triton")
    for value, expected in zip(dirty, clean, strict=True):
        assert value.isnan().nonzero().tolist() == [[2, 3]]
        torch.testing.assert_close(value[[0, 1, 3, 4]], expected[[0, 1, 3, 4]], rtol=0, atol=0)


def test_kernel_noise_does_not_depend_on_the_cells_that_follow(poisoned):
    inputs = make_inputs(9, 23, device=poisoned)
    first = {n: v[:4] if n in {"x", "output", "unconditional", "previous"} else v for n, v in inputs.items()}
    assert torch.equal(denoise_step(**inputs, seed=SEED)[:4], denoise_step(**first, seed=SEED))


def test_every_size_has_a_tile():
    known = set(tiles.every_tile())
    assert all(tiles.choose(genes) in known for genes in range(1, 3000))
