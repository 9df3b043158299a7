"""`single_step_denoise`: definition, the real denoiser, gradient, registration, errors and kernels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scdd.kernels import _dispatch
from scdd.kernels._philox import as_seed, philox_normal
from scdd.kernels.single_step_denoise import DenoiserWeights, ops, pack_denoiser, single_step_denoise, tiles
from support.accuracy import DTYPES, assert_as_accurate_as_pytorch, in_float64, with_gradients
from torch import nn

from scdd.diffusion.one_step import code_then_noise
from scdd.diffusion.schedule import NoiseSchedule
from scdd.nn.denoiser import Denoiser

KINDS = pytest.mark.parametrize("kind", ["eps", "v", "x0"])
SIGNAL, NOISE = 0.8, 0.6


def make_inputs(
    codes=5, latent=10, width=32, hidden=48, depth=2, conditions=3, *,
    dtype=torch.float32, of_weights=None, device="cpu", seed=0,
):  # fmt: skip
    """Everything that the operator is given but settings; the weights as separate entries `w0`, `w1`..."""
    generator = torch.Generator().manual_seed(seed + codes)

    def draw(*shape, size=1.0):
        return size * torch.randn(*shape, generator=generator)

    def linear(inputs, outputs):
        layer = nn.Linear(inputs, outputs)
        layer.weight.data = draw(outputs, inputs, size=inputs**-0.5)
        layer.bias.data = draw(outputs, size=0.3)
        return layer

    branches = [(linear(width, hidden), linear(hidden, width)) for _ in range(depth)]
    pack = pack_denoiser(linear(latent, width), branches, linear(width, latent), dtype=of_weights or dtype)
    tensors = {
        "z": draw(codes, latent).to(dtype),
        "eps": draw(codes, latent).to(dtype),
        "modulation": draw(conditions, (3 * depth + 2) * width, size=0.5).to(of_weights or dtype),
        "condition": torch.randint(conditions, (codes,), generator=generator),
        "mean": draw(latent).to(dtype),
        "std": (0.5 + draw(latent).abs()).to(dtype),
    } | {f"weights{i}": part for i, part in enumerate(pack)}
    inputs = {name: tensor.to(device) for name, tensor in tensors.items()}
    inputs["z"].requires_grad_()
    return inputs


def without(inputs, *names):
    return inputs | dict.fromkeys(names)


def packed(inputs):
    """The inputs with their weights as one."""
    rest = {name: value for name, value in inputs.items() if not name.startswith("weights")}
    weights = DenoiserWeights(*(inputs[f"weights{i}"] for i in range(8)))
    return rest | {"weights": weights}


def operator(kind="v", signal=SIGNAL, noise=NOISE, norm_eps=1e-6, implementation="auto", **inputs):
    given = packed(inputs)
    z, modulation, weights = (given.pop(name) for name in ("z", "modulation", "weights"))
    return single_step_denoise(
        z, modulation, weights, signal=signal, noise=noise, parameterisation=kind, norm_eps=norm_eps,
        implementation=implementation, **given,
    )  # fmt: skip


def naive(kind="v", signal=SIGNAL, noise=NOISE, norm_eps=1e-6, **inputs):
    """Written from the formula, plainly: PyTorch's layer norm, chunks, one layer after another."""
    z, weights = inputs["z"], packed(inputs)["weights"]
    modulation, condition = inputs["modulation"], inputs["condition"]
    width, depth = len(weights.b_in), len(weights.w1)
    rows = modulation if condition is None else modulation[condition]
    rows = rows.chunk(3 * depth + 2, dim=1)
    if isinstance(signal, torch.Tensor):
        signal, noise = signal[:, None], noise[:, None]
    z_t = signal * z
    if inputs["eps"] is not None:
        z_t = z_t + noise * inputs["eps"]

    def norm(h, shift, scale):
        return F.layer_norm(h, (width,), eps=norm_eps) * (1 + scale) + shift

    h = F.linear(z_t.to(weights.w1.dtype), weights.w_in[:, : z.shape[1]], weights.b_in)
    for block in range(depth):
        shift, scale, gate = rows[3 * block : 3 * block + 3]
        hidden = F.linear(norm(h, shift, scale), weights.w1[block], weights.b1[block])
        h = h + gate * F.linear(F.silu(hidden), weights.w2[block], weights.b2[block])
    out = F.linear(norm(h, *rows[-2:]), weights.w_out, weights.b_out)[:, : z.shape[1]].to(z.dtype)
    clean = {"x0": out, "v": signal * z_t - noise * out, "eps": (z_t - noise * out) / signal}[kind]
    return clean if inputs["std"] is None else clean * inputs["std"] + inputs["mean"]


def check(inputs, *, implementation="auto", levels=None, **settings):
    """Hold result and gradient to twice the error of PyTorch."""
    levels = levels or {}
    exact = with_gradients(lambda **given: naive(**given, **settings), in_float64(inputs | levels))
    theirs = with_gradients(lambda **given: naive(**given, **settings), inputs | levels)
    ours = with_gradients(
        lambda **given: operator(**given, **settings, implementation=implementation), inputs | levels
    )
    # a result is several layers deep, and each of its products is rounded in its own order
    assert_as_accurate_as_pytorch(ours, theirs, exact, summed={"out0": 16, "dz": 16})


# ------------------------------------------------------------------------------ definition, any device


@KINDS
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_matches_definition(device, dtype, implementation, kind):
    check(make_inputs(40, dtype=dtype, device=device), implementation=implementation, kind=kind)


@pytest.mark.parametrize("absent", [("eps",), ("mean", "std"), ("eps", "mean", "std")])
def test_what_is_optional(device, absent):
    check(without(make_inputs(40, device=device), *absent))


def test_a_modulation_for_every_code(device):
    inputs = make_inputs(7, conditions=7, device=device)
    check(without(inputs, "condition"))


@KINDS
def test_levels_of_every_code(device, kind):
    inputs = make_inputs(6, device=device)
    levels = {
        "signal": torch.linspace(0.1, 1, 6, device=device),
        "noise": torch.linspace(1, 0, 6, device=device),
    }
    check(inputs, levels=levels, kind=kind)


@pytest.mark.parametrize("of_weights", [torch.bfloat16, torch.float16])
def test_narrow_weights_beside_wide_codes(device, of_weights):
    inputs = make_inputs(40, of_weights=of_weights, device=device)
    check(inputs)


@KINDS
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("absent", [(), ("eps", "mean", "std")])
def test_gradcheck(implementation, kind, absent):
    inputs = without(make_inputs(3, 4, 6, 5, dtype=torch.float64), *absent)
    assert torch.autograd.gradcheck(
        lambda z: operator(**inputs | {"z": z}, kind=kind, implementation=implementation), inputs["z"]
    )


def test_float64_is_exact():
    inputs = make_inputs(9, dtype=torch.float64)
    ours, exact = with_gradients(operator, inputs), with_gradients(naive, inputs)
    for name, value in ours.items():
        torch.testing.assert_close(value, exact[name], rtol=1e-12, atol=1e-12)


def test_seed_draws_the_noise(device):
    inputs = make_inputs(9, device=device)
    drawn = philox_normal(as_seed(5, device), 0, (9, 10))
    for seed in (5, torch.tensor(5, device=device)):
        got = with_gradients(operator, without(inputs, "eps") | {"seed": seed})
        torch.testing.assert_close(got, with_gradients(operator, inputs | {"eps": drawn}))


def test_without_gradient_nothing_is_kept(device):
    inputs = make_inputs(9, device=device)
    with torch.no_grad():
        out = operator(**inputs)
    assert out.grad_fn is None
    torch.testing.assert_close(out, operator(**inputs).detach(), rtol=0, atol=0)


def test_no_codes(device):
    inputs = make_inputs(0, device=device)
    for value in with_gradients(operator, inputs).values():
        assert value.shape == (0, 10)


def test_any_memory_layout(device):
    inputs = make_inputs(9, device=device)
    for name in ("z", "eps", "modulation"):
        strided = inputs[name].detach().mT.contiguous().mT.requires_grad_(name == "z")
        got = with_gradients(operator, inputs | {name: strided})
        torch.testing.assert_close(got, with_gradients(operator, inputs))


# ------------------------------------------------------------------------------ the denoiser itself


def real_denoiser(latent=10, conditions=(4, 2), width=32, depth=3, dtype=torch.float64):
    """A denoiser whose modulation and last layer are not zero, as they are after training."""
    torch.manual_seed(3)
    net = Denoiser(latent, conditions, width=width, depth=depth)
    for layer in (net.modulation, net.leave):
        nn.init.normal_(layer.weight, std=0.3 * width**-0.5)
        nn.init.normal_(layer.bias, std=0.3)
    return net.to(dtype).requires_grad_(False)


def pack(net, dtype=None):
    return pack_denoiser(net.enter, [(b[0], b[2]) for b in net.branches], net.leave, dtype=dtype)


def modulation_of(net, t, codes):
    """What `Denoiser.forward` computes before it looks at its codes."""
    context = net.time(t) + net.condition(codes) + net.span(torch.zeros_like(t))
    return net.modulation(F.silu(context))


@KINDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_denoiser_in_one_step(kind, dtype):
    net, schedule, t_star = real_denoiser(dtype=dtype), NoiseSchedule.linear(), 250
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(21, 10, generator=generator).to(dtype).requires_grad_()
    eps = torch.randn(21, 10, generator=generator).to(dtype)
    fields = torch.stack([torch.arange(21) % 4, torch.arange(21) % 3 - 1], 1)
    # time in the dtype of the network: the schedule is of float32
    expected = code_then_noise(
        lambda z_t, t: net(z_t.to(dtype), t.to(dtype), fields), schedule, kind, z, eps, t_star
    )
    distinct, condition = fields.unique(dim=0, return_inverse=True)
    t = torch.full((len(distinct),), t_star / schedule.steps).to(dtype)
    at = torch.tensor([t_star])
    got = single_step_denoise(
        z, modulation_of(net, t, distinct), pack(net), condition=condition, eps=eps, parameterisation=kind,
        signal=schedule.signal(at).item(), noise=schedule.noise(at).item(),
    )  # fmt: skip
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(got, expected, **tolerance)
    cotangent = torch.randn(21, 10, generator=generator).to(dtype)
    ours, theirs = (torch.autograd.grad(out, z, cotangent)[0] for out in (got, expected))
    torch.testing.assert_close(ours, theirs, **tolerance)


def test_pack_is_a_copy_in_the_dtype_that_is_asked_for():
    net = real_denoiser(dtype=torch.float32)
    narrow = pack(net, torch.bfloat16)
    assert narrow.w_in.shape == (32, 16)
    assert not narrow.w_in[:, 10:].count_nonzero()
    assert all(part.dtype == torch.bfloat16 and not part.requires_grad for part in narrow)
    assert pack(net).b_in.data_ptr() != net.enter.bias.data_ptr()


# ------------------------------------------------------------------------------ registration


def test_registration(device):
    inputs = make_inputs(6, device=device)
    given = packed(inputs)
    z, eps, condition, modulation, mean, std = (
        inputs[name].detach() for name in ("z", "eps", "condition", "modulation", "mean", "std")
    )
    weights, rows = list(given["weights"]), (torch.rand(6, device=device), torch.rand(6, device=device))
    for keep in (False, True):
        for signal_rows, noise_rows in ((None, None), rows):
            levels = (signal_rows, noise_rows, SIGNAL, NOISE)
            arguments = (z, eps, None, condition, modulation, weights, *levels, mean, std, "v", 1e-6, keep)
            torch.library.opcheck(ops._forward, arguments)
    _, kept = ops._forward(*arguments)
    arguments = (z, condition, modulation, weights, *rows, std, SIGNAL, NOISE, "v", 1e-6, kept)
    torch.library.opcheck(ops._backward, arguments)


@pytest.mark.parametrize("seed", [None, 7])
def test_compiles_to_one_graph_of_any_size(device, seed):
    torch.compiler.reset()
    compiled = torch.compile(operator, fullgraph=True, dynamic=True)
    for codes in (5, 6):
        inputs = make_inputs(codes, device=device)
        if seed is not None:
            inputs = without(inputs, "eps") | {"seed": seed}
        torch.testing.assert_close(with_gradients(compiled, inputs), with_gradients(operator, inputs))


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"z": lambda t: t.tolist()}, TypeError, r"z is a list; pass a torch\.Tensor"),
        ({"z": lambda t: t.long()}, TypeError, r"z has dtype torch\.int64"),
        ({"z": lambda t: t[0]}, ValueError, r"z has shape \(10,\); reshape it to \[B, d\]"),
        ({"z": lambda t: t.repeat(1, 2)}, ValueError, r"z has shape \(5, 20\).*up to 16 numbers"),
        ({"z": lambda t: t.half()}, TypeError, r"weights have dtype torch\.float32 and z has torch\.float16"),
        ({"eps": lambda t: t[:3]}, ValueError, r"eps has shape \(3, 10\).*\(5, 10\)"),
        ({"eps": lambda t: t.half()}, TypeError, r"eps has dtype torch\.float16"),
        ({"modulation": lambda t: t[:, :64]}, ValueError, r"modulation has shape \(3, 64\).*\(3, 256\)"),
        ({"modulation": lambda t: t.half()}, TypeError, r"modulation has dtype torch\.float16"),
        ({"condition": lambda t: t.float()}, TypeError, r"condition has dtype torch\.float32"),
        ({"condition": lambda t: t[:4]}, ValueError, r"condition has shape \(4,\).*\(5,\)"),
        ({"condition": lambda t: None}, ValueError, r"modulation has 3 rows for 5 codes; .* condition="),
        ({"mean": lambda t: None}, ValueError, r"one of mean and std is missing"),
        ({"std": lambda t: t[:3]}, ValueError, r"std has shape \(3,\)"),
        ({"weights3": lambda t: t[:, :9]}, ValueError, r"weights\.b1 has shape \(2, 9\).*\(2, 48\)"),
        ({"weights7": lambda t: t.half()}, TypeError, r"weights\.b_out has dtype torch\.float16"),
        ({"weights2": lambda t: t.to("meta")}, ValueError, r"is on (cpu|meta) and weights\.w1 is on meta"),
        (
            {"modulation": lambda t: t.requires_grad_()},
            ValueError,
            r"something else than z requires a gradient",
        ),
    ],
)
def test_refuses_and_says_what_to_do(changes, kind, message):
    inputs = {name: tensor.detach() for name, tensor in make_inputs().items()}
    inputs |= {name: change(inputs[name]) for name, change in changes.items()}
    with pytest.raises(kind, match=message):
        operator(**inputs)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"kind": "u"}, ValueError, "parameterisation is 'u'; choose one of 'eps', 'v', 'x0'"),
        ({"norm_eps": -1.0}, ValueError, "norm_eps is -1.0; .* can not be negative"),
        ({"seed": 3}, ValueError, "both seed and eps are given"),
        ({"signal": torch.ones(5)}, TypeError, "one of signal and noise is a tensor"),
        (
            {"signal": torch.ones(5, 1), "noise": torch.ones(5)},
            ValueError,
            r"signal has shape \(5, 1\).*\[B\]",
        ),
        ({"implementation": "cuda"}, ValueError, "implementation is 'cuda'"),
    ],
)
def test_refuses_a_setting(settings, kind, message):
    with pytest.raises(kind, match=message):
        operator(**make_inputs() | settings)


def test_refuses_weights_that_were_not_packed():
    inputs = packed(make_inputs())
    with pytest.raises(TypeError, match="weights is a tuple; make it with pack_denoiser"):
        single_step_denoise(
            inputs["z"], inputs["modulation"], tuple(inputs["weights"]), signal=SIGNAL, noise=NOISE
        )


def test_packs_only_what_fits():
    layer = nn.Linear
    with pytest.raises(ValueError, match="branches is empty"):
        pack_denoiser(layer(4, 8), [], layer(8, 4))
    with pytest.raises(ValueError, match="has no bias"):
        pack_denoiser(layer(4, 8), [(layer(8, 16, bias=False), layer(16, 8))], layer(8, 4))
    with pytest.raises(ValueError, match="a denoiser of these sizes has"):
        pack_denoiser(layer(4, 8), [(layer(8, 16), layer(8, 8))], layer(8, 4))


def test_a_named_implementation_never_falls_back(monkeypatch):
    monkeypatch.setattr(_dispatch, "TRITON_INSTALLED", True)
    monkeypatch.setattr(_dispatch, "INTERPRET", True)
    inputs = make_inputs(width=24)
    with pytest.raises(
        ValueError, match=r"the layers are 24 and 48 wide .* multiples of 16 .*; pad the layers"
    ):
        operator(**inputs, implementation="triton")


# ------------------------------------------------------------------------------ tiles


@pytest.mark.parametrize("size", [2, 4])
def test_every_width_has_a_tile(size):
    for width in range(tiles.MIN_WIDTH, tiles.MAX_WIDTH + 1, tiles.MIN_WIDTH):
        tile = tiles.choose(width, 2 * width, size)
        assert tile.columns >= 16
        assert width % tile.columns == width % tile.inputs == tile.rows % tile.normed == 0


# ------------------------------------------------------------------------------ the kernels themselves


@pytest.fixture
def poisoned(kernel_device, poison):
    """Give the device of the kernels, whose outputs and scratch memory start as NaN."""
    from scdd.kernels.single_step_denoise import triton as kernels

    poison(kernels)
    return kernel_device


@pytest.mark.parametrize("codes", [1, 15, 16, 17, 63, 64, 65, 130])
def test_kernel_on_any_number_of_codes(poisoned, codes):
    check(make_inputs(codes, device=poisoned), implementation="triton")


@KINDS
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_kernel(poisoned, dtype, kind):
    check(make_inputs(40, dtype=dtype, device=poisoned), implementation="triton", kind=kind)


@pytest.mark.parametrize(
    ("latent", "width", "hidden", "depth"),
    [(1, 16, 16, 1), (16, 48, 80, 1), (33, 64, 128, 3), (64, 128, 256, 1), (10, 96, 32, 6), (200, 32, 64, 1)],
)
def test_kernel_on_any_sizes(poisoned, latent, width, hidden, depth):
    check(make_inputs(9, latent, width, hidden, depth, device=poisoned), implementation="triton")


@pytest.mark.parametrize("absent", [("eps",), ("mean", "std"), ("eps", "mean", "std")])
def test_kernel_on_what_is_optional(poisoned, absent):
    check(without(make_inputs(17, device=poisoned), *absent), implementation="triton")


@KINDS
def test_kernel_on_levels_of_every_code(poisoned, kind):
    inputs = without(make_inputs(66, conditions=66, device=poisoned), "condition")
    levels = {
        "signal": torch.linspace(0.1, 1, 66).to(poisoned),
        "noise": torch.linspace(1, 0, 66).to(poisoned),
    }
    check(inputs, implementation="triton", levels=levels, kind=kind)


@pytest.mark.parametrize("of_weights", [torch.bfloat16, torch.float16])
def test_kernel_on_narrow_weights_beside_wide_codes(poisoned, of_weights):
    check(make_inputs(40, of_weights=of_weights, device=poisoned), implementation="triton")


def test_kernel_draws_the_noise_of_the_seed(poisoned):
    inputs = make_inputs(70, device=poisoned)
    drawn = philox_normal(as_seed(5, poisoned), 0, (70, 10))
    got = with_gradients(operator, without(inputs, "eps") | {"seed": 5})
    torch.testing.assert_close(got, with_gradients(operator, inputs | {"eps": drawn}), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["condition", "mean", "std", "eps", "modulation", "z"])
def test_kernel_on_any_memory_layout(poisoned, name):
    """A column of several conditions has gaps, and one number for all has no stride."""
    inputs = make_inputs(20, device=poisoned)
    expected = with_gradients(operator, inputs)
    gaps = torch.stack((inputs[name].detach(),) * 3, -1)[..., 1].requires_grad_(name == "z")
    assert not gaps.is_contiguous()
    for key, value in with_gradients(operator, inputs | {name: gaps}).items():
        assert torch.equal(value, expected[key]), key


def test_kernel_on_one_condition_for_all(poisoned):
    inputs = make_inputs(20, device=poisoned)
    given = {"condition": inputs["condition"][:1], "std": inputs["std"][:1]}
    expanded = {name: value.expand(size) for (name, value), size in zip(given.items(), (20, 10), strict=True)}
    expected = with_gradients(
        operator, inputs | {name: value.contiguous() for name, value in expanded.items()}
    )
    for key, value in with_gradients(operator, inputs | expanded).items():
        assert torch.equal(value, expected[key]), key


def test_kernel_without_gradient(poisoned):
    inputs = make_inputs(66, device=poisoned)
    with torch.no_grad():
        out = operator(**inputs, implementation="triton")
    torch.testing.assert_close(out, operator(**inputs).detach(), rtol=0, atol=0)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_kernel_on_a_constant_stream(poisoned, value):
    """Rows of equal numbers have no variance; a rounding error must not be blown up to one."""
    inputs = make_inputs(5, device=poisoned)
    inputs |= {
        "weights0": torch.zeros_like(inputs["weights0"]),
        "weights1": torch.full_like(inputs["weights1"], value),
    }
    inputs |= {"modulation": torch.zeros_like(inputs["modulation"])}
    expected = SIGNAL * (SIGNAL * inputs["z"] + NOISE * inputs["eps"]) - NOISE * inputs["weights7"][:10]
    got = operator(**without(inputs, "mean", "std"), implementation="triton")
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_kernel_on_extreme_codes(poisoned, size):
    inputs = make_inputs(17, device=poisoned)
    with torch.no_grad():
        inputs["z"].mul_(size)
    check(inputs, implementation="triton")


def test_kernel_keeps_codes_apart(poisoned):
    """NaN in one code, in a tile that it shares with others, stays there; so does NaN in its condition."""
    inputs = make_inputs(70, conditions=4, device=poisoned)
    condition = torch.where(torch.arange(70, device=poisoned) % 35 == 3, 3, inputs["condition"] % 3)
    inputs |= {"condition": condition}
    expected = with_gradients(
        operator,
        inputs,
    )
    modulation, z = inputs["modulation"].clone(), inputs["z"].detach().clone()
    modulation[3], z[20] = math.nan, math.nan
    got = with_gradients(operator, inputs | {"modulation": modulation, "z": z.requires_grad_()})
    others = torch.tensor([i for i in range(70) if i not in (3, 20, 38)], device=poisoned)
    for name, value in got.items():
        torch.testing.assert_close(value[others], expected[name][others], rtol=0, atol=0)


def test_kernel_takes_each_code_by_itself(poisoned):
    """Neither the order of codes nor how many come at once changes a result: no bit of it."""
    inputs = make_inputs(70, device=poisoned)
    whole = with_gradients(operator, inputs)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1)).to(poisoned)
    moved = {name: inputs[name].detach()[order] for name in ("z", "eps", "condition")}
    moved["z"].requires_grad_()
    torch.testing.assert_close(operator(**inputs | moved).detach(), whole["out0"][order], rtol=0, atol=0)
    some = {name: inputs[name].detach()[:20] for name in ("z", "eps", "condition")}
    torch.testing.assert_close(operator(**inputs | some), whole["out0"][:20], rtol=0, atol=0)


def test_kernel_gives_the_same_bits_twice(poisoned):
    inputs = make_inputs(70, device=poisoned)
    first = with_gradients(operator, inputs)
    for name, value in with_gradients(operator, inputs).items():
        assert torch.equal(value, first[name]), name


def test_kernel_on_nothing(poisoned):
    for value in with_gradients(operator, make_inputs(0, device=poisoned)).values():
        assert value.shape == (0, 10)
