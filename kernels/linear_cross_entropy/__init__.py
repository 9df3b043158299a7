"""Cross-entropy of a linear layer over a large vocabulary, for the masked tokens only."""

from __future__ import annotations

from .api import masked_linear_cross_entropy

__all__ = ["masked_linear_cross_entropy"]
