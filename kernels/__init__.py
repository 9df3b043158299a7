"""Fused operators: plain functions over tensors that know nothing of cells.

Each operator is a folder with the same files: ``api`` (the public function), ``ops`` (its registration
with PyTorch), ``reference`` (its definition), ``triton`` (the kernels) and ``tiles`` (how they are cut).
Tensors on a GPU go to the kernels, all others to PyTorch. Importing this package needs neither a GPU nor
Triton.
"""

from __future__ import annotations

if __name__ != "scdd.kernels":
    raise ImportError(
        f"this package was imported as {__name__!r}, a copy whose operators would clash with the real ones; "
        "install scdd (`pip install -e .`) and import `scdd.kernels`"
    )

# Bound here and now, not lazily: the folder and the function share a name, and the function must win.
from .modulate import ModulateOutput, gated_residual_modulate, modulate

__all__ = ["ModulateOutput", "gated_residual_modulate", "modulate"]
