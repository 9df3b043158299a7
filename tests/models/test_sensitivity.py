"""The hold of a code on its cell, against finite differences."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from scdd.errors import InputError
from scdd.models.sensitivity import _fields, _generator, sensitivity


@pytest.fixture(scope="module")
def exact_model(generator):
    """The same generator in float64, where differences are exact enough."""
    model = copy.copy(generator)
    model.net = copy.deepcopy(generator.net).double()
    return model


def differences(model, steps, n, guidance):
    """Jacobians [n, G, d] by central differences of the decoded expression."""
    fields = _fields(model, n, None, 3)
    code, make = _generator(model, fields, steps, guidance, False, 3)
    totals = model._typical_totals(fields)
    columns = []
    with torch.no_grad():
        for k in range(code.shape[1]):
            step = torch.zeros_like(code)
            step[:, k] = 1e-5
            high, low = (model.net.autoencoder.decode(make(z), totals) for z in (code + step, code - step))
            columns.append((high - low) / 2e-5)
    return torch.stack(columns, 2)


@pytest.mark.parametrize(("steps", "guidance"), [(1, None), (4, None), (1, 1.5)])
def test_it_equals_finite_differences(exact_model, steps, guidance):
    jacobian = differences(exact_model, steps, 5, guidance)
    found = sensitivity(exact_model, steps=steps, n=5, guidance=guidance, seed=3)
    np.testing.assert_allclose(found.frobenius, jacobian.flatten(1).norm(dim=1), rtol=1e-4)
    np.testing.assert_allclose(
        found.operator, torch.linalg.matrix_norm(jacobian, ord=2, dim=(1, 2)), rtol=1e-4
    )
    assert (found.operator <= found.frobenius + 1e-9).all()
    assert (found.frobenius > 0).all()


def test_a_denoiser_read_where_there_is_only_noise_has_no_hold(generator):
    """The trap that the objectives avoid: one DDIM step from pure noise is the class mean."""
    at_t_star, from_noise = (
        sensitivity(generator, n=12),
        sensitivity(generator, n=12, steps=10),
    )
    one_plain = copy.copy(generator)
    one_plain.config = replace(generator.config, t_star=1_000)
    assert sensitivity(one_plain, n=12).frobenius.mean() < 0.1 * at_t_star.frobenius.mean()
    assert from_noise.frobenius.mean() > 0


def test_conditions_seeds_and_errors(generator):
    same, again, other = (
        sensitivity(generator, n=6, condition={"cell_type": c}, seed=s).frobenius
        for c, s in (("type 1", 0), ("type 1", 0), ("type 2", 0))
    )
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)
    with pytest.raises(InputError, match="n=0"):
        sensitivity(generator, n=0)
    with pytest.raises(InputError, match=r"1\.\.1000"):
        sensitivity(generator, steps=2_000)
    with pytest.raises(InputError, match="was not seen"):
        sensitivity(generator, condition={"cell_type": "nerve"})
