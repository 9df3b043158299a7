"""Layer norm whose gain and bias come from the condition, alone or after a gated residual."""

from __future__ import annotations

from .api import ModulateOutput, gated_residual_modulate, modulate

__all__ = ["ModulateOutput", "gated_residual_modulate", "modulate"]
