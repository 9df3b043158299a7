"""How many nats tokens take to code to a given precision: as they are, and as each subspace sees them."""

from __future__ import annotations

from .api import coding_rate, subspace_coding_rate

__all__ = ["coding_rate", "subspace_coding_rate"]
