"""The loss through ``torch.compile``, or a plain word on why not."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from scdd.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

_COMPILERS = ("torch._dynamo", "torch._inductor", "triton")


@contextmanager
def compiled(module: nn.Module, loss: str, *, enabled: bool) -> Iterator[None]:
    """While this lasts the method ``loss`` of ``module`` is compiled; there is no falling back.

    Raises
    ------
    InputError
        The compiler failed, at the first step or later.
    """
    if not enabled:
        yield
        return
    # An attribute of the instance lies in front of the method of its class.
    setattr(module, loss, torch.compile(getattr(module, loss)))
    try:
        yield
    except Exception as error:
        if not _of_a_compiler(error):
            raise
        said = str(error).strip().splitlines()
        raise InputError(
            f"compile=True failed ({type(error).__name__}: {said[0] if said else ''}); install a C++ "
            "compiler (on a GPU also a C compiler and Python's headers), or train without compile"
        ) from error
    finally:
        delattr(module, loss)


def _of_a_compiler(error: BaseException | None) -> bool:
    while error is not None:
        if any(kind.__module__.startswith(_COMPILERS) for kind in type(error).__mro__):
            return True
        error = error.__cause__
    return False
