"""What a user meets: imports, docstrings that run, and refusals that name the argument, in every operator."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from support.kernel_calls import (
    FUNCTIONS,
    RESULTS,
    arguments_of,
    call,
    example_names,
    normal,
    takes,
)

import scdd
from scdd import kernels

every_function = pytest.mark.parametrize("name", FUNCTIONS)

# The functions that look at devices only through their tensors, and give a gradient.
DIFFERENTIABLE = {
    "coding_rate": "z", "subspace_coding_rate": "w", "modulate": "x", "gated_residual_modulate": "residual",
    "multihead_subspace_attention": "w", "token_statistics_attention": "w", "ista_operator": "dictionary",
    "ista_step": "y", "overcomplete_ista_step": "x", "segment_attention": "q", "denoise_loss": "h",
    "noise_patch_embed": "x0", "masked_linear_cross_entropy": "hidden", "energy_distance": "x",
    "maximum_mean_discrepancy": "x", "embed_genes": "gene_table", "single_step_denoise": "z",
}  # fmt: skip


def tensors_in(result):
    """Flatten a result to its tensors."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in tensors_in(part)] if isinstance(result, tuple) else []


def assert_equal(found, expected, **tolerance):
    for one, other in zip(tensors_in(found), tensors_in(expected), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


# ------------------------------------------------------------------------------ imports


def test_everything_exported_is_a_function_or_a_result():
    assert sorted(kernels.__all__) == list(kernels.__all__)
    for name in RESULTS:
        assert issubclass(getattr(kernels, name), tuple), name
        assert getattr(kernels, name).__doc__.strip(), name
    for name in FUNCTIONS:
        assert isinstance(getattr(kernels, name), types.FunctionType), name


def test_a_function_is_not_hidden_by_the_folder_of_its_name():
    needs_triton = {"triton", "builds", "__main__", "machine_code", "build", "_triton", "_philox_triton"}
    for module in pkgutil.walk_packages(kernels.__path__, "scdd.kernels."):
        if needs_triton.isdisjoint(module.name.split(".")):
            importlib.import_module(module.name)
    for name in kernels.__all__:
        assert not isinstance(getattr(kernels, name), types.ModuleType), name
        assert pickle.loads(pickle.dumps(getattr(kernels, name))) is getattr(kernels, name)


def test_importing_needs_none_of_the_optional_packages():
    code = """
        import sys
        for name in ("triton", "anndata", "h5py", "zarr", "scipy", "pandas", "sklearn", "scdd._csr"):
            sys.modules[name] = None
        import torch
        import scdd.kernels as kernels
        x, row = torch.ones(2, 3, 8), torch.zeros(2, 8)
        assert kernels.modulate(x, row, row).shape == x.shape
        try:
            kernels.modulate(x, row, row, implementation="triton")
        except ValueError as error:
            assert "Triton is not installed" in str(error), error
        else:
            raise AssertionError("ran without Triton")
    """
    source = inspect.cleandoc(code)
    root = str(next(iter(scdd.__path__)).removesuffix("scdd"))
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{source}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


# ------------------------------------------------------------------------------ docstrings


@every_function
def test_docstring_is_numpydoc_and_names_every_argument(name):
    function = getattr(kernels, name)
    text = inspect.cleandoc(function.__doc__)
    for section in ("Parameters", "Returns", "Raises", "Examples"):
        assert re.search(rf"^{section}\n-{{{len(section)}}}$", text, re.MULTILINE), section
    described = text.split("Parameters\n----------")[1].split("\nReturns\n")[0]
    names = re.findall(r"^(\w+(?:, \w+)*)$", described, re.MULTILINE)
    assert sorted(", ".join(names).split(", ")) == sorted(inspect.signature(function).parameters)


@every_function
def test_every_argument_has_a_type_and_options_are_named(name):
    signature = inspect.signature(getattr(kernels, name))
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        if parameter.name in ("implementation", "eps", "norm_eps", "seed") and name != "patch_noise":
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, parameter


@every_function
def test_examples_run(name):
    text = inspect.cleandoc(getattr(kernels, name).__doc__)
    examples = doctest.DocTestParser().get_examples(text)
    assert any(f"scdd.kernels.{name}(" in example.source for example in examples)
    names = {"torch": torch, "scdd": scdd, **example_names()}
    if name.startswith("denoise_step") or name.endswith("_coefficients"):
        names["x"] = names["x0"]
    for example in examples:
        exec(compile(example.source, f"<example of {name}>", "exec"), names)


# ------------------------------------------------------------------------------ refusals


TENSOR_ARGUMENTS = [
    (name, argument)
    for name in FUNCTIONS
    for argument, value in arguments_of(name).items()
    if isinstance(value, torch.Tensor)
]
NEEDED = inspect.Parameter.empty


@pytest.mark.parametrize("wrong", [[1.0, 2.0], np.ones((3, 8), np.float32), "x", object()], ids=type)
@pytest.mark.parametrize(("name", "argument"), TENSOR_ARGUMENTS)
def test_refuses_what_is_not_a_tensor_by_name(name, argument, wrong):
    with pytest.raises(TypeError) as caught:
        call(name, arguments_of(name) | {argument: wrong})
    # of two levels, one a tensor, both are named
    assert re.search(rf"\b{argument}\b", str(caught.value))
    assert "; " in str(caught.value)


@pytest.mark.parametrize(("name", "argument"), TENSOR_ARGUMENTS)
def test_refuses_a_sparse_tensor_by_name(name, argument):
    value = arguments_of(name)[argument].to_sparse()
    with pytest.raises(TypeError, match=rf"^{argument} has the layout torch.sparse_coo; .*to_dense"):
        call(name, arguments_of(name) | {argument: value})


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name, argument in TENSOR_ARGUMENTS
        if inspect.signature(getattr(kernels, name)).parameters[argument].default is NEEDED
    ],
)  # fmt: skip
def test_refuses_none_for_a_tensor_that_is_needed(name, argument):
    with pytest.raises(TypeError, match=rf"\b{argument}\b.*; pass|missing"):
        call(name, arguments_of(name) | {argument: None})


@pytest.mark.parametrize(
    "wrong", ["x", [0.1], {}, object(), np.ones(3)], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name in FUNCTIONS
        for argument, parameter in inspect.signature(getattr(kernels, name)).parameters.items()
        if re.fullmatch(r"(float|int|bool|SegmentSchedule)( \| None)?", str(parameter.annotation))
        or argument in ("unit", "guidance", "step_size", "threshold", "clamp", "seed")
    ],
)
def test_refuses_a_setting_that_is_not_a_number_by_name(name, argument, wrong):
    arguments = arguments_of(name)
    if argument == "seed":
        arguments.pop("eps", None)
    with pytest.raises(TypeError, match=rf"^{argument} is .*; pass"):
        call(name, arguments | {argument: wrong})


@pytest.mark.parametrize("argument", ["eps", "norm_eps", "eta"])
@every_function
def test_refuses_nan_for_what_is_not_negative(name, argument):
    if not takes(name, argument) or "float" not in str(inspect.signature(getattr(kernels, name))):
        return
    if "Tensor" in str(inspect.signature(getattr(kernels, name)).parameters[argument].annotation):
        return
    with pytest.raises(ValueError, match=f"{argument} is nan"):
        call(name, arguments_of(name) | {argument: float("nan")})


@pytest.mark.parametrize("wrong", ["nonsense", None, 1, ["triton"], np.ones(2)], ids=repr)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if takes(name, "implementation")])
def test_refuses_an_unknown_implementation(name, wrong):
    with pytest.raises(
        ValueError, match=r"^implementation is .*; choose one of 'auto', 'reference', 'triton'"
    ):
        call(name, arguments_of(name) | {"implementation": wrong})


@pytest.mark.parametrize(
    "argument", ["prediction", "reduction", "norm", "statistic", "variance", "parameterisation"]
)
@pytest.mark.parametrize("wrong", ["nonsense", None, ["sum"], {}], ids=repr)
def test_refuses_an_unknown_choice_alike_everywhere(argument, wrong):
    found = [name for name in FUNCTIONS if takes(name, argument)]
    assert found
    for name in found:
        with pytest.raises(ValueError, match=rf"^{argument} is {re.escape(repr(wrong))}; choose one of '"):
            call(name, arguments_of(name) | {argument: wrong})


@pytest.mark.parametrize(
    ("starts", "message"),
    [([0, 4, 3, 10], "falls from 4 to 3"), ([1, 4, 10], "starts at 1"), ([0, 4], "ends at 4"),
     ([0, 12], "ends at 12"), ([0, -1, 10], "falls from 0 to -1"), ([], "is empty")],
)  # fmt: skip
@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("name", [n for n in FUNCTIONS if takes(n, "cu_seqlens") and n != "segment_schedule"])
def test_refuses_wrong_segments_on_a_cpu(name, implementation, starts, message):
    changes = {"cu_seqlens": torch.tensor(starts, dtype=torch.int32), "implementation": implementation}
    with pytest.raises(ValueError, match=f"cu_seqlens {message}"):
        call(name, arguments_of(name) | changes)


# ------------------------------------------------------------------------------ surroundings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@every_function
def test_autocast_does_not_change_a_result(name, dtype):
    arguments = arguments_of(name, dtype)
    for options in ({}, {"implementation": "reference"}) if takes(name, "implementation") else ({},):
        expected = call(name, arguments | options)
        with torch.autocast("cpu", torch.bfloat16):
            found = call(name, arguments | options)
        assert_equal(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


@every_function
def test_runs_without_gradients(name):
    expected = call(name, arguments_of(name))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = call(name, arguments_of(name))
        assert not any(tensor.requires_grad for tensor in tensors_in(found))
        assert_equal(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("name", "argument"), DIFFERENTIABLE.items())
def test_transforms_of_torch_func_take_the_definition(name, argument):
    arguments = arguments_of(name)
    value = arguments[argument]

    def total(value):
        return torch.stack([t.sum() for t in tensors_in(call(name, arguments | {argument: value}))]).sum()

    leaf = value.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    assert_equal(torch.func.grad(total)(value), expected, rtol=1e-3, atol=1e-4)
    both = torch.stack((value, 1.1 * value))
    expected = torch.stack([total(value), total(1.1 * value)])
    assert_equal(torch.func.vmap(total)(both), expected, rtol=1e-3, atol=1e-4)


def test_the_kernels_refuse_transforms_of_torch_func():
    x, row = normal(3, 2, 8), normal(3, 8)
    with pytest.raises(ValueError, match=r"torch\.func.*can not see through a kernel"):
        torch.func.vmap(lambda y: kernels.modulate(y, row, row, implementation="triton"))(x[None])


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in FUNCTIONS
        if not n.startswith(("attention_", "segment_", "pack_", "multihead_"))
        and "cu_seqlens" not in arguments_of(n)
        and n != "patch_noise"
    ],
)
def test_shapes_and_dtypes_can_be_had_of_meta_tensors(name):
    def to_meta(value):
        if isinstance(value, torch.Tensor):
            return value.to("meta")
        return type(value)(*map(to_meta, value)) if hasattr(value, "_fields") else value

    expected = call(name, arguments_of(name))
    found = call(name, {key: to_meta(value) for key, value in arguments_of(name).items()})
    for one, other in zip(tensors_in(found), tensors_in(expected), strict=True):
        assert (one.device.type, one.shape, one.dtype) == ("meta", other.shape, other.dtype)


def test_one_of_two_outputs_is_enough_for_a_gradient():
    arguments = arguments_of("gated_residual_modulate")
    x = arguments["x"].requires_grad_()
    out = kernels.gated_residual_modulate(**arguments)
    (through_h,) = torch.autograd.grad(out.h.sum(), x, retain_graph=True)
    torch.testing.assert_close(through_h, arguments["gate"].unsqueeze(1).expand_as(x))
    (through_y,) = torch.autograd.grad(out.y.square().sum(), x)
    expected = kernels.gated_residual_modulate(**arguments, implementation="reference").y.square().sum()
    torch.testing.assert_close(through_y, torch.autograd.grad(expected, x)[0], rtol=1e-4, atol=1e-4)


class Block(torch.nn.Module):
    """A model of a user: parameters, one operator after another."""

    def __init__(self):
        super().__init__()
        self.modulation = torch.nn.Linear(4, 24)
        self.dictionary = torch.nn.Parameter(normal(8, 8) / 8)

    def forward(self, x, condition):
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        branch = kernels.modulate(x, shift, scale)
        return kernels.ista_step(branch, self.dictionary, residual=x, gate=gate)


def test_a_module_is_copied_called_with_other_parameters_and_trained():
    torch.manual_seed(0)
    block, x, condition = Block(), normal(3, 5, 8), normal(3, 4)
    expected = block(x, condition)
    assert_equal(copy.deepcopy(block)(x, condition), expected)
    zeros = {name: torch.zeros_like(parameter) for name, parameter in block.named_parameters()}
    assert_equal(torch.func.functional_call(block, zeros, (x, condition)), x)
    optimiser = torch.optim.AdamW(block.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        loss = (block(x, condition) - x.roll(1, 0)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
