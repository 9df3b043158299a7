"""Tokens of packed cells from gene ids and expression values, embedded and normalised in one pass."""

from __future__ import annotations

from .api import SoftBins, ValueMLP, embed_genes

__all__ = ["SoftBins", "ValueMLP", "embed_genes"]
