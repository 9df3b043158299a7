"""`compile=True` trains to the numbers of eager mode, and says so when it cannot."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from support.regression import Regression, held_out, run, weights

from scdd.errors import InputError

COMPILE = {"compile": True, "validate_every": 20}


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler"
)
def test_a_compiled_loss_trains_to_the_same_numbers():
    eager, history = run(40, settings={"validate_every": 20}, validation=held_out())
    module, other = run(40, settings=COMPILE, validation=held_out())
    torch.testing.assert_close(weights(eager), weights(module), rtol=1e-3, atol=1e-4)
    assert other[-1]["validation"] == pytest.approx(history[-1]["validation"], rel=1e-3)
    assert "loss" not in vars(module), "the module is as it was"


def test_a_compiler_that_fails_is_an_error_not_a_silence(monkeypatch):
    class NoCompiler(RuntimeError):
        __module__ = "torch._inductor.exc"

    def broken(method):
        def call(*_):
            raise RuntimeError("backend") from NoCompiler("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    module = Regression()
    with pytest.raises(InputError, match=r"compile=True failed.*or train without compile"):
        run(3, module=module, settings=COMPILE)
    assert "loss" not in vars(module)


def test_an_error_of_the_loss_is_not_blamed_on_the_compiler(monkeypatch):
    class Bad(Regression):
        def loss(self, batch, generator):
            raise ZeroDivisionError("mine")

    monkeypatch.setattr(torch, "compile", lambda method: method)
    with pytest.raises(ZeroDivisionError, match="mine"):
        run(3, module=Bad(), settings=COMPILE)
