"""Where kernels are run, and memory that shows what they leave unwritten."""

from __future__ import annotations

import types

import pytest
import torch

from scdd.kernels import _dispatch

_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
_INTERPRETED = (
    pytest.mark.interpret,
    pytest.mark.skipif(not _dispatch.INTERPRET, reason="TRITON_INTERPRET is not set"),
)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=_CUDA)])
def device(request):
    """Give a device for what any implementation must do."""
    return torch.device(request.param)


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=_INTERPRETED, id="interpreted"),
        pytest.param("cuda", marks=_CUDA),
    ]
)
def kernel_device(request):
    """Give a device on which the Triton code itself runs."""
    return torch.device(request.param)


@pytest.fixture
def poison(monkeypatch):
    """Fill all that the launchers of a module allocate with NaN (integers: 2^30), so that gaps are seen."""

    def poison_module(module):
        def filled(allocate):
            def allocate_nan(*args, **kwargs):
                out = allocate(*args, **kwargs)
                return out.fill_(torch.nan if out.is_floating_point() else 2**30)

            return allocate_nan

        poisoned = types.ModuleType("torch")
        poisoned.__getattr__ = lambda name: getattr(torch, name)
        poisoned.empty, poisoned.empty_like = filled(torch.empty), filled(torch.empty_like)
        monkeypatch.setattr(module, "torch", poisoned)

    return poison_module
