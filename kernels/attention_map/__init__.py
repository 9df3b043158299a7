"""What attention within segments looks at, summed as it is computed: no map is ever in memory."""

from __future__ import annotations

from .api import AttentionRows, attention_mass, attention_rows

__all__ = ["AttentionRows", "attention_mass", "attention_rows"]
